"""HATS: a catalogue or dataset partitioned by sky, as LSDB and the hats package read it.

The layout is that of HATS 1.0 (https://www.ivoa.net/documents/Notes/HATS/): HEALPix pixels, split
where they hold more rows than a threshold, one Parquet file each, sorted by ``_healpix_29``. Rows
are counted per pixel first; then those of each pixel meet in one task, which writes its file. Of a
dataset only row numbers travel: the task takes the rows themselves from the table.

    OUT/hats.properties, properties, partition_info.csv
    OUT/dataset/Norder=K/Dir=D/Npix=N.parquet, _metadata, _common_metadata
    OUT/without_position.parquet       rows that have no place on the sky, where there are any
"""

from __future__ import annotations

import datetime
import hashlib
import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

import skyray
from skyray.data.dataset import Dataset, NotADataset
from skyray.families.base import Columns
from skyray.inference.catalogue import Catalogue
from skyray.inference.export import plain_lists
from skyray.inference.results import ABOUT, OtherResults, Results, piece_rows
from skyray.runtime import places

THRESHOLD = 1_000_000  # rows of a partition at most, as hats-import has it
FINEST = 8  # order of the smallest partitions, 0.05 square degrees
_INDEX_ORDER = 29
_INDEX, _ORDER, _PIXEL, _ROW = "_healpix_29", "_order", "_pixel", "_row"
_NOWHERE = -1
_POSITIONS_A_TASK = 1 << 18
WITHOUT_POSITION = "without_position.parquet"


@dataclass(frozen=True)
class HatsResult:
    """What was written: rows with and without a position, partitions."""

    uri: str
    rows: int
    without_position: int
    partitions: int


class _Rows(Protocol):
    """Rows to partition, read in tasks."""

    tasks: int

    def about(self) -> dict[str, Any]:
        """Return what the rows are of, as JSON."""

    def read(self, task: int, positions_only: bool) -> Iterator[pa.Table]:
        """Yield tables with ``ra`` and ``dec``, deg, and what `fetch` needs."""

    def fetch(self, group: pa.Table) -> Iterator[pa.Table]:
        """Yield the rows of a sorted group whole, in its order, with ``_healpix_29`` first."""


class _CatalogueRows:
    def __init__(self, catalogue: Catalogue):
        self.catalogue, self.tasks = catalogue, len(catalogue.parts)

    def about(self) -> dict[str, Any]:
        text = places.read_bytes(places.join(self.catalogue.uri, ABOUT))
        return {"catalogue": hashlib.sha256(text).hexdigest()[:16]}

    def read(self, task: int, positions_only: bool) -> Iterator[pa.Table]:
        uri = self.catalogue.files()[task]
        filesystem, path = places.resolve(uri)
        with pq.ParquetFile(path, filesystem=filesystem) as part:
            for group in range(part.num_row_groups):
                yield part.read_row_group(group, ["ra", "dec"] if positions_only else None)

    def fetch(self, group: pa.Table) -> Iterator[pa.Table]:
        uri = self.catalogue.files()[0]
        filesystem, path = places.resolve(uri)
        schema = pq.read_schema(path, filesystem=filesystem)  # units: Ray's shuffle drops them
        rows = group.select(schema.names).cast(schema)
        yield rows.add_column(0, _index_field(), group[_INDEX])


