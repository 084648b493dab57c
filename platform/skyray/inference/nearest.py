"""Nearest neighbours among the vectors of a catalogue: exact, and in the memory of one batch.

    INDEX/vectors.lance   one row a vector: names, flags, the standardised vector
    INDEX/index.json      mean and scale, written last

Workers write the table from the catalogue's parts; a query reads its vectors once, in some 50 ms
for half a million of six numbers. Distances are Euclidean after each component has been divided by
its standard deviation over the catalogue: a distance of 1 is one standard deviation along any axis.

Shape suffix: S components.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from skyray.data.tables import commit_append, create_table, open_table, quoted, write_fragments
from skyray.inference.catalogue import Catalogue
from skyray.runtime import places

FORMAT = 1
_TABLE, _ABOUT, _VECTOR = "vectors.lance", "index.json", "vector"
_NAMES = ("observation_id", "object_id")


@dataclass(frozen=True)
class NearestVectors:
    """An index of standardised vectors; `NearestVectors.open` and `build` are the ways to one.

    Attributes
    ----------
    mean_S, scale_S : float64 [S]
        Of the indexed vectors; a component that is constant has scale 1.
    rows, dropped : int
        Vectors, and rows that were not finite and are not indexed.
    """

    uri: str
    mean_S: np.ndarray
    scale_S: np.ndarray
    rows: int
    dropped: int

    @classmethod
    def build(
        cls, catalogue: Catalogue, columns: Sequence[str], uri: str, flags: Sequence[str] = ()
    ) -> NearestVectors:
        """Index the vectors that some columns of a catalogue make; Ray must be running.

        Parameters
        ----------
        columns : sequence of str
            The components, float.
        uri : str
            Folder or URI of the index; one already there is replaced.
        flags : sequence of str
            Boolean columns that queries may ask for.

        Raises
        ------
        ValueError
            If no vector is finite.
        """
        places.remove(uri)
        place = places.absolute(places.join(uri, _TABLE))
        rows, mean, scale = _moments(catalogue, columns)
        if not rows:
            raise ValueError(f"{catalogue.uri}: expected finite {list(columns)}, found none")
        names = [n for n in _NAMES if n in {column.name for column in catalogue.columns}]
        fields = [*(pa.field(name, pa.string()) for name in names),
                  *(pa.field(name, pa.bool_()) for name in flags),
                  pa.field(_VECTOR, pa.list_(pa.float32(), len(columns)))]  # fmt: skip
        schema = pa.schema(fields)
        create_table(place, schema)

        def write(group: pa.Table) -> pa.Table:
            group, vectors = _finite(group, columns)
            flat = pa.array(((vectors - mean) / scale).astype(np.float32).reshape(-1))
            made = group.select([*names, *flags]).append_column(
                _VECTOR, pa.FixedSizeListArray.from_arrays(flat, len(columns))
            )
            written = write_fragments(place, made.cast(schema))
            return pa.table({"fragment": pa.array(written, pa.string())})

        picked = catalogue.select(write, [*names, *flags, *columns])
        commit_append(place, picked["fragment"].to_pylist())
        about = {
            "format": FORMAT, "rows": rows, "dropped": catalogue.rows - rows,
            "columns": list(columns), "mean": mean.tolist(), "scale": scale.tolist(),
        }  # fmt: skip
        places.write_json(places.join(uri, _ABOUT), about)
        return cls.open(uri)

    @classmethod
    def open(cls, uri: str) -> NearestVectors:
        """Open an index.

        Raises
        ------
        FileNotFoundError
            If no complete index is there.
        ValueError
            If it is of another format.
        """
        place = places.join(uri, _ABOUT)
        if not places.exists(place):
            raise FileNotFoundError(f"{uri}: no index of vectors ({_ABOUT} is missing)")
        about = places.read_json(place)
        if about.get("format") != FORMAT:
            raise ValueError(f"{uri}: expected format {FORMAT}, found {about.get('format')}")
        mean, scale = (np.array(about[name]) for name in ("mean", "scale"))
        return cls(uri, mean, scale, about["rows"], about["dropped"])

    def query(self, vector_S: np.ndarray, k: int = 10, only: str | None = None) -> pa.Table:
        """Return the names of the k nearest vectors and their ``distance``, nearest first.

        Parameters
        ----------
        vector_S : float [S]
            Finite, in the unit of the catalogue.
        only : str, optional
            Filter (SQL) on names and flags that neighbours have to pass.

        Raises
        ------
        ValueError
            If the vector's shape does not fit or it is not finite.
        """
        vector = np.asarray(vector_S, np.float64)
        if vector.shape != self.mean_S.shape or not np.isfinite(vector).all():
            raise ValueError(
                f"{self.uri}: expected {self.mean_S.size} finite numbers, found {vector.tolist()}"
            )
        standard = ((vector - self.mean_S) / self.scale_S).astype(np.float32)
        table = open_table(places.absolute(places.join(self.uri, _TABLE)))
        names = [field.name for field in table.schema if field.name in _NAMES]
        found = table.to_table(
            columns=[*names, "_distance"], filter=only, prefilter=True,
            nearest={"column": _VECTOR, "q": standard, "k": k, "use_index": False},
        ).sort_by("_distance")  # fmt: skip
        distance = pc.sqrt(found["_distance"].cast(pa.float64()))
        return found.drop_columns("_distance").append_column("distance", distance)

    def vector(self, name: str) -> tuple[str, np.ndarray]:
        """Return the observation_id and vector [S] of an observation, or of an object's first one.

        Raises
        ------
        KeyError
            If the index holds none of that name.
        """
        table = open_table(places.absolute(places.join(self.uri, _TABLE)))
        for column in _NAMES:
            found = table.to_table(
                columns=["observation_id", _VECTOR], filter=f"{column} = {quoted([name])}", limit=1
            )
            if found.num_rows:
                row = found.to_pylist()[0]
                return row["observation_id"], np.array(row[_VECTOR]) * self.scale_S + self.mean_S
        raise KeyError(f"object {name!r}: not among the {self.rows} indexed")


def _finite(group: pa.Table, columns: Sequence[str]) -> tuple[pa.Table, np.ndarray]:
    """Return the rows whose vectors are finite, and these, float64 [N, S]."""
    vectors = np.stack([group[name].to_numpy() for name in columns], axis=1).astype(np.float64)
    finite = np.isfinite(vectors).all(axis=1)
    return group.filter(pa.array(finite)), vectors[finite]


def _moments(catalogue: Catalogue, columns: Sequence[str]) -> tuple[int, np.ndarray, np.ndarray]:
    """Return the number of finite vectors, their mean and standard deviation, from partial sums."""

    def sums(group: pa.Table) -> pa.Table:
        _, vectors = _finite(group, columns)
        mean = vectors.mean(axis=0) if len(vectors) else np.zeros(len(columns))
        spread = np.square(vectors - mean).sum(axis=0)
        return pa.table({"rows": [len(vectors)], "mean": [mean], "spread": [spread]})

    rows, mean, spread = 0, np.zeros(len(columns)), np.zeros(len(columns))
    for part in catalogue.select(sums, list(columns)).to_pylist():
        total = rows + part["rows"]
        step = np.array(part["mean"]) - mean
        if part["rows"]:
            spread = spread + np.array(part["spread"]) + step**2 * rows * part["rows"] / total
            mean = mean + step * part["rows"] / total
        rows = total
    scale = np.sqrt(spread / max(rows, 1))
    return rows, mean, np.where(scale > 1e-12 * np.maximum(np.abs(mean), 1e-30), scale, 1.0)
