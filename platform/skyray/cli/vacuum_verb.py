"""``skyray vacuum``: the only verb that deletes."""

from __future__ import annotations

import datetime
from dataclasses import asdict
from typing import Annotated, Any

import typer

from skyray.cli.verb import Json, verb


@verb
def vacuum(
    dataset: Annotated[str | None, typer.Argument(help="Dataset: folder or URI.")] = None,
    prepared: Annotated[
        bool, typer.Option("--prepared", help="Also prepared tables that rest unused.")
    ] = False,
    keep_days: Annotated[
        float, typer.Option(min=0, help="What is younger stays; the newest version always does.")
    ] = 30.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would go, and delete nothing.")
    ] = False,
    json: Json = None,
):
    """Remove a dataset's old versions and what killed ingests left, and unused prepared tables.

    Example: skyray vacuum dataset --keep-days 30
    """
    from skyray.config import ConfigError
    from skyray.data.prepared_space import vacuum_prepared
    from skyray.data.vacuum import vacuum_dataset

    if dataset is None and not prepared:
        raise ConfigError("vacuum: expected a dataset, --prepared or both, found neither")
    found: dict[str, Any] = {}
    if dataset is not None:
        found |= asdict(vacuum_dataset(dataset, keep_days, dry_run=dry_run))
    if prepared:
        unused = datetime.timedelta(days=keep_days)
        gone = vacuum_prepared(older_than=unused, dry_run=dry_run)
        found["prepared tables"] = [f"{info.name} ({info.made_for})" for info in gone]
        found["prepared bytes"] = sum(info.bytes for info in gone)
    return found
