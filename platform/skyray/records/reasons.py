"""The registry of refusal reasons, of which ``docs/refusals.md`` is the page.

A reason is a stable slug that the quarantine groups by and that clients of the service match on.
Whoever refuses for a new reason adds it to ``reasons.yaml`` and makes the page again:

    python -m skyray.records.reasons docs/refusals.md
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import yaml

_HEAD = """# Why something is refused

Every record, survey file or request that skyray cannot use is refused with a reason, and a detail
that says what was expected and what was found. `skyray inspect DATASET` lists the reasons of a
quarantine, the service gives them in `error.reason`. This page is made from
`platform/skyray/records/reasons.yaml` by `make docs`.
"""


@dataclass(frozen=True)
class Reason:
    """One entry: the slug, the part of the page it stands in, what it means, what to do."""

    name: str
    part: str
    means: str
    do: str


@functools.cache
def reasons() -> Mapping[str, Reason]:
    """Return all reasons by name, in the order of the page; one that ends in ``:`` is a prefix."""
    text = resources.files("skyray.records").joinpath("reasons.yaml").read_text(encoding="utf-8")
    parts = yaml.safe_load(text)
    found: dict[str, Reason] = {}
    for part, entries in parts.items():
        for name, entry in entries.items():
            if name in found:
                raise ValueError(f"reasons.yaml: {name}: expected one entry, found two")
            found[name] = Reason(name, part, **entry)
    return found


def reason_of(name: str) -> Reason | None:
    """Return the entry of a reason, or of its prefix (``cut:z`` → ``cut:``); None if unknown."""
    return reasons().get(name) or reasons().get(name.partition(":")[0] + ":")


def page() -> str:
    """Return the Markdown page of all reasons."""
    lines, part = [_HEAD], ""
    for reason in reasons().values():
        if reason.part != part:
            part = reason.part
            lines.append(
                f"## {part}\n| reason | what it means | what to do |\n| --- | --- | --- |\n"
            )
        name = f"{reason.name}FIELD" if reason.name.endswith(":") else reason.name
        lines.append(f"| `{name}` | {reason.means} | {reason.do} |\n")
    return "".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the page of refusal reasons.")
    parser.add_argument("page", type=Path, help="file to write, docs/refusals.md")
    parser.parse_args().page.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
