"""A dataset's rows as a family's transform gives them for training: made once, shared by all.

``prepare`` runs the transform over a dataset version as a Ray Data job: every task takes a block of
rows in the dataset's canonical order, transforms it and writes it as one data file; the driver
names the files in their order in one commit. The table's name says what decided its content, so
that workers, trials, seeds and rounds with the same transform find one table.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

import skyray
from skyray.data.dataset import Dataset, table_to_columns
from skyray.data.prepared_space import folder, keep_within_bound
from skyray.data.prepared_tables import PreparedTable, Written, publish, write_batches
from skyray.records import SPLITS
from skyray.runtime import places
from skyray.runtime.progress import task

if TYPE_CHECKING:
    from skyray.families.base import Columns, Family

BATCH_ROWS = 512  # of one call of a transform, whatever the machine: so results never differ
_BLOCK_BYTES, _SMALL_BYTES = 256 << 20, 256 << 20
_BLOCKS_PER_CPU = 4
KEY = "observation_id"
_SHARED_SOURCES = ("transforms", "records")


def prepare(
    dataset: Dataset, family: Family, *, progress: bool = True, on_ray: bool | None = None
) -> PreparedTable:
    """Return the prepared table of a dataset and a family, made unless it is there.

    The table holds what ``family.transform(columns, training=True)`` returns for every row, and
    ``observation_id`` and ``split``. Two that prepare the same at once may both compute; the first
    to finish gives the table to both. Nothing of one that was killed counts.

    Parameters
    ----------
    progress : bool
        Whether a progress bar is shown on stderr.
    on_ray : bool, optional
        Spread the work over the cluster (Ray must have been started), or do it in this process, as
        a task must that holds the CPUs the others would wait for. Default: spread what is larger
        than 256 MB; for less, starting workers takes longer than the work.

    Raises
    ------
    ValueError
        If the dataset holds no rows, or the transform does not return a row for each of its rows
        with the same columns in every batch.
    """
    table = PreparedTable(prepared_place(dataset, family))
    if table.exists():
        table.touch()
        return table
    rows = {split: np.asarray(dataset.rows(split), dtype=np.int64) for split in SPLITS}
    order = np.concatenate(list(rows.values()))
    if len(order) == 0:
        raise ValueError(f"{dataset.uri}: the dataset holds no rows; nothing to prepare")
    if on_ray is None:
        on_ray = dataset.size_bytes() > _SMALL_BYTES
    work = _Work(dataset, family, table.uri)
    size = _block_rows(dataset, len(order), _cpus() if on_ray else 1)
    blocks = [order[start : start + size] for start in range(0, len(order), size)]
    made = _spread(work, blocks) if on_ray else enumerate(map(work.write, blocks))
    parts: dict[int, Written] = {}
    with task("prepare", len(order), "row", show=progress) as shown:
        shown.wait("the first rows")
        for block, written in made:
            parts[block] = written
            shown.advance(written.rows)
    splits, stop = {}, 0
    for split, found in rows.items():
        splits[split] = [stop, stop := stop + len(found)]
    about = {
        "recipe": f"{family.recipe.family}/{family.recipe.name}",
        "card": family.data.card,
        "data": dataset.uri,
        "fingerprint": dataset.manifest.fingerprint,
        "version": dataset.version,
        "splits": splits,
    }
    publish(table.uri, [parts[block] for block in range(len(blocks))], about)
    keep_within_bound()
    return table


def prepared_place(dataset: Dataset, family: Family) -> str:
    """Return where the prepared table of a dataset and a family lies."""
    manifest = dataset.manifest
    data = f"{manifest.fingerprint[:16]}-{manifest.splits_digest[:8]}-{dataset.version}"
    name = f"{data}-{transform_digest(family)}"
    return places.join(folder(), f"{name}.lance")


def transform_digest(family: Family) -> str:
    """Return 16 hex digits of all that decides what a family's transform makes of a row.

    That is the family's name and settings (`Family.transform_settings`), the columns it asks for,
    and the sources of transforms, records and of the family's own folder.
    """
    told = {
        "family": family.name,
        "settings": family.transform_settings(),
        "columns": family.columns(training=True),
        "sources": sources_digest(type(family), _SHARED_SOURCES),
    }
    text = json.dumps(told, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sources_digest(family: type[Family], rooms: Iterable[str]) -> str:
    """Return a digest of the sources of skyray's `rooms` and of a family's folder.

    Of a family that derives from another, the other's folder counts too.
    """
    root = Path(skyray.__file__).parent
    folders = [root / room for room in rooms]
    for kind in family.__mro__:
        if kind.__module__ not in ("builtins", "abc", "skyray.families.base"):
            folders.append(Path(inspect.getfile(kind)).parent)
    digest = hashlib.sha256()
    for place in dict.fromkeys(folders):
        for path in sorted(place.rglob("*.py")):
            name = path.relative_to(place).as_posix().encode()
            digest.update(name + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@dataclass(frozen=True)
class _Work:
    """Reads, transforms and writes blocks of rows; on any worker."""

    dataset: Dataset
    family: Family
    uri: str

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Run one block as a Ray Data map: its number and row ids in, what it wrote out."""
        written = self.write(np.frombuffer(batch["rows"][0], dtype=np.int64))
        told = json.dumps({"fragments": written.fragments, "rows": written.rows})
        schema = written.schema.serialize().to_pybytes()
        return {"block": batch["block"], "written": [told], "schema": [schema]}

    def write(self, rows: np.ndarray) -> Written:
        return write_batches(self.uri, lambda: self._batches(rows), len(rows))

    def _batches(self, rows: np.ndarray) -> Iterator[Columns]:
        wanted = self.family.columns(training=True)
        names = list(dict.fromkeys([KEY, "split", *wanted]))
        for start in range(0, len(rows), BATCH_ROWS):
            columns = table_to_columns(self.dataset.take(rows[start : start + BATCH_ROWS], names))
            made = self.family.transform({n: columns[n] for n in wanted}, training=True)
            for name, values in made.items():
                if name in (KEY, "split") or len(values) != len(columns[KEY]):
                    raise ValueError(
                        f"family {self.family.name!r}: transform: {name!r}: expected a column of "
                        f"its own with a row for each of {len(columns[KEY])}, found {len(values)}"
                    )
            yield {KEY: columns[KEY], "split": columns["split"], **made}


def _spread(work: _Work, blocks: list[np.ndarray]) -> Iterator[tuple[int, Written]]:
    """Run the blocks as a Ray Data job; yield (block, what was written) as they end."""
    import ray.data

    items = [{"block": number, "rows": rows.tobytes()} for number, rows in enumerate(blocks)]
    job = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        work, batch_size=1, batch_format="numpy"
    )
    for row in job.iter_rows():
        schema = pa.ipc.read_schema(pa.py_buffer(row["schema"]))
        yield int(row["block"]), Written(schema, **json.loads(row["written"]))


def _cpus() -> int:
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _block_rows(dataset: Dataset, rows: int, cpus: int) -> int:
    """Return the rows of a data file: whole batches, bounded in bytes, some for every CPU."""
    by_size = _BLOCK_BYTES * rows // max(dataset.size_bytes(), 1)
    by_cpu = -(-rows // (_BLOCKS_PER_CPU * cpus))
    return max(1, min(by_size, by_cpu) // BATCH_ROWS) * BATCH_ROWS
