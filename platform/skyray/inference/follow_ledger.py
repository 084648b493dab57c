"""What a followed stream has given so far, so that nothing is written twice and nothing is lost."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
from pyarrow.parquet import write_table

from skyray.data.outcomes import REFUSAL_FIELDS
from skyray.data.settle import CONFLICT
from skyray.readers import foreign_arrow
from skyray.runtime import places

SCORED, REFUSED = "scored", "refused"
DIGEST = "digest"
REFUSED_SCHEMA = pa.schema(
    [
        *REFUSAL_FIELDS,
        pa.field(DIGEST, pa.string(), nullable=False),  # of the delivery
        pa.field("content", pa.binary()),  # the delivery itself, where it cannot be had again
    ]
)


@dataclass(frozen=True)
class FollowResult:
    """What was done in this call; `repeated` deliveries were known already."""

    out: str
    scored: int
    refused: int
    repeated: int

    def plus(self, other: FollowResult) -> FollowResult:
        return replace(
            self, scored=self.scored + other.scored, refused=self.refused + other.refused,
            repeated=self.repeated + other.repeated,
        )  # fmt: skip


class Ledger:
    """Both tables of a stream's output.

    An observation that comes again as it was is `repeated`; with another content it is refused
    (``conflicting_observation``). A refusal is repeated when the same bytes come from the same
    place: a topic that was made anew counts its messages from 0 again.
    """

    def __init__(self, out: str):
        self.out = out
        self.scored: dict[str, str] = {}  # observation → digest
        self.refused: set[tuple[str, str]] = set()  # source, digest of the delivery
        self.sources: set[str] = set()
        self._files: set[str] = set()
        self.refresh()

    def refresh(self) -> None:
        """Read what others have written since: the next member of a group goes on from there."""
        for row in self._rows(SCORED, "observation_id", DIGEST, "source"):
            self.scored.setdefault(row["observation_id"], row[DIGEST])
            self.sources.add(row["source"])
        self.refused.update(
            (row["source"], row[DIGEST]) for row in self._rows(REFUSED, "source", DIGEST)
        )

    def _rows(self, folder: str, *names: str) -> list[dict[str, str]]:
        place, found = places.join(self.out, folder), []
        if not places.exists(place):
            return found
        filesystem, _ = places.resolve(place)
        for path, _ in places.list_files(place):
            if path.endswith(".parquet") and path not in self._files:
                self._files.add(path)
                table = foreign_arrow.read_table(path, columns=list(names), filesystem=filesystem)
                found += table.to_pylist()
        return found

    def write(self, table: pa.Table | None, refused: Sequence[dict[str, Any]]) -> FollowResult:
        """Write what is new of a batch; a file's name follows from its rows."""
        self.refresh()
        new, refused, repeated = None, list(refused), 0
        if table is not None:
            new, conflicts, repeated = self._sorted_out(table)
            refused += conflicts
        rows = {}
        for row in refused:
            if (row["source"], row[DIGEST]) not in self.refused:
                rows[row["source"], row[DIGEST], row["observation_id"], row["reason"]] = row
        if rows:  # first: a file counts as done when its scores are there
            content = pa.Table.from_pylist(list(rows.values()), schema=REFUSED_SCHEMA)
            names = [f"{row['source']} {row[DIGEST]}" for row in rows.values()]
            self._write(REFUSED, names, content)
            self.refused.update((row["source"], row[DIGEST]) for row in rows.values())
        scored = new.num_rows if new is not None else 0
        if scored:
            ids, digests = (new[name].to_pylist() for name in ("observation_id", DIGEST))
            new = new.drop_columns(_CARRIED)
            self._write(SCORED, [" ".join(pair) for pair in zip(ids, digests, strict=True)], new)
            self.scored.update(zip(ids, digests, strict=True))
        return FollowResult(self.out, scored, len(rows), repeated + len(refused) - len(rows))

    def _sorted_out(self, table: pa.Table) -> tuple[pa.Table, list[dict[str, Any]], int]:
        """Return new rows, refusals of those that conflict, and how many came again."""
        fresh, conflicts, repeated = [], [], 0
        within: dict[str, str] = {}
        names = ("observation_id", "object_id", DIGEST, "source", *_CARRIED)
        for row in table.select(names).to_pylist():
            name = row["observation_id"]
            before = self.scored.get(name) or within.get(name)
            fresh.append(before is None)
            within.setdefault(name, row[DIGEST])
            if before == row[DIGEST]:
                repeated += 1
            elif before is not None:
                detail = f"expected {name} as it was scored before, found other content"
                conflicts.append({
                    **{key: row[key] for key in ("source", "observation_id", "object_id")},
                    "reason": CONFLICT, "detail": detail, DIGEST: row["delivery"],
                    "content": row["content"],
                })  # fmt: skip
        return table.filter(pa.array(fresh, pa.bool_())), conflicts, repeated

    def _write(self, folder: str, names: Sequence[str], table: pa.Table) -> None:
        digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:20]
        uri = places.join(self.out, folder, f"{digest}.parquet")
        sink = pa.BufferOutputStream()
        write_table(table, sink, compression="zstd")
        places.write_bytes(uri, sink.getvalue())


# Columns of a batch that are not written: the delivery's digest, and its bytes if need be.
_CARRIED = ["delivery", "content"]
