"""Nearest spectra to this one: exact nearest neighbours of latents.

A KD-tree, not a graph index (HNSW): in the few dimensions of a latent space it is exact, has
nothing to tune, is built in seconds per million, and answers in well under a millisecond; graph
indices pay off in tens of dimensions, with approximate answers and several times the memory.

Shape suffixes: N indexed spectra, Q queries, S latents, K neighbours.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.spatial import cKDTree

from skyray.readers.foreign_arrow import open_ipc

FORMAT = 1
_CHUNK = 1 << 18
_SAME = 1e-5  # standardised distance below which two latents are one and the same
_LATENTS, _IDS, _INDEX = "latents.npy", "ids.arrow", "index.json"


@dataclass(frozen=True)
class NearestLatents:
    """An index of standardised latents.

    Distances are Euclidean after each latent has been divided by its standard deviation over the
    indexed spectra, so a distance of 1 is one standard deviation along any axis.

    Attributes
    ----------
    mean_S, scale_S : float64 [S]
        Of the indexed latents; a latent that is constant has scale 1.
    dropped : int
        Rows that were not finite and are not indexed.
    """

    mean_S: np.ndarray
    scale_S: np.ndarray
    dropped: int
    _ids: pa.Array
    _tree: cKDTree

    @classmethod
    def build(cls, latent_NS: np.ndarray, ids: Sequence | np.ndarray | pa.Array) -> NearestLatents:
        """Index latents; rows that are not finite are left out.

        Parameters
        ----------
        latent_NS : float [N, S]
        ids : [N]
            Object ids (text or integers), returned by `query`.

        Raises
        ------
        ValueError
            If shapes do not fit or no row is finite.
        """
        latent = np.asarray(latent_NS)
        names = ids if isinstance(ids, pa.Array) else pa.array(ids)
        if latent.ndim != 2 or len(names) != len(latent):
            raise ValueError(
                f"similarity: expected latents [N, S] and N ids, found {latent.shape}, {len(names)}"
            )
        finite = np.isfinite(latent).all(axis=1)
        dropped = int(len(latent) - finite.sum())
        if dropped:
            latent, names = latent[finite], names.filter(pa.array(finite))
        if len(latent) == 0:
            raise ValueError(f"similarity: expected finite latents, found none in {dropped} rows")
        mean = latent.mean(axis=0, dtype=np.float64)
        scale = latent.std(axis=0, dtype=np.float64)
        scale = np.where(scale > 1e-12 * np.maximum(np.abs(mean), 1e-30), scale, 1.0)
        data = np.empty(latent.shape)
        for start in range(0, len(latent), _CHUNK):
            part = slice(start, start + _CHUNK)
            data[part] = _standardise(latent[part], mean, scale)
        return cls(mean, scale, dropped, names, _grow(data))

    def __len__(self) -> int:
        return self._tree.n

    def query(
        self,
        latent_QS: np.ndarray,
        k: int = 10,
        exclude_self: bool = False,
        own_ids: Sequence | np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the nearest indexed spectra, nearest first.

        Parameters
        ----------
        latent_QS : float [Q, S] or [S]
            Finite, in the unit of the indexed latents.
        k : int
            Neighbours wanted; K = k, or as many as there are.
        exclude_self : bool
            The query is itself indexed and must not be its own neighbour: one entry with the same
            latents is left out, or that with the query's id where `own_ids` is given.
        own_ids : [Q], optional
            Ids of the queries, for `exclude_self` among exact duplicates.

        Returns
        -------
        ids : object [Q, K] or [K]
        distance : float64 [Q, K] or [K]
            In standard deviations.

        Raises
        ------
        ValueError
            If shapes do not fit, a latent is not finite, or k < 1.
        """
        latent = np.asarray(latent_QS)
        rows = np.atleast_2d(latent)
        if rows.shape[1] != self.mean_S.size or rows.ndim != 2 or k < 1:
            raise ValueError(
                f"similarity: expected latents [Q, {self.mean_S.size}] and k ≥ 1, "
                f"found {latent.shape} and k = {k}"
            )
        if not np.isfinite(rows).all():
            bad = int((~np.isfinite(rows).all(axis=1)).sum())
            raise ValueError(f"similarity: expected finite latents, found {bad} bad rows")
        wanted = min(k + exclude_self, len(self))
        standard = _standardise(rows, self.mean_S, self.scale_S)
        distance, index = self._tree.query(standard, k=np.arange(1, wanted + 1))
        names = self._take(index)
        if exclude_self:
            own = self._own(names, distance, own_ids)
            kept = np.arange(wanted) != own[:, None]
            shape = (len(rows), wanted - 1)
            names, distance = names[kept].reshape(shape), distance[kept].reshape(shape)
        return (names[0], distance[0]) if latent.ndim == 1 else (names, distance)

    def latent(self, name: str) -> np.ndarray:
        """Return the indexed latent of one id, float64 [S], in its own unit.

        Raises
        ------
        KeyError
            If the index holds no such id.
        """
        row = pc.index(self._ids, name).as_py()
        if row < 0:
            raise KeyError(f"object {name!r}: not among the {len(self)} indexed spectra")
        return self._tree.data[row] * self.scale_S + self.mean_S

    def _own(self, names: np.ndarray, distance: np.ndarray, own_ids) -> np.ndarray:
        """Return which column [Q] is the query itself; the last one where it is not there."""
        if own_ids is None:
            itself = distance < _SAME
        else:
            itself = names == np.asarray(own_ids, dtype=object).reshape(-1, 1)
        return np.where(itself.any(axis=1), itself.argmax(axis=1), names.shape[1] - 1)

    def _take(self, index: np.ndarray) -> np.ndarray:
        found = self._ids.take(pa.array(index.ravel()))
        names = np.empty(len(found), dtype=object)
        names[:] = found.to_pylist()
        return names.reshape(index.shape)

    def save(self, path: Path) -> Path:
        """Write the index to a folder: ``latents.npy``, ``ids.arrow`` and ``index.json``, last.

        An index already there is replaced; those who have it loaded keep theirs.
        """
        path.mkdir(parents=True, exist_ok=True)
        (path / _INDEX).unlink(missing_ok=True)
        shape = self._tree.data.shape
        table = pa.table({"object_id": self._ids})
        # Written aside and renamed: truncating a file that is mapped kills who reads it.
        with _aside(path / _LATENTS) as file:
            stored = np.lib.format.open_memmap(file, "w+", dtype=np.float32, shape=shape)
            stored[:] = self._tree.data  # float32 values already, see _standardise
            stored.flush()
        with (
            _aside(path / _IDS) as file,
            pa.OSFile(str(file), "wb") as sink,
            pa.ipc.new_file(sink, table.schema) as writer,
        ):
            writer.write_table(table)
        about = {
            "format": FORMAT,
            "rows": shape[0],
            "dropped": self.dropped,
            "mean": self.mean_S.tolist(),
            "scale": self.scale_S.tolist(),
        }
        with _aside(path / _INDEX) as file:
            file.write_text(json.dumps(about, indent=1), encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: Path) -> NearestLatents:
        """Read an index from its folder, which may be removed afterwards.

        The ids stay in the mapped file, the tree is built again and is the same.

        Raises
        ------
        FileNotFoundError
            If the folder holds no complete index.
        ValueError
            If its files do not belong together or are of another format.
        """
        if not (path / _INDEX).is_file():
            raise FileNotFoundError(f"{path}: no similarity index ({_INDEX} is missing)")
        about = json.loads((path / _INDEX).read_text(encoding="utf-8"))
        if about.get("format") != FORMAT:
            raise ValueError(f"{path}: expected format {FORMAT}, found {about.get('format')}")
        latent = np.load(path / _LATENTS, mmap_mode="r", allow_pickle=False)
        stored = pa.memory_map(str(path / _IDS)).read_buffer()
        ids = open_ipc(stored, str(path / _IDS)).read_all().column(0)
        names = ids.chunk(0) if ids.num_chunks == 1 else ids.combine_chunks()
        mean, scale = (np.array(about[name], dtype=np.float64) for name in ("mean", "scale"))
        if latent.shape != (about["rows"], mean.size) or len(names) != len(latent):
            raise ValueError(
                f"{path}: expected {about['rows']} rows of {mean.size} latents, "
                f"found {latent.shape} and {len(names)} ids"
            )
        data = np.array(latent, dtype=np.float64)
        return cls(mean, scale, about["dropped"], names, _grow(data))


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """Yield a path to write to that becomes `path` when all went well."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _standardise(latent: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    # Rounded to float32, which is what is stored: a loaded index gives the same answers.
    return ((latent - mean) / scale).astype(np.float32).astype(np.float64)


def _grow(data: np.ndarray) -> cKDTree:
    # Leaves of 32 halve the nodes, and splits at midpoints are built somewhat faster than at
    # medians; neither changes the answers, nor the time of a query much.
    return cKDTree(data, leafsize=32, balanced_tree=False)
