"""Datasets made of other datasets' rows, not of survey files: labels of a model, selections."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa

from skyray.cards import Card
from skyray.data.dataset import RECORDS, Dataset
from skyray.data.outcomes import Job, records_schema, row_digest, table_of
from skyray.data.publish import create_dataset, open_job, publish
from skyray.data.sources import Unit
from skyray.data.tables import commit_append, delete_rows, write_fragments
from skyray.records import tensor_values
from skyray.runtime import places

if TYPE_CHECKING:
    import ray.data


class _NoSource:
    """Rows that were never read from files cannot be read again."""

    bounds = None

    def starts(self) -> list[str]:
        return []

    def only(self, files) -> _NoSource:
        return self

    def units(self, start: str) -> Iterator[Unit]:
        return iter(())

    def read(self, unit: Unit) -> Iterator[None]:
        return iter(())


def derived_job(card: Card, out: str) -> Job:
    """Return the job of a dataset that is written row by row with `append_rows`."""
    return Job(card, _NoSource(), places.absolute(out), apply_cuts=True, keys_final=True)


def append_rows(job: Job, rows: pa.Table) -> list[str]:
    """Write rows of a dataset's schema as data files; return what `derive` commits."""
    tensors = {
        f.name: tensor_values(rows[f.name])
        for f in rows.schema
        if isinstance(f.type, pa.FixedShapeTensorType)
    }
    plain = rows.select([name for name in rows.column_names if name not in tensors]).to_pylist()
    records = []
    for number, row in enumerate(plain):
        row |= {name: values[number] for name, values in tensors.items()}
        origin = {
            "ingest_file": f"rows:{row['observation_id']}", "ingest_stamp": "", "ingest_unit": 0,
            "ingest_row": 0, "ingest_rows": 1,
        }  # fmt: skip
        records.append({**row, **origin, "digest": row_digest(row)})
    table = table_of(records, records_schema(job.card))
    return write_fragments(places.join(job.out, RECORDS), table)


def derive(card: Card, rows: ray.data.Dataset, out: str) -> Dataset:
    """Write rows (Arrow blocks with all columns of the card's schema) as a new dataset.

    Workers write, the driver commits once: a dataset that is there is whole. Ray must have been
    started.

    Raises
    ------
    ConfigError
        If a dataset of another card lies at `out`.
    """
    job = derived_job(card, out)
    open_job(job)
    if Dataset.exists(job.out):
        return Dataset.open(job.out)
    _forget(job)

    def write(block: pa.Table) -> pa.Table:
        return pa.table({"fragments": pa.array(append_rows(job, block), pa.string())})

    made = rows.map_batches(write, batch_format="pyarrow", batch_size=2048, num_cpus=0.5)
    return commit_rows(job, [row["fragments"] for row in made.iter_rows()])


def commit_rows(job: Job, fragments: list[str]) -> Dataset:
    """Make written rows a dataset and publish it."""
    create_dataset(job)
    commit_append(places.join(job.out, RECORDS), fragments)
    return publish(job)


def _forget(job: Job) -> None:
    """Delete the rows of an earlier attempt that was not published."""
    if Dataset.started(job.out):
        delete_rows(places.join(job.out, RECORDS), "true")
