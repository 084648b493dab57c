"""A dataset: what ``ingest`` writes from a card, and how everything downstream reads it.

Layout::

    DATASET/manifest.json        published last: a folder without it is not a dataset
    DATASET/parts/*.parquet      the rows; every row group holds one split only
    DATASET/quarantine.parquet   what could not be used: source, object_id, reason, detail
    DATASET/tasks/*.json         what each ingest task read and wrote (see `skyray.engine.ingest`)
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pyarrow import fs

from skyray.cards import Card
from skyray.config import Config, ConfigError
from skyray.engine import storage
from skyray.readers import foreign_arrow as pq
from skyray.records import SCHEMA_VERSION, SPLITS, Grid, describe_schema, tensor_values

if TYPE_CHECKING:
    import ray.data

    from skyray.families.base import DataInfo

MANIFEST = "manifest.json"
QUARANTINE = "quarantine.parquet"

QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("object_id", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ]
)


class NotADataset(ValueError):
    """There is no dataset at a place, or one this version cannot read."""


class Part(Config):
    """One Parquet file of a dataset.

    `path` is relative to the dataset, `content_digest` the sum of its rows' digests (see
    `skyray.engine.ingest`), `counts` the rows by split and label.
    """

    path: str
    rows: int
    content_digest: str
    counts: dict[str, dict[str, int]]


class Manifest(Config):
    """What a dataset holds and where it came from."""

    schema_version: int
    skyray_version: str
    git_commit: str
    created: str
    card: dict[str, Any]
    record: str
    grid: dict[str, Any] | None
    classes: list[str]
    counts: dict[str, dict[str, int]]
    apply_cuts: bool
    rows_read: int
    rows_written: int
    rows_quarantined: int
    quarantine_reasons: dict[str, int]
    files_read: int
    files_unclaimed: int
    fingerprint: str
    parts: list[Part]


class Dataset:
    """A published dataset; `Dataset.open` is the way to get one."""

    def __init__(self, uri: str, manifest: Manifest):
        self.uri = uri
        self.manifest = manifest

    @classmethod
    def open(cls, uri: str | os.PathLike) -> Dataset:
        """Open a dataset by local path or URI.

        Raises
        ------
        NotADataset
            If no manifest is there, or its schema version is not this version's.
        """
        uri = os.fspath(uri)
        place = storage.join(uri, MANIFEST)
        if not storage.exists(place):
            raise NotADataset(f"{uri}: not a dataset: no {MANIFEST} (was its ingest finished?)")
        content = storage.read_json(place)
        found = content.get("schema_version") if isinstance(content, dict) else None
        if found != SCHEMA_VERSION:
            raise NotADataset(
                f"{place}: schema_version: expected {SCHEMA_VERSION}, found {found!r}; "
                "ingest the survey files again with this version"
            )
        try:
            return cls(uri, Manifest.load(content))
        except ConfigError as error:
            raise NotADataset(f"{place}: {error}") from None

    @cached_property
    def card(self) -> Card:
        """The card as it was when the dataset was ingested."""
        return Card.load(self.manifest.card)

    @property
    def grid(self) -> Grid | None:
        return Grid(**self.manifest.grid) if self.manifest.grid else None

    def info(self) -> DataInfo:
        """Return what a family needs to know about the data."""
        from skyray.families.base import DataInfo  # brings torch, which ingest workers do not need

        manifest = self.manifest
        return DataInfo(
            card=self.card.name,
            record=manifest.record,
            classes=tuple(manifest.classes),
            coarse=dict(self.card.coarse),
            fingerprint=manifest.fingerprint,
            grid=self.grid,
            counts=manifest.counts,
            min_good_pixels=self.card.min_good_pixels,
            bands=tuple(self.card.bands or ()),
            image_size=self.card.image_size,
            image_fit=self.card.image_fit,
            pixel_scale_arcsec=self.card.pixel_scale_arcsec,
            features=tuple(describe_schema(self.schema).get("features", ())),
        )

    def count(self, split: str | None = None) -> int:
        """Return the number of rows, of one split or of all."""
        _check_split(split)
        wanted = SPLITS if split is None else (split,)
        return sum(sum(self.manifest.counts.get(name, {}).values()) for name in wanted)

    @cached_property
    def schema(self) -> pa.Schema:
        """The Arrow schema of the rows (read from the first part)."""
        if not self.manifest.parts:
            raise NotADataset(f"{self.uri}: the dataset holds no rows")
        filesystem, path = storage.resolve(storage.join(self.uri, self.manifest.parts[0].path))
        return pq.read_schema(path, filesystem=filesystem)

    def iter_tables(
        self, columns: Sequence[str] | None = None, split: str | None = None, rows: int = 1024
    ) -> Iterator[pa.Table]:
        """Yield tables of at most `rows` rows, in the dataset's order, without Ray.

        Parameters
        ----------
        columns : sequence of str, optional
            Names of columns; default all.
        split : str, optional
            ``train``, ``validation`` or ``test``; default all.
        """
        names = self._columns(columns)
        for part in self._parts(split):
            for table in read_part(storage.join(self.uri, part.path), names, split):
                for start in range(0, table.num_rows, rows):
                    yield table.slice(start, rows)

    def to_table(self, columns: Sequence[str] | None = None, split: str | None = None) -> pa.Table:
        """Return the rows as one table, in the dataset's order, without Ray."""
        names = self._columns(columns)
        tables = list(self.iter_tables(names, split))
        if tables:
            return pa.concat_tables(tables)
        return pa.schema([self.schema.field(name) for name in names]).empty_table()

    def to_ray(
        self, columns: Sequence[str] | None = None, split: str | None = None
    ) -> ray.data.Dataset:
        """Return the rows as a Ray dataset, streamed part by part, in the dataset's order.

        Tensor columns arrive in numpy batches as arrays [N, ...] of their own dtype. Ray must have
        been started.
        """
        import ray.data

        names = self._columns(columns)
        parts = [{"uri": storage.join(self.uri, part.path)} for part in self._parts(split)]
        if not parts:
            return ray.data.from_arrow(self.to_table(names, split))

        def read(row: dict[str, Any]) -> Iterator[pa.Table]:
            yield from read_part(str(row["uri"][0]), names, split)

        listing = ray.data.from_items(parts, override_num_blocks=len(parts))
        listing.context.execution_options.preserve_order = True
        return listing.map_batches(read, batch_size=1, batch_format="numpy")

    def quarantine(self) -> pa.Table:
        """Return what could not be used: source, object_id, reason, detail."""
        place = storage.join(self.uri, QUARANTINE)
        if not storage.exists(place):
            return QUARANTINE_SCHEMA.empty_table()
        filesystem, path = storage.resolve(place)
        return pq.read_table(path, filesystem=filesystem)

    def size_bytes(self) -> int:
        """Return the size of all parts, bytes."""
        filesystem, root = storage.resolve(self.uri)
        paths = [storage.join(root, part.path) for part in self.manifest.parts]
        return sum(info.size or 0 for info in filesystem.get_file_info(paths)) if paths else 0

    def _columns(self, columns: Sequence[str] | None) -> list[str]:
        if columns is None:
            return list(self.schema.names)
        unknown = [name for name in columns if name not in self.schema.names]
        if unknown:
            raise KeyError(f"{self.uri}: no columns {unknown}; it has {self.schema.names}")
        return list(columns)

    def _parts(self, split: str | None) -> list[Part]:
        _check_split(split)
        return [p for p in self.manifest.parts if split is None or p.counts.get(split)]


