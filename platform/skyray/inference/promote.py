"""From candidate to champion: two models scored on the same rows, and conditions that must hold."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from skyray.bundles.bundle import read_bundle
from skyray.bundles.named import SCHEME, NoSuchModel, located
from skyray.bundles.registry import CHAMPION, crown, model_name, run_of
from skyray.config import ConfigError
from skyray.inference.evaluate import evaluate
from skyray.runtime import places

_TESTS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
_CONDITION = re.compile(r"\s*([\w./-]+?)\s*(>=|<=|>|<)\s*(\S+)\s*")


@dataclass(frozen=True)
class Condition:
    """``SCORE > LIMIT``, where LIMIT is a number or ``champion``: the champion's own score."""

    score: str
    sign: str
    limit: float | None

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read a condition; raise `ConfigError` for what is none."""
        found = _CONDITION.fullmatch(text)
        if found and found[3] == CHAMPION:
            return cls(found[1], found[2], None)
        try:
            return cls(found[1], found[2], float(found[3]))
        except (TypeError, ValueError):
            raise ConfigError(
                f"condition {text!r}: expected SCORE>NUMBER or SCORE>{CHAMPION} (or >=, <, <=)"
            ) from None

    def check(self, scores: dict[str, Any]) -> None:
        """Raise `ConfigError` unless `scores` have this condition's."""
        known = [name for name, value in scores.items() if isinstance(value, int | float)]
        if self.score not in known:
            raise ConfigError(f"condition {self}: expected a score of {sorted(known)}")

    def holds(self, scores: dict[str, Any], champion: dict[str, Any] | None) -> bool:
        """Return whether it holds; against a champion, where there is none, it does."""
        if self.limit is None and champion is None:
            return True
        limit = champion[self.score] if self.limit is None else self.limit
        return _TESTS[self.sign](scores[self.score], limit)

    def __str__(self) -> str:
        return f"{self.score}{self.sign}{CHAMPION if self.limit is None else f'{self.limit:g}'}"


@dataclass(frozen=True)
class Promotion:
    """Whether a bundle is champion now, its and the former one's scores, and what did not hold."""

    model: str
    promoted: bool
    version: str
    scores: dict[str, float]
    champion: dict[str, float] | None
    unmet: list[str]

    def summary(self) -> dict[str, Any]:
        """Return it as a verb shows it."""
        told = {"model": self.model, "champion": f"version {self.version}, this one"}
        if not self.promoted:
            told["champion"] = f"not this one: {', '.join(self.unmet)} does not hold"
        told |= {f"its {name}": value for name, value in self.scores.items()}
        return told | {f"former {name}": value for name, value in (self.champion or {}).items()}


def promote(
    bundle: str,
    data: str,
    out: str,
    conditions: Sequence[str],
    *,
    split: str | None = "test",
    scores: dict[str, Any] | None = None,
    workers: int | None = None,
    use_gpu: bool = False,
) -> Promotion:
    """Make `bundle` the champion of its name if all conditions hold on `data`.

    The bundle is scored (to ``OUT/candidate``) unless its `scores` on these rows are given; the
    champion (to ``OUT/champion``) when a condition names it and it is another. Ray must have been
    started.

    Raises
    ------
    ConfigError
        For no condition, one that cannot be read, or a score that the family does not give.
    ValueError
        If MLflow does not know the bundle's run or is away.
    """
    asked = [Condition.parse(text) for text in conditions]
    if not asked:
        raise ConfigError("promote: expected at least one condition, such as accuracy>champion")
    bundle = located(bundle)
    content = read_bundle(bundle)
    run_of(content)  # refused now, not after the scores
    how = {"split": split, "workers": workers, "use_gpu": use_gpu, "figures": False}
    if scores is None:
        scores = evaluate(bundle, data, places.join(out, "candidate"), **how)
    for condition in asked:
        condition.check(scores)
    name, rival = model_name(content), None
    if any(condition.limit is None for condition in asked):
        rival = _champion(name, content)
    rivals = evaluate(rival, data, places.join(out, CHAMPION), **how) if rival else None
    unmet = [str(condition) for condition in asked if not condition.holds(scores, rivals)]
    numbers, former = ({c.score: found[c.score] for c in asked} if found else None
                       for found in (scores, rivals))  # fmt: skip
    version = ""
    if not unmet:
        told = {"scores": numbers, "champion": former, "data": data, "split": split or "all"}
        why = {
            "skyray.promoted_if": ", ".join(map(str, asked)),
            "skyray.promoted": json.dumps(told),
        }
        version = crown(bundle, why)
    return Promotion(name, not unmet, version, numbers, former, unmet)


def _champion(name: str, content: dict[str, Any]) -> str | None:
    """Return the champion's bundle; None where there is none yet or it is this one."""
    try:
        found = located(f"{SCHEME}{name}@{CHAMPION}")
    except NoSuchModel:
        return None
    return None if read_bundle(found)["version"] == content["version"] else found
