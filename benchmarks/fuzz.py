"""What becomes of mutated files and bodies: every decoder of foreign bytes against its bounds.

    python benchmarks/fuzz.py [DECODER …] [--mutations 3000] [--json FILE]
    python benchmarks/fuzz.py DECODER --write N > FILE

A line a decoder: mutations read and refused (one of several records may be both), those refused by
the last boundary for an error nobody foresaw, those that escaped it, crashed, hung or took too much
memory (expected: none), kinds of reasons, the most processor time and memory that one took; below
it how often each reason was given. Ends with status 1 where something is not as it should be.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

from tests.fuzzing import DECODERS, Tally, fuzz, mutated, table  # noqa: E402


def run(names: list[str], mutations: int) -> dict[str, Tally]:
    tallies = {}
    for name in names:
        tallies[name] = fuzz(name, mutations)
        print(table({name: tallies[name]}), flush=True)
    return tallies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("decoders", nargs="*", metavar="DECODER", help="default: all")
    parser.add_argument("--mutations", type=int, default=3000, help="of each decoder")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--write", type=int, metavar="N", help="write the bytes of mutation N")
    arguments = parser.parse_args()
    names = arguments.decoders or list(DECODERS)
    for name in names:
        if name not in DECODERS:
            parser.error(f"DECODER: expected one of {', '.join(DECODERS)}; found {name}")
    if arguments.write is not None:
        sys.stdout.buffer.write(mutated(names[0], arguments.write))
        return
    tallies = run(names, arguments.mutations)
    print(f"\n{table(tallies)}")
    if arguments.json:
        figures = [{"decoder": name, **tally.figures()} for name, tally in tallies.items()]
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    sys.exit(any(tally.broken() for tally in tallies.values()))


if __name__ == "__main__":
    main()
