"""Runs mutations of good files through a decoder, in a process with limits, and counts the ends.

``SKYRAY_MUTATIONS`` sets how many a decoder gets (``make fuzz``: 50,000). Mutation n of a decoder
is the same at every run; ``benchmarks/fuzz.py`` prints the figures and can write out the bytes.
"""

from __future__ import annotations

import os
import random
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from tests.bounded_work import forget_peak, peak_mib
from tests.fuzz_decoders import BODIES, FILES, READ, outcomes

from skyray.records import InvalidRecord
from skyray.records.reasons import reason_of
from skyray.runtime import bounded

MUTATIONS = int(os.environ.get("SKYRAY_MUTATIONS", "200"))
PEAK_MIB = 400  # that the process of a decoder may come to hold beyond what it holds idle
SECONDS = 2.0
_BOUNDS = bounded.Bounds(seconds=SECONDS, memory_mib=PEAK_MIB, seconds_per_mib=0)
LEAST_ENDS = 4  # read, or refused for a reason: the mutations do get to different places
DECODERS = {**FILES, **BODIES}
_AT_ONCE = 50
_FAULTS = ("escaped", "crashed", "hung", "too large")
_UNNAMED = ("unreadable", "reader_fault")  # refused, by the last boundary


@dataclass
class Tally:
    """What became of a decoder's mutations."""

    mutations: int
    refused: Counter = field(default_factory=Counter)  # reasons; `READ` for records
    faults: list[str] = field(default_factory=list)  # escaped, crashed, hung, too large
    slowest_s: float = 0.0
    peak_mib: float = 0.0

    def figures(self) -> dict[str, Any]:
        """Return the numbers; of records and refusals: in how many mutations each was met."""
        reasons = {reason: count for reason, count in self.refused.most_common() if reason != READ}
        unnamed = sum(reasons.get(reason, 0) for reason in _UNNAMED)
        return {
            "mutations": self.mutations,
            "read": self.refused[READ],
            "refused": sum(reasons.values()),
            "unnamed": unnamed,
            "faults": {k: sum(f.startswith(k) for f in self.faults) for k in _FAULTS},
            "reasons": reasons,
            "slowest_cpu_s": round(self.slowest_s, 3),
            "peak_mib": round(self.peak_mib, 1),
        }

    def broken(self) -> list[str]:
        """Return what is not as it should be."""
        limits = [f"expected {what} < {most}, found {found:.3g}" for what, found, most in (
            ("processor seconds", self.slowest_s, SECONDS), ("MiB", self.peak_mib, PEAK_MIB))
            if found >= most]  # fmt: skip
        if len(self.refused) < LEAST_ENDS:
            limits.append(f"expected {LEAST_ENDS} kinds of ends, found {dict(self.refused)}")
        return self.faults + limits


def mutated(name: str, number: int) -> bytes:
    """Return mutation `number` of a decoder's good files."""
    decoder = DECODERS[name]
    rng = random.Random(f"{name} {number}")
    return decoder.mutate(rng.choice(_seeds(name)), rng)


@cache
def _seeds(name: str) -> list[bytes]:
    return DECODERS[name].seeds()


@dataclass
class _Attempt:
    """Work of a process: it reads the good files first, before anything is limited or counted."""

    name: str
    idle_mib: float = 0.0

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        decoder = DECODERS[self.name]
        found = {end for content in _seeds(self.name) for end in outcomes(decoder, content)}
        if found != {READ}:
            raise AssertionError(f"{self.name}: expected its good files to be read, found {found}")
        forget_peak()
        self.idle_mib = peak_mib()

    def __call__(self, content: bytes) -> tuple[list[str], str, float, float]:
        """Return outcomes, what escaped, seconds of processor time and the peak so far, MiB."""
        began, escaped, found = time.process_time(), "", []
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = outcomes(DECODERS[self.name], content)
        except MemoryError:
            raise
        except Exception as error:
            escaped = f"{type(error).__name__}: {error}"[:200]
        return found, escaped, time.process_time() - began, peak_mib() - self.idle_mib


def _results(name: str, mutations: int) -> Iterator[Any]:
    """Yield what `_Attempt` makes of the mutations, which are made here: their cost is not its."""
    bounded.close()  # processes that hold what other decoders left there
    for first in range(0, mutations, _AT_ONCE):
        numbers = range(first, min(first + _AT_ONCE, mutations))
        contents = [mutated(name, number) for number in numbers]
        yield from bounded.each(_Attempt(name), contents, [0] * len(contents), _BOUNDS)


def fuzz(name: str, mutations: int = MUTATIONS) -> Tally:
    """Run the mutations of a decoder; RuntimeError if its good files are not read."""
    tally = Tally(mutations)
    for number, result in enumerate(_results(name, mutations)):
        if isinstance(result, InvalidRecord):
            kind = {"decode_timeout": "hung", "decode_memory": "too large"}
            tally.faults.append(f"{kind.get(result.reason, 'crashed')}: mutation {number}: "
                                f"{result.detail}")  # fmt: skip
            continue
        found, escaped, seconds, peak = result
        tally.refused.update(set(found))
        tally.slowest_s = max(tally.slowest_s, seconds)
        tally.peak_mib = max(tally.peak_mib, peak)
        if escaped:
            tally.faults.append(f"escaped: mutation {number}: {escaped}")
        unknown = [reason for reason in found if reason != READ and reason_of(reason) is None]
        if unknown:
            tally.faults.append(f"escaped: mutation {number}: reason {unknown[0]} is not listed")
    return tally


def table(tallies: Mapping[str, Tally]) -> str:
    """Return the figures of decoders as lines: below each, how often it refused for what."""
    head = (
        f"{'decoder':<20}{'mutations':>10}{'read':>8}{'refused':>9}{'unnamed':>9}{'escaped':>9}"
        f"{'crashed':>9}{'hung':>6}{'large':>7}{'reasons':>9}{'CPU s':>8}{'MiB':>6}"
    )
    return "\n".join([head, *(line for item in tallies.items() for line in _lines(*item))])


def _lines(name: str, tally: Tally) -> list[str]:
    figures = tally.figures()
    faults = "".join(f"{count:>{width}}" for count, width in
                     zip(figures["faults"].values(), (9, 9, 6, 7), strict=True))  # fmt: skip
    return [
        f"{name:<20}{tally.mutations:>10,}{figures['read']:>8,}{figures['refused']:>9,}"
        f"{figures['unnamed']:>9,}{faults}{len(figures['reasons']):>9}"
        f"{tally.slowest_s:>8.2f}{tally.peak_mib:>6.0f}",
        "    " + ", ".join(f"{reason} {count}" for reason, count in figures["reasons"].items()),
        *(f"    {fault}" for fault in tally.faults[:9]),
    ]
