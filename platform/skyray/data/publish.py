"""From committed rows to a published version: a manifest that counts them and gives them a sum.

The manifest is an entry in the table of records, set by a commit that only one of several
publishers can win; the others look again and publish what then is there.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import skyray
from skyray.config import ConfigError
from skyray.data.dataset import (
    MANIFEST_KEY,
    QUARANTINE,
    RECORDS,
    Dataset,
    Manifest,
    read_manifest,
    refuse_former,
    version_tag,
)
from skyray.data.outcomes import DIGEST, INGEST_COLUMNS, QUARANTINE_SCHEMA, Job, records_schema
from skyray.data.settle import Tables, claim, drop_superseded, settle
from skyray.data.tables import create_table, fragment_rows, open_table
from skyray.records import SCHEMA_VERSION, SPLITS, StatementCount
from skyray.runtime import places
from skyray.runtime.provenance import git_commit

_JOB_KEY = b"skyray_job"
_ATTEMPTS = 30
_PATIENCE_S = 10.0  # with files that another ingest has begun
_LIMBS = 8  # of 32 bits in a digest
_COUNTED = [*INGEST_COLUMNS, "split", "label", "statements", DIGEST.name]


class RowsLost(RuntimeError):
    """Rows read are not rows written plus rows quarantined; nothing was published."""


# the tables of an ingest ---------------------------------------------------------------------


def open_job(job: Job) -> None:
    """Check that what lies at the job's place, if anything, was made by the same job.

    Raises
    ------
    ConfigError
        If it was made with another card or other cuts.
    NotADataset
        If a dataset of the former layout lies there.
    """
    if not Dataset.started(job.out):
        refuse_former(job.out)
        return
    metadata = open_table(places.join(job.out, RECORDS)).schema.metadata or {}
    found = json.loads(metadata.get(_JOB_KEY, b"{}"))
    if found.get("key") != job.key:
        raise ConfigError(
            f"{job.out}: was ingested from card {found.get('card')!r} ({found.get('digest')}, "
            f"apply_cuts={found.get('apply_cuts')}); found card {job.card.name!r} "
            f"({job.card.digest()}, apply_cuts={job.apply_cuts}). Name another dataset with --out"
        )


def create_dataset(job: Job) -> None:
    """Make the tables of a dataset unless they are there."""
    about = {
        "key": job.key, "card": job.card.name, "digest": job.card.digest(),
        "apply_cuts": job.apply_cuts,
    }  # fmt: skip
    schema = records_schema(job.card)
    stamped = schema.with_metadata({**schema.metadata, _JOB_KEY: json.dumps(about).encode()})
    create_table(places.join(job.out, QUARANTINE), QUARANTINE_SCHEMA)
    if not create_table(places.join(job.out, RECORDS), stamped):
        open_job(job)  # another ingest was first: it must be of the same card


# publishing ----------------------------------------------------------------------------------


def publish(
    job: Job,
    unclaimed: int = 0,
    changed: Mapping[str, str] | None = None,
    read_again: Callable[[list[str]], None] | None = None,
) -> Dataset:
    """Settle what came twice, count, and publish a new version unless nothing is new.

    Parameters
    ----------
    unclaimed : int
        Files that were seen and are not the card's.
    changed : mapping
        Files that were read again since they have changed, and their stamps now.
    read_again : callable
        Reads files into the tables once more: of an observation seen twice, the record that was
        kept may be gone.

    Raises
    ------
    RowsLost
        If other ingests publish without end.
    """
    drop_superseded(job.out, changed or {})
    deadline = time.monotonic() + _PATIENCE_S
    reread: list[str] = []
    for attempt in range(_ATTEMPTS):
        tables, stranded = settle(job)
        if read_again and not set(stranded) <= set(reread):
            reread = stranded
            read_again(reread)
            continue
        before = read_manifest(tables.records)
        if before is not None:
            _keep(tables, before)
            if _same(before, tables):
                return Dataset(job.out, before)
        census = Census(tables.records, tables.quarantine)
        if census.unfinished and time.monotonic() < deadline:
            time.sleep(0.2)
            continue
        manifest = census.manifest(job, before.version + 1 if before else 1, unclaimed)
        if published := _commit(tables, manifest):
            _keep(published, manifest)
            return Dataset(job.out, manifest)
        time.sleep(0.05 * (1 + attempt))
    raise RowsLost(f"{job.out}: others published {_ATTEMPTS} times meanwhile; run it again")


def _commit(tables: Tables, manifest: Manifest) -> Tables | None:
    """Set the manifest unless another one has been set since the tables were opened.

    Returns the tables with it, or None.
    """
    text = json.dumps(manifest.snapshot(), sort_keys=True)
    if claim(tables.records, **{MANIFEST_KEY: text}):
        return tables
    latest = Tables.open(tables.out)  # of a commit whose answer was lost, it holds what was set
    return latest if latest.records.config().get(MANIFEST_KEY) == text else None


def _same(before: Manifest, tables: Tables) -> bool:
    """Return whether nothing was added or removed since a version was published."""
    records = open_table(tables.records_place, before.records_version)
    refused = open_table(tables.quarantine_place, before.quarantine_version)
    return (_state(records), _state(refused)) == (
        _state(tables.records), _state(tables.quarantine),
    )  # fmt: skip


def _state(table: lance.LanceDataset) -> list[tuple[int, int]]:
    return [(f.fragment_id, f.count_rows()) for f in table.get_fragments()]


def _keep(tables: Tables, manifest: Manifest) -> None:
    """Tag what a published version needs, so that no vacuum takes it while it is kept.

    The table of records may be at any version that has this manifest.
    """
    tag, records, refused = version_tag(manifest.version), tables.records, tables.quarantine
    wanted = [
        (records, tag, records.version), (records, f"{tag}-rows", manifest.records_version),
        (refused, tag, manifest.quarantine_version),
    ]  # fmt: skip
    for table, name, version in wanted:
        if name not in table.tags.list():
            try:
                table.tags.create(name, version)
            except (OSError, ValueError):  # another publisher kept it
                if name not in table.tags.list():
                    raise


# counting ------------------------------------------------------------------------------------


class Census:
    """What two tables hold together, summed fragment by fragment."""

    def __init__(self, records: lance.LanceDataset, refused: lance.LanceDataset):
        self.records_version, self.quarantine_version = records.version, refused.version
        self.counts: dict[str, Counter] = {split: Counter() for split in SPLITS}
        self.reasons: Counter = Counter()
        self.statements = StatementCount()
        self.written = self.files = 0
        self._sums = {split: np.zeros(_LIMBS, dtype=object) for split in SPLITS}
        self._open: dict[tuple, list[int]] = defaultdict(lambda: [0, 0])
        for part in fragment_rows(records, _COUNTED):
            self._add_records(part)
        for part in fragment_rows(refused, [*INGEST_COLUMNS, "reason"]):
            self.reasons.update(part["reason"].to_pylist())
            self._add_units(part)

    @property
    def unfinished(self) -> int:
        """Rows of units that are not whole."""
        return sum(rows - count for count, rows in self._open.values())

    @property
    def digest(self) -> int:
        """The sum of all rows' digests modulo 2²⁵⁶: it knows no order and no partition."""
        return sum(self.split_digests) % (1 << 256)

    @property
    def split_digests(self) -> list[int]:
        """The sums of the rows' digests, a split each."""
        return [
            sum(int(limb) << (32 * (_LIMBS - 1 - i)) for i, limb in enumerate(limbs)) % (1 << 256)
            for limbs in self._sums.values()
        ]

    def _add_records(self, part: pa.Table) -> None:
        self.written += part.num_rows
        pairs = part.group_by(["split", "label"]).aggregate([([], "count_all")]).to_pylist()
        for row in pairs:
            self.counts[row["split"]][row["label"]] += row["count_all"]
        for row in part.group_by("statements").aggregate([([], "count_all")]).to_pylist():
            self.statements.add(row["statements"], row["count_all"])
        for split, sums in self._sums.items():
            digests = part.filter(pc.field("split") == split)[DIGEST.name].combine_chunks()
            start = digests.offset * 32
            words = np.frombuffer(digests.buffers()[1], ">u4", len(digests) * _LIMBS, start)
            sums += words.reshape(-1, _LIMBS).sum(axis=0, dtype=np.uint64).astype(object)
        self._add_units(part)

    def _add_units(self, part: pa.Table) -> None:
        """Count outcomes by unit; only those that are not whole are kept."""
        unit = ["ingest_file", "ingest_stamp", "ingest_unit"]
        found = part.group_by([*unit, "ingest_rows"]).aggregate([([], "count_all")])
        for row in found.filter(pc.field("count_all") != pc.field("ingest_rows")).to_pylist():
            key = tuple(row[name] for name in unit)
            self._open[key][0] += row["count_all"]
            self._open[key][1] = row["ingest_rows"]
            if self._open[key][0] == row["ingest_rows"]:
                del self._open[key]
        first = (pc.field("ingest_unit") == 0) & (pc.field("ingest_row") == 0)
        self.files += part.filter(first).num_rows

    def manifest(self, job: Job, version: int, unclaimed: int) -> Manifest:
        quarantined = self.reasons.total()
        card = job.card
        text = f"{SCHEMA_VERSION}:{card.digest()}:{self.digest:064x}"
        return Manifest(
            schema_version=SCHEMA_VERSION,
            version=version,
            records_version=self.records_version,
            quarantine_version=self.quarantine_version,
            skyray_version=skyray.__version__,
            git_commit=git_commit(),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            card=card.snapshot(),
            record=card.record,
            grid=card.grid.snapshot() if card.grid else None,
            classes=card.classes,
            counts={split: dict(sorted(counts.items())) for split, counts in self.counts.items()},
            apply_cuts=job.apply_cuts,
            rows_read=self.written + quarantined + self.unfinished,
            rows_written=self.written,
            rows_quarantined=quarantined,
            rows_unfinished=self.unfinished,
            quarantine_reasons=dict(sorted(self.reasons.items())),
            statements=self.statements.snapshot(),
            files_read=self.files,
            files_unclaimed=unclaimed,
            fingerprint=hashlib.sha256(text.encode()).hexdigest(),
            splits_digest=hashlib.sha256(str(self.split_digests).encode()).hexdigest()[:16],
        )
