"""A dataset: what ``ingest`` writes from a card, and how everything downstream reads it.

Layout::

    DATASET/records.lance       the rows, one an observation; holds the manifest of every version
    DATASET/quarantine.lance    what could not be used: source, observation_id, reason, detail

Both are Lance tables that any number of ingests may append to. Readers see published versions
only: a version is a snapshot that nothing changes, however the dataset grows meanwhile.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from skyray.cards import Card
from skyray.config import Config, ConfigError
from skyray.data.outcomes import HIDDEN_COLUMNS, REFUSAL_FIELDS
from skyray.data.tables import open_table, quoted, table_exists
from skyray.records import SCHEMA_VERSION, SPLITS, Grid, describe_schema, tensor_values
from skyray.runtime import places

if TYPE_CHECKING:
    import lance
    import ray.data

    from skyray.families.base import DataInfo

RECORDS, QUARANTINE = "records.lance", "quarantine.lance"
MANIFEST_KEY = "skyray.manifest"
_FORMER_MANIFEST = "manifest.json"
_NAMES_AT_ONCE = 2000


class NotADataset(ValueError):
    """There is no dataset at a place, or one this version cannot read."""


class Manifest(Config):
    """What a version of a dataset holds and where it came from.

    ``records_version`` and ``quarantine_version`` are those of the Lance tables.
    ``rows_unfinished`` are rows of files that another ingest has begun and not yet written.
    ``statements``: what was decided about the values and from which statement → rows written.
    ``fingerprint`` names what was observed, however it came in; ``splits_digest`` which of it is in
    which split, which for objects at the edge of one another's radius depends on who came first.
    """

    schema_version: int
    version: int
    records_version: int
    quarantine_version: int
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
    rows_unfinished: int
    quarantine_reasons: dict[str, int]
    statements: dict[str, dict[str, int]]
    files_read: int
    files_unclaimed: int
    fingerprint: str
    splits_digest: str


def version_tag(version: int) -> str:
    """Return the Lance tag that keeps a published version."""
    return f"v{version}"


def read_manifest(table: lance.LanceDataset) -> Manifest | None:
    """Return the newest manifest that a version of the table of records knows, if there is one.

    Raises
    ------
    NotADataset
        If it is of another schema version or not valid.
    """
    text = table.config().get(MANIFEST_KEY)
    if text is None:
        return None
    content = json.loads(text)
    found = content.get("schema_version") if isinstance(content, dict) else None
    if found != SCHEMA_VERSION:
        raise NotADataset(
            f"{table.uri}: schema_version: expected {SCHEMA_VERSION}, found {found!r}; "
            "ingest the survey files again with this version"
        )
    try:
        return Manifest.load(content)
    except ConfigError as error:
        raise NotADataset(f"{table.uri}: {error}") from None


def refuse_former(uri: str) -> None:
    """Raise `NotADataset` where a dataset of the former layout lies."""
    if places.exists(places.join(uri, _FORMER_MANIFEST)):
        raise NotADataset(
            f"{uri}: a dataset of the former layout (Parquet parts); ingest the survey files "
            "again into a new place: skyray ingest CARD FILES --out DATASET"
        )


class Dataset:
    """A published version of a dataset; `Dataset.open` is the way to get one."""

    def __init__(self, uri: str, manifest: Manifest):
        self.uri = uri
        self.manifest = manifest

    def __getstate__(self):
        return {"uri": self.uri, "manifest": self.manifest}  # tables are opened where they are read

    @classmethod
    def open(cls, uri: str | os.PathLike, version: int | None = None) -> Dataset:
        """Open a dataset by local path or URI, at its newest or at a given version.

        Raises
        ------
        NotADataset
            If none is there, no ingest into it was finished, it has no such version, or its
            schema version is not this version's.
        """
        uri = places.absolute(uri)
        if not cls.started(uri):
            refuse_former(uri)
            raise NotADataset(f"{uri}: not a dataset: no {RECORDS}")
        records = places.join(uri, RECORDS)
        manifest = read_manifest(open_table(records))
        if manifest is None:
            raise NotADataset(
                f"{uri}: not yet a dataset: its ingest was not finished; run it again"
            )
        if version in (None, manifest.version):
            return cls(uri, manifest)
        tags = _published_tags(open_table(records))
        if version not in tags:
            raise NotADataset(f"{uri}: no version {version}; it has {sorted(tags)}")
        return cls(uri, read_manifest(open_table(records, tags[version])))

    @staticmethod
    def started(uri: str | os.PathLike) -> bool:
        """Return whether an ingest has begun there (of which nothing need be published)."""
        return table_exists(places.join(uri, RECORDS))

    @classmethod
    def exists(cls, uri: str | os.PathLike) -> bool:
        """Return whether a published dataset is there."""
        try:
            return bool(cls.open(uri))
        except NotADataset:
            return False

    @property
    def version(self) -> int:
        """The number of this version: 1 for the first that was published."""
        return self.manifest.version

    def versions(self) -> list[Manifest]:
        """Return the manifests of all versions that are kept, oldest first."""
        place = places.join(self.uri, RECORDS)
        tags = _published_tags(open_table(place))
        found = {n: read_manifest(open_table(place, tag)) for n, tag in sorted(tags.items())}
        return list((found | {self.version: self.manifest}).values())

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
            version=manifest.version,
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
    def table(self) -> lance.LanceDataset:
        """The Lance table of this version, opened in this process."""
        return open_table(places.join(self.uri, RECORDS), self.manifest.records_version)

    @cached_property
    def schema(self) -> pa.Schema:
        """The Arrow schema of the rows."""
        shown = [field for field in self.table.schema if field.name not in HIDDEN_COLUMNS]
        return pa.schema(shown, metadata=self.table.schema.metadata)

    def iter_tables(
        self, columns: Sequence[str] | None = None, split: str | None = None, rows: int = 1024
    ) -> Iterator[pa.Table]:
        """Yield tables of at most `rows` rows, in the order they were written, without Ray.

        Parameters
        ----------
        columns : sequence of str, optional
            Names of columns; default all.
        split : str, optional
            ``train``, ``validation`` or ``test``; default all.
        """
        scanner = self.table.scanner(
            columns=self._columns(columns), filter=_in_split(split), batch_size=rows,
            batch_readahead=2, fragment_readahead=2,
        )  # fmt: skip
        for batch in scanner.to_batches():
            if batch.num_rows:
                yield pa.Table.from_batches([batch])

    def to_table(self, columns: Sequence[str] | None = None, split: str | None = None) -> pa.Table:
        """Return the rows as one table, in the order they were written, without Ray."""
        return self.table.to_table(columns=self._columns(columns), filter=_in_split(split))

    def to_ray(
        self, columns: Sequence[str] | None = None, split: str | None = None
    ) -> ray.data.Dataset:
        """Return the rows as a Ray dataset that streams from the table, in no promised order.

        Tensor columns arrive in numpy batches as arrays [N, ...] of their own dtype. Ray must have
        been started.
        """
        import ray.data

        names = self._columns(columns)
        if not self.count(split):
            return ray.data.from_arrow(self.to_table(names, split))
        return ray.data.read_lance(
            places.lance_uri(places.join(self.uri, RECORDS)),
            version=self.manifest.records_version, columns=names,
            storage_options=places.lance_options(self.uri),
            scanner_options={"filter": _in_split(split), "batch_size": 512},
        )  # fmt: skip

    def rows(self, split: str | None = None) -> np.ndarray:
        """Return the row numbers of this version, int64, sorted by ``observation_id``.

        An order that does not depend on how the ingest dealt its files out: equal data in two
        datasets come in the same order.
        """
        _check_split(split)
        found = self.table.to_table(columns=["observation_id", "split"])
        order = pc.sort_indices(found["observation_id"]).to_numpy().astype(np.int64)
        if split is None:
            return order
        return order[pc.equal(found["split"], split).to_numpy()[order]]

    def take(self, rows: Sequence[int], columns: Sequence[str] | None = None) -> pa.Table:
        """Return rows by their numbers (`rows`), in the order asked for."""
        numbers, places_of = np.unique(np.asarray(rows, np.int64), return_inverse=True)
        found = self.table.take(numbers.tolist(), columns=self._columns(columns))
        return found.take(pa.array(places_of))

    def find(
        self,
        names: Sequence[str],
        columns: Sequence[str] | None = None,
        key: str = "observation_id",
    ) -> pa.Table:
        """Return the rows of these names in no promised order; unknown names have none.

        Only the names are searched: pixels of other rows are not read.
        """
        wanted, kept = sorted(set(map(str, names))), self._columns(columns)
        kept = list(dict.fromkeys([key, *kept]))
        pieces = [
            self.table.to_table(columns=kept, filter=f"{key} IN ({quoted(wanted[i : i + step])})")
            for step in (_NAMES_AT_ONCE,)
            for i in range(0, len(wanted), step)
        ]
        return pa.concat_tables(pieces) if pieces else self.table.schema.empty_table().select(kept)

    def quarantine(self, reason: str | None = None, limit: int | None = None) -> pa.Table:
        """Return what could not be used: source, observation_id, object_id, reason, detail."""
        place, shown = places.join(self.uri, QUARANTINE), [field.name for field in REFUSAL_FIELDS]
        only = None if reason is None else f"reason = {quoted([reason])}"
        found = open_table(place, self.manifest.quarantine_version).to_table(
            columns=shown, filter=only, limit=limit
        )
        return found.sort_by([("source", "ascending"), ("observation_id", "ascending")])

    def size_bytes(self) -> int:
        """Return the size of the data files of this version, bytes."""
        pieces = (f for part in self.table.get_fragments() for f in part.metadata.files)
        return sum(file.file_size_bytes or 0 for file in pieces)

    def _columns(self, columns: Sequence[str] | None) -> list[str]:
        if columns is None:
            return list(self.schema.names)
        unknown = [name for name in columns if name not in self.schema.names]
        if unknown:
            raise KeyError(f"{self.uri}: no columns {unknown}; it has {self.schema.names}")
        return list(columns)


def _published_tags(table: lance.LanceDataset) -> dict[int, str]:
    names = [name for name in table.tags.list() if name[:1] == "v" and name[1:].isdigit()]
    return {int(name[1:]): name for name in names}


def _in_split(split: str | None) -> str | None:
    _check_split(split)
    return None if split is None else f"split = '{split}'"


def _check_split(split: str | None) -> None:
    if split is not None and split not in SPLITS:
        raise KeyError(f"split {split!r}: unknown; expected one of {SPLITS}")


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
