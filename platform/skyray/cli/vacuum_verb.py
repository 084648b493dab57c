"""``skyray vacuum``: the only verb that deletes."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from skyray.cli.verb import Json, verb


@verb
def vacuum(
    dataset: Annotated[str, typer.Argument(help="Dataset: folder or URI.")],
    keep_days: Annotated[
        float, typer.Option(help="Versions younger than this stay; the newest always does.")
    ] = 30.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say which versions would go, and delete nothing.")
    ] = False,
    json: Json = None,
):
    """Remove a dataset's old versions and what killed ingests left behind.

    Example: skyray vacuum dataset --keep-days 30
    """
    from skyray.data.vacuum import vacuum_dataset

    return asdict(vacuum_dataset(dataset, keep_days, dry_run=dry_run))