class _DatasetRows:
    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        self.tasks = -(-dataset.count() // _POSITIONS_A_TASK)

    def about(self) -> dict[str, Any]:
        return {"dataset": self.dataset.manifest.fingerprint, "version": self.dataset.version}

    def read(self, task: int, positions_only: bool) -> Iterator[pa.Table]:
        start = task * _POSITIONS_A_TASK
        rows = np.arange(start, min(start + _POSITIONS_A_TASK, self.dataset.count()))
        yield self.dataset.take(rows, ["ra", "dec"]).append_column(_ROW, pa.array(rows))

    def fetch(self, group: pa.Table) -> Iterator[pa.Table]:
        rows, index = group[_ROW].to_numpy(), group[_INDEX]
        step = piece_rows(self.dataset.schema, self.dataset.schema.names, self.dataset.count())
        for start in range(0, len(rows), step):
            taken = plain_lists(self.dataset.take(rows[start : start + step]))
            yield taken.add_column(0, _index_field(), index.slice(start, step))


def write_hats(
    uri: str, out: str, *, version: int | None = None, threshold: int = THRESHOLD
) -> HatsResult:
    """Write a catalogue or dataset as a HATS catalogue; Ray must be running.

    Rows without a finite position go to ``OUT/without_position.parquet`` and are counted.

    Parameters
    ----------
    uri : str
        A dataset, or the folder of a catalogue.
    version : int, optional
        Of a dataset; default: the newest.
    threshold : int
        Rows of a partition at most; pixels of order 8 are not split further.

    Raises
    ------
    OtherResults
        If `out` holds something else.
    ValueError
        If no row has a position.
    """
    rows = _rows_of(uri, version)
    _claim(places.absolute(out), {**rows.about(), "threshold": threshold})
    counts, nowhere = _counted(rows)
    if not counts.any():
        raise ValueError(f"{uri}: none of {nowhere} rows has a position (ra, dec): HATS is by sky")
    orders = partition_orders(counts, threshold)
    written = _write_partitions(rows, places.absolute(out), orders, counts)
    found = sum(row["rows"] for row in written)
    if found != counts.sum() + nowhere:
        raise RuntimeError(f"{out}: expected {counts.sum() + nowhere} rows, found {found}")
    pixels = sorted((r["order"], r["pixel"]) for r in written if r["order"] >= 0)
    ray.get(_write_metadata.remote(places.absolute(out), pixels))
    _write_properties(out, int(counts.sum()), pixels, threshold)
    return HatsResult(out, int(counts.sum()), nowhere, len(pixels))


def _rows_of(uri: str, version: int | None) -> _Rows:
    if Dataset.started(uri):
        return _DatasetRows(Dataset.open(uri, version))
    if version is not None:
        raise NotADataset(f"{uri}: expected a dataset, since version {version} was asked for")
    return _CatalogueRows(Catalogue.open(uri))


def _claim(out: str, about: dict[str, Any]) -> None:
    """Begin, or begin again, and delete what an earlier try left; nothing of anybody else's."""
    for name in ("dataset", "hats.properties"):
        place = places.join(out, name)
        if places.exists(place) and not places.exists(places.join(out, ABOUT)):
            raise OtherResults(f"{place}: is not of an export by skyray; choose another --out")
    Results.claim(out, about, 0, 1)
    for name in ("hats.properties", "properties", "dataset", WITHOUT_POSITION):
        places.remove(places.join(out, name))


def healpix(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """Return nested HEALPix pixels of order 29, int64 [N]; −1 where a position is not finite.

    Parameters
    ----------
    ra, dec : float [N]
        Degrees, ICRS; declinations beyond ±90 count as no position.
    """
    import astropy.units as u
    from astropy.coordinates import Latitude, Longitude
    from cdshealpix.nested import lonlat_to_healpix

    ra, dec = np.asarray(ra, np.float64), np.asarray(dec, np.float64)
    known = np.isfinite(ra) & np.isfinite(dec) & (np.abs(np.nan_to_num(dec)) <= 90.0)
    index = np.full(len(ra), _NOWHERE, np.int64)
    if known.any():
        place = Longitude(ra[known], u.deg), Latitude(dec[known], u.deg)
        index[known] = lonlat_to_healpix(*place, _INDEX_ORDER).astype(np.int64)
    return index


def partition_orders(counts_P: np.ndarray, threshold: int) -> np.ndarray:
    """Return the order of the partition that each pixel of order 8 belongs to, int8 [P].

    A partition is the largest pixel with at most `threshold` rows; P = 12 · 4⁸.
    """
    orders = np.full(len(counts_P), FINEST, np.int8)
    open_P = np.ones(len(counts_P), bool)
    for order in range(FINEST):
        fits = counts_P.reshape(12 * 4**order, -1).sum(axis=1) <= threshold
        fits = np.repeat(fits, 4 ** (FINEST - order)) & open_P
        orders[fits], open_P[fits] = order, False
    return orders


def _counted(rows: _Rows) -> tuple[np.ndarray, int]:
    """Return the number of rows in every pixel of order 8, int64 [P], and of those without one."""

    def count(batch: Columns) -> Columns:
        found = np.zeros(12 * 4**FINEST + 1, np.int64)
        for table in rows.read(int(batch["id"][0]), positions_only=True):
            index = healpix(table["ra"].to_numpy(), table["dec"].to_numpy())
            fine = np.where(index < 0, len(found) - 1, index >> (2 * (_INDEX_ORDER - FINEST)))
            found += np.bincount(fine, minlength=len(found))
        pixel = np.flatnonzero(found)
        return {"pixel": pixel, "rows": found[pixel]}

    counts = np.zeros(12 * 4**FINEST + 1, np.int64)
    listing = ray.data.range(rows.tasks, override_num_blocks=rows.tasks)
    made = listing.map_batches(count, batch_size=1, batch_format="numpy")
    for batch in made.iter_batches(batch_size=None, batch_format="numpy"):
        np.add.at(counts, batch["pixel"], batch["rows"])
    return counts[:-1], int(counts[-1])


def _write_partitions(
    rows: _Rows, out: str, orders: np.ndarray, counts: np.ndarray
) -> list[dict[str, int]]:
    """Write every partition in the task where its rows meet; return order, pixel and rows."""
    kept = ray.put(orders)
    fine = np.flatnonzero(counts)
    deep = orders[fine].astype(np.int64)
    partitions = len(np.unique(np.stack([deep, fine >> (2 * (FINEST - deep))]), axis=1).T)

    def place(batch: Columns) -> Iterator[pa.Table]:
        for table in rows.read(int(batch["id"][0]), positions_only=False):
            index = healpix(table["ra"].to_numpy(), table["dec"].to_numpy())
            fine = np.maximum(index, 0) >> (2 * (_INDEX_ORDER - FINEST))
            order = np.where(index < 0, _NOWHERE, ray.get(kept)[fine].astype(np.int64))
            pixel = np.where(
                index < 0, _NOWHERE, index >> (2 * (_INDEX_ORDER - np.maximum(order, 0)))
            )
            for name, values in ((_INDEX, index), (_ORDER, order), (_PIXEL, pixel)):
                table = table.append_column(name, pa.array(values))
            yield table

    def write(group: pa.Table) -> pa.Table:
        order, pixel = group[_ORDER][0].as_py(), group[_PIXEL][0].as_py()
        target = places.join(out, partition_path(order, pixel))
        count = _write_sorted(rows, group.sort_by(_INDEX), target)
        return pa.table({"order": [order], "pixel": [pixel], "rows": [count]})

    listing = ray.data.range(rows.tasks, override_num_blocks=rows.tasks)
    placed = listing.map_batches(place, batch_size=1, batch_format="numpy")
    groups = placed.groupby([_ORDER, _PIXEL], num_partitions=max(2, partitions))
    return groups.map_groups(write, batch_format="pyarrow").take_all()


def partition_path(order: int, pixel: int) -> str:
    """Return where a partition lies below the catalogue's root."""
    if order == _NOWHERE:
        return WITHOUT_POSITION
    return f"dataset/Norder={order}/Dir={pixel // 10_000 * 10_000}/Npix={pixel}.parquet"


def _write_sorted(rows: _Rows, group: pa.Table, target: str) -> int:
    tables = rows.fetch(group)
    first = next(tables)
    with (
        places.write_stream(target) as file,
        pq.ParquetWriter(file, first.schema, compression="zstd") as writer,
    ):
        for table in itertools.chain([first], tables):
            writer.write_table(table, row_group_size=65_536)
    return group.num_rows


def _index_field() -> pa.Field:
    return pa.field(_INDEX, pa.int64(), metadata={"description": "HEALPix order 29, nested"})


@ray.remote(num_cpus=1)
def _write_metadata(out: str, pixels: list[tuple[int, int]]) -> None:
    """Write ``_metadata`` (all row groups) and ``_common_metadata`` (the schema)."""
    footers, schema = [], None
    for order, pixel in pixels:
        relative = partition_path(order, pixel)
        filesystem, path = places.resolve(places.join(out, relative))
        with pq.ParquetFile(path, filesystem=filesystem) as file:
            schema = schema or file.schema_arrow
            footer = file.metadata
        footer.set_file_path(relative.removeprefix("dataset/"))
        footers.append(footer)
    for name, collected in (("_metadata", footers), ("_common_metadata", None)):
        content = io.BytesIO()
        pq.write_metadata(schema, content, metadata_collector=collected)
        places.write_bytes(places.join(out, "dataset", name), content.getvalue())


def _write_properties(out: str, rows: int, pixels, threshold: int) -> None:
    sky = sum(1.0 / (12 * 4**order) for order, _ in pixels)
    size = sum(size for _, size in places.list_files(places.join(out, "dataset")))
    listed = "".join(f"{order},{pixel}\n" for order, pixel in pixels)
    places.write_bytes(places.join(out, "partition_info.csv"), f"Norder,Npix\n{listed}".encode())
    values = {
        "obs_collection": places.name(places.absolute(out)),
        "dataproduct_type": "object",
        "hats_nrows": rows,
        "hats_col_ra": "ra",
        "hats_col_dec": "dec",
        "hats_col_healpix": _INDEX,
        "hats_col_healpix_order": _INDEX_ORDER,
        "hats_npix_suffix": ".parquet",
        "hats_max_rows": threshold,
        "hats_order": max(order for order, _ in pixels),
        "hats_estsize": size // 1024,
        "moc_sky_fraction": f"{sky:.6g}",
        "hats_builder": f"skyray {skyray.__version__}",
        "hats_creation_date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%MUTC"),
        "hats_version": "v1.0",
    }
    text = "#HATS catalog\n" + "".join(f"{name}={value}\n" for name, value in values.items())
    for name in ("properties", "hats.properties"):
        places.write_bytes(places.join(out, name), text.encode())