def _check_split(split: str | None) -> None:
    if split is not None and split not in SPLITS:
        raise KeyError(f"split {split!r}: unknown; expected one of {SPLITS}")


def read_part(uri: str, columns: Sequence[str], split: str | None = None) -> Iterator[pa.Table]:
    """Yield the row groups of one part, only those of `split` where one is given.

    A row group holds one split only, so that a split is read without touching the others' pixels.
    """
    filesystem, path = storage.resolve(uri)
    buffered = not isinstance(filesystem, fs.LocalFileSystem)
    with pq.ParquetFile(path, filesystem=filesystem, pre_buffer=buffered) as part:
        position = part.schema_arrow.names.index("split")
        # A tensor column counts as one leaf, like every other column of the schemas but `history`,
        # which comes after `split`: the position of a field is the position of its statistics.
        for group in range(part.num_row_groups):
            statistics = part.metadata.row_group(group).column(position).statistics
            if split is None or statistics.min == statistics.max == split:
                yield part.read_row_group(group, columns=list(columns), use_threads=False)


def table_to_columns(table: pa.Table) -> dict[str, np.ndarray]:
    """Return an Arrow table as numpy columns; tensor columns as arrays [N, ...]."""
    columns = {}
    for name in table.column_names:
        column = table.column(name)
        if isinstance(column.type, pa.BaseExtensionType):
            columns[name] = tensor_values(column)
        else:
            columns[name] = column.to_numpy(zero_copy_only=False)
    return columns
