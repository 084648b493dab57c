"""What was decided about a record's values, and from which statement of its survey file.

A record's *statements* map a decision to what was decided and why, e.g.
``{"medium": "air → vacuum: UCD em.wl;obs.air of WAVE", "flux_unit": "Jy: TUNIT2"}``. They say how
a file was understood, not what it measured: the same words for all records of one kind, so that a
dataset's manifest can count them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

MAX_STATEMENTS, MAX_CHARACTERS = 16, 160
MAX_DISTINCT = 24  # of one decision in a manifest
OTHERS = "(others)"


def statements_text(statements: Mapping[str, str]) -> str | None:
    """Return statements as JSON, of bounded size; None where there are none."""
    return _text(tuple(statements.items())) if statements else None


@lru_cache(maxsize=256)
def _text(items: tuple[tuple[str, str], ...]) -> str:
    kept = {name[:MAX_CHARACTERS]: text[:MAX_CHARACTERS] for name, text in items[:MAX_STATEMENTS]}
    return json.dumps(kept, sort_keys=True, ensure_ascii=False)


class StatementCount:
    """How many rows rest on which decision; of each at most `MAX_DISTINCT`, then `OTHERS`."""

    def __init__(self):
        self._rows: dict[str, Counter] = {}

    def add(self, text: str | None, rows: int) -> None:
        """Count the rows that share one text of `statements_text`."""
        for name, decided in json.loads(text or "{}").items():
            if name not in self._rows and len(self._rows) >= MAX_DISTINCT:
                name = OTHERS
            counts = self._rows.setdefault(name, Counter())
            known = decided in counts or len(counts) < MAX_DISTINCT
            counts[decided if known else OTHERS] += rows

    def snapshot(self) -> dict[str, dict[str, int]]:
        """Return decision → what was decided → rows, in a fixed order."""
        return {name: dict(sorted(self._rows[name].items())) for name in sorted(self._rows)}
