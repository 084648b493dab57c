"""``skyray export``: datasets and catalogues for other programs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from skyray.cli.verb import Address, Json, verb

FORMATS = ("hats", "parquet")


@verb
def export(
    format: Annotated[str, typer.Argument(help="hats (partitioned by sky) or parquet.")],
    source: Annotated[str, typer.Argument(help="A dataset; for hats a catalogue's folder too.")],
    out: Annotated[str, typer.Option(help="Folder or URI to write.")],
    version: Annotated[
        int | None, typer.Option(min=1, help="Version of a dataset; default: the newest.")
    ] = None,
    threshold: Annotated[
        int, typer.Option(min=1, help="hats: rows of a partition at most.")
    ] = 1_000_000,
    address: Address = None,
    json: Json = None,
) -> dict[str, Any]:
    """Write a dataset or catalogue for other programs: HATS for LSDB, or plain Parquet.

    Example: skyray export hats results/catalogue --out results-hats
    """
    from dataclasses import asdict

    from skyray.config import ConfigError
    from skyray.runtime.session import ray_session

    if format not in FORMATS:
        raise ConfigError(f"format {format!r}: expected one of {FORMATS}")
    with ray_session(address):
        if format == "hats":
            from skyray.inference.hats import write_hats

            return asdict(write_hats(source, out, version=version, threshold=threshold))
        from skyray.inference.export import export_parquet

        return asdict(export_parquet(source, out, version))
