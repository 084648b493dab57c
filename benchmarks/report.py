"""How every benchmark reports: a table on stdout and JSON rows of one shape."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One figure: `ratio` is value against `reference`, `target` what the ratio should reach."""

    name: str
    value: float
    unit: str
    reference: float | None = None
    ratio: float | None = None
    target: float | None = None
    note: str = ""


def finish(title: str, rows: list[Row], json_file: Path | None = None) -> None:
    """Print the rows and, where asked, write them as JSON."""
    table = Table("figure", "value", "unit", "reference", "ratio", "target", "note", title=title)
    for row in rows:
        numbers = (row.value, row.reference, row.ratio, row.target)
        value, reference, ratio, target = (f"{n:.4g}" if n is not None else "" for n in numbers)
        table.add_row(row.name, value, row.unit, reference, ratio, target, row.note)
    Console(width=140).print(table)
    if json_file:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps([asdict(row) for row in rows], indent=2)
        json_file.write_text(text + "\n", encoding="utf-8")
