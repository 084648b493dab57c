"""What a dataset, bundle or catalogue holds, in a form for people and for JSON."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from skyray.bundles.named import located
from skyray.data.dataset import RECORDS, Dataset, NotADataset, refuse_former
from skyray.inference.catalogue import Catalogue
from skyray.readers import foreign_arrow as pq
from skyray.readers.base import SurveyFile
from skyray.readers.fits_image import astropy_file
from skyray.readers.layout import is_fits_name
from skyray.records.reasons import reason_of
from skyray.runtime import places

_EXAMPLES = 2
_RANGES = ("redshift", "snr", "pixel_scale_arcsec", "jd")
_BUNDLE_FILE = "bundle.json"


def inspect(uri: str | os.PathLike, version: int | None = None) -> dict[str, Any]:
    """Describe what lies at `uri` with plain JSON types; of a dataset its newest or a `version`.

    Raises
    ------
    ValueError
        If it is neither a dataset, nor a bundle, nor a catalogue (Parquet or FITS).
    FileNotFoundError
        If nothing is there.
    """
    uri = located(uri)
    if not places.exists(uri):
        raise FileNotFoundError(f"{uri}: no such file or folder")
    if Dataset.started(uri):
        return inspect_dataset(Dataset.open(uri, version))
    refuse_former(uri)
    if version is not None:
        raise NotADataset(f"{uri}: expected a dataset, since version {version} was asked for")
    if places.exists(places.join(uri, _BUNDLE_FILE)):
        return _inspect_bundle(uri)
    if Catalogue.exists(uri):
        return _inspect_catalogue(Catalogue.open(uri))
    if uri.lower().endswith((".parquet", ".pq")):
        return _inspect_parquet(uri)
    if is_fits_name(uri):
        return _inspect_fits(uri)
    raise ValueError(
        f"{uri}: expected a dataset (with {RECORDS}), a bundle (with {_BUNDLE_FILE}) or a "
        "finished catalogue (its folder, .parquet or .fits)"
    )


def inspect_dataset(dataset: Dataset) -> dict[str, Any]:
    """Describe a dataset: card, grid, rows, classes by split, ranges, quarantine, size."""
    manifest = dataset.manifest
    labels = sorted({label for counts in manifest.counts.values() for label in counts})
    return {
        "kind": "dataset",
        "card": f"{dataset.card.name}: {dataset.card.title}",
        "record": manifest.record,
        "pixels": _pixels(dataset),
        "version": _version(dataset),
        "fingerprint": manifest.fingerprint,
        "written by": f"skyray {manifest.skyray_version} ({manifest.git_commit}), "
        f"{manifest.created}",
        "files read": manifest.files_read,
        "files of other kinds": manifest.files_unclaimed,
        "rows": f"{manifest.rows_read} read = {manifest.rows_written} written + "
        f"{manifest.rows_quarantined} quarantined" + _unfinished(manifest.rows_unfinished),
        "objects by split": {s: sum(counts.values()) for s, counts in manifest.counts.items()},
        "classes (by split)": {
            label or "(no label)": ", ".join(
                f"{split} {counts.get(label, 0)}" for split, counts in manifest.counts.items()
            )
            for label in labels
        },
        "ranges": _ranges(dataset),
        "decided": {name: _decided(rows) for name, rows in manifest.statements.items()},
        "quarantine": _quarantine(dataset),
        "data files": len(dataset.table.get_fragments()),
        "size": _size(dataset.size_bytes()),
    }


def _pixels(dataset: Dataset) -> str:
    grid, card = dataset.grid, dataset.card
    if grid is None:
        scale = f", {card.pixel_scale_arcsec} arcsec a pixel" if card.pixel_scale_arcsec else ""
        return f"{card.image_size} × {card.image_size} in {', '.join(card.bands)}{scale}"
    wavelength = grid.wavelength()
    unit = "Å" if grid.kind == "linear" else "dex"
    return (
        f"{grid.size} pixels, {grid.kind}, {wavelength[0]:.1f} to {wavelength[-1]:.1f} Å, "
        f"step {grid.step:g} {unit}"
    )


def _ranges(dataset: Dataset) -> dict[str, str]:
    names = [name for name in _RANGES if name in dataset.schema.names]
    values: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for table in dataset.iter_tables(names):
        for name in names:
            values[name].append(table[name].to_numpy())
    return {name: describe_numbers(np.concatenate(parts)) for name, parts in values.items()
            if parts}  # fmt: skip


def describe_numbers(values: np.ndarray) -> str:
    """Return minimum, median, maximum of the finite values and the number of the others."""
    finite = values[np.isfinite(values)]
    unknown = f", {len(values) - len(finite)} unknown" if len(finite) < len(values) else ""
    if not len(finite):
        return f"none known{unknown}"
    low, middle, high = np.quantile(finite, (0.0, 0.5, 1.0))
    return f"{low:.4g} to {high:.4g}, median {middle:.4g}{unknown}"


def _quarantine(dataset: Dataset) -> dict[str, str]:
    """Return for every reason how many rows it holds and some examples."""
    found: dict[str, str] = {}
    for reason, count in sorted(dataset.manifest.quarantine_reasons.items()):
        examples = [
            f"{places.name(row['source'])}: {row['detail'][:120]}"
            for row in dataset.quarantine(reason, _EXAMPLES).to_pylist()
        ]
        entry = reason_of(reason)
        about = f"{count}: {entry.means}" if entry else str(count)
        found[reason] = _lines([about, *examples])
    return found


def _decided(rows: Mapping[str, int]) -> str:
    """Return what was decided and from which statement, the commonest first."""
    commonest = sorted(rows.items(), key=lambda item: (-item[1], item[0]))
    return _lines([f"{n} row{'s' * (n != 1)}: {text}" for text, n in commonest])


def _lines(texts: Sequence[str]) -> str:
    return "\n  ".join(texts)


def _version(dataset: Dataset) -> str:
    kept = [manifest.version for manifest in dataset.versions()]
    others = f" (kept: {', '.join(map(str, kept))})" if len(kept) > 1 else ""
    return f"{dataset.version}{others}"


def _unfinished(rows: int) -> str:
    return f" + {rows} of files that another ingest has begun: run it again" if rows else ""


def _inspect_bundle(uri: str) -> dict[str, Any]:
    from skyray.bundles.bundle import read_bundle

    content = read_bundle(uri)
    files = places.list_files(uri)
    data = content["data"]
    return {
        "kind": "bundle",
        "family": content["family"],
        "recipe": content["recipe"].get("name", ""),
        "mode": content["recipe"].get("mode", ""),
        "card": data["card"],
        "classes": data["classes"],
        "dataset fingerprint": data["fingerprint"],
        "written by": f"skyray {content.get('skyray_version', '')} "
        f"({content.get('git_commit', '')})",
        "outputs": {c["name"]: f"{c['description']} [{c['unit'] or '-'}]"
                    for c in content.get("output", [])},
        "metrics": content.get("metrics", {}),
        "size": _size(sum(size for _, size in files)),
    }  # fmt: skip


def _inspect_catalogue(catalogue: Catalogue) -> dict[str, Any]:
    columns = {}
    for column in catalogue.columns:  # one at a time in memory
        number = np.dtype("U1" if column.dtype == "str" else column.dtype).kind == "f"
        values = catalogue.columns_of([column.name])[column.name] if number else None
        if values is not None and values.dtype.kind != "f":  # vectors
            values = None
        columns[column.name] = _column(column.dtype, column.unit, column.description, values)
    size = _size(catalogue.size_bytes())
    parts = len(catalogue.parts)
    return {"kind": "catalogue", "rows": catalogue.rows, "columns": columns, "parts": parts,
            "size": size}  # fmt: skip


def _inspect_parquet(uri: str) -> dict[str, Any]:
    filesystem, path = places.resolve(uri)
    with pq.ParquetFile(path, filesystem=filesystem) as file:
        schema = file.schema_arrow
        numbers = [f.name for f in schema if pa.types.is_floating(f.type)]
        table = file.read(columns=numbers)
        rows = file.metadata.num_rows
    columns = {}
    for field in schema:
        metadata = {k.decode(): v.decode() for k, v in (field.metadata or {}).items()}
        values = table[field.name].to_numpy() if field.name in numbers else None
        columns[field.name] = _column(
            str(field.type), metadata.get("unit", ""), metadata.get("description", ""), values
        )
    size = filesystem.get_file_info(path).size or 0
    return {"kind": "catalogue", "rows": rows, "columns": columns, "size": _size(size)}


def _inspect_fits(uri: str) -> dict[str, Any]:
    from astropy.io import fits

    file = SurveyFile(*places.resolve(uri))
    with astropy_file(file) as hdus:
        tables = [hdu for hdu in hdus if isinstance(hdu, fits.BinTableHDU)]
        if not tables:
            raise ValueError(f"{uri}: expected a FITS table, found none")
        table = tables[0]
        if table.header.get("ZTABLE"):
            raise ValueError(f"{uri}: expected a plain table, found a compressed one; funpack it")
        columns = {}
        for number, column in enumerate(table.columns, start=1):
            values = table.data[column.name]
            numbers = values if values.dtype.kind == "f" and values.ndim == 1 else None
            columns[column.name] = _column(
                column.format, column.unit or "", table.header.get(f"TCOMM{number}", ""), numbers
            )
        rows = len(table.data)
    size = _size(file.filesystem.get_file_info(file.path).size or 0)
    return {"kind": "catalogue", "rows": rows, "columns": columns, "size": size}


def _column(kind: str, unit: str, description: str, values: np.ndarray | None) -> str:
    head = f"{kind} [{unit}]" if unit else kind
    spread = describe_numbers(values) if values is not None else ""
    return "; ".join(part for part in (head, description, spread) if part)


def _size(count: int) -> str:
    if count < 1000:
        return f"{count} bytes"
    power = min(int(math.log10(count) // 3), 4)
    return f"{count / 1000**power:.1f} {('kB', 'MB', 'GB', 'TB')[power - 1]}"
