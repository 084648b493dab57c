"""``skyray export``: datasets, catalogues and networks for other programs."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from typing import Annotated

import typer

from skyray.cli.verb import Address, Json, cluster, verb


class Kind(StrEnum):
    """What `skyray export` writes."""

    hats = "hats"
    parquet = "parquet"
    onnx = "onnx"


@verb
def export(
    kind: Annotated[
        Kind, typer.Argument(help="hats: by sky, for LSDB; parquet: plain parts; onnx: a network.")
    ],
    source: Annotated[str, typer.Argument(help="Dataset; hats: or a catalogue; onnx: a bundle.")],
    out: Annotated[str, typer.Option(help="Folder (onnx: file) or URI to write to.")],
    version: Annotated[
        int | None, typer.Option(min=1, help="Version of a dataset; default: the newest.")
    ] = None,
    threshold: Annotated[
        int, typer.Option(min=1, help="hats: rows of a partition at most.")
    ] = 1_000_000,
    data: Annotated[
        str | None, typer.Option(help="onnx: dataset to try the file on; default: mock objects.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="onnx: objects to try the file on.")] = 64,
    address: Address = None,
    json: Json = None,
):
    """Write a dataset, catalogue or network in a form that other programs read.

    Example: skyray export hats results/catalogue --out sky
    """
    from skyray.cli.beforehand import check_bundle, check_file, check_there, check_writable
    from skyray.config import ConfigError

    if kind is Kind.onnx:
        check_file(out)
        check_bundle(source)
        from skyray.bundles.onnx_export import export_onnx

        return asdict(export_onnx(source, out, data, rows))
    from skyray.inference.catalogue import Catalogue

    if kind is Kind.parquet and Catalogue.exists(source):
        raise ConfigError(f"{source}: expected a dataset, found a catalogue: it is Parquet already")
    check_there([source])
    check_writable(out)
    with cluster("export", address):
        from skyray.inference.export import export_parquet
        from skyray.inference.hats import write_hats

        if kind is Kind.hats:
            return asdict(write_hats(source, out, version=version, threshold=threshold))
        return asdict(export_parquet(source, out, version))
