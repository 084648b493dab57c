"""What people look at of an outlier search: gallery entries with neighbours, map of the latents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data

from skyray.bundles.bundle import Predictor
from skyray.data.dataset import Dataset, table_to_columns
from skyray.data.tables import quoted
from skyray.families.base import Columns, Family
from skyray.families.outliers.metrics import SCORES, stacked
from skyray.families.outliers.scoring_table import TITLES
from skyray.inference.nearest import NearestVectors
from skyray.inference.predict import KEY
from skyray.pages.gallery import GalleryEntry, Neighbour
from skyray.pages.scatter_map import Points, write_scatter_map

_NEIGHBOURS = 3
_THUMBNAIL_PIXELS, _THUMBNAILS_A_TASK = 120, 256
_SHOWN = (*SCORES, "percentile", "strangeness", "neg_log_p_star", "log_ratio")
_MAPPED = ("object_id", "redshift", "snr", "label", "rank", "strangeness", *SCORES,
           "neg_log_p_star", "chi2_reduced_star", "log_ratio", "log_likelihood_ratio")  # fmt: skip


def gallery_entries(
    dataset: Dataset,
    predictor: Predictor,
    strangest: Sequence[Mapping[str, Any]],
    nearest: NearestVectors,
) -> list[GalleryEntry]:
    """Return the gallery's entries, with their nearest neighbours that are not strange.

    Parameters
    ----------
    strangest : sequence of mapping
        Rows of the catalogue.
    """
    near = {row[KEY]: _neighbours(row, nearest) for row in strangest}
    wanted = set(near).union(*(found[KEY] for found in near.values()))
    spectra = _spectra(dataset, wanted, predictor.family)
    return [_entry(predictor, row, spectra, near[row[KEY]]) for row in strangest]


def _neighbours(row: Mapping[str, Any], nearest: NearestVectors) -> Columns:
    if row["problem"]:
        return {KEY: np.zeros(0, object)}
    latent = np.array([row[f"latent_{i}"] for i in range(len(nearest.mean_S))])
    only = f"in_domain AND {KEY} != {quoted([row[KEY]])}"
    return table_to_columns(nearest.query(latent, _NEIGHBOURS, only))


def _spectra(dataset: Dataset, names: Iterable[str], family: Family) -> dict[str, Columns]:
    """Return what the family reads of some observations, by name."""
    columns = table_to_columns(dataset.find(sorted(names), [KEY, *family.columns(False)]))
    return {
        name: {column: values[row : row + 1] for column, values in columns.items()}
        for row, name in enumerate(columns[KEY])
    }


def _entry(
    predictor: Predictor, row: Mapping[str, Any], spectra: Mapping[str, Columns], near: Columns
) -> GalleryEntry:
    family, columns = predictor.family, spectra[row[KEY]]
    inputs = family.transform(columns, training=False)
    output = predictor.predict(columns, detail=True)
    norm = inputs["norm"][0]
    found = zip(*(near.get(n, ()) for n in (KEY, "object_id", "distance")), strict=True)
    return GalleryEntry(
        rank=row["rank"],
        object_id=row["object_id"],
        ra=row["ra"],
        dec=row["dec"],
        redshift=row["redshift"],
        label=" · ".join(filter(None, (row["label"], row["planted"]))),
        scores={name: row[name] for name in _SHOWN if name in row},
        wavelength_L=family.grid.wavelength(),
        flux_L=inputs["y"][0] * norm,
        ivar_L=inputs["w"][0] / norm**2,
        masked_L=inputs["w"][0] <= 0,
        model_L=output["model"][0],
        neighbours=[_neighbour(family, spectra[key], name, far) for key, name, far in found],
        source=row["source"],
        survey=row["survey"],
    )


def _neighbour(family: Family, columns: Columns, name: str, distance: float) -> Neighbour:
    inputs = family.transform(columns, training=False)
    wavelength = family.grid.wavelength() / (1 + inputs["z"][0])
    return Neighbour(name, float(distance), wavelength, inputs["y"][0])


def write_map(path: Path, rows: pa.Table, dataset: Dataset, family: Family) -> None:
    """Write the map of some rows of the catalogue, with small spectra to look at."""
    from skyray.analysis.embedding import umap_2d  # numba takes its time

    rows = rows.sort_by("position")
    table = table_to_columns(rows)
    columns = {name: table[name] for name in _MAPPED if name in table}
    small = _thumbnails(dataset, family, rows)
    points = Points({"UMAP": umap_2d(stacked(table, "latent_"), 0)}, columns, spectra=small)
    title, note = f"Latents of {dataset.card.name}", "UMAP of the latents"
    write_scatter_map(path, points, title, color_by="neg_log_p", note=note, titles=TITLES)


def _thumbnails(dataset: Dataset, family: Family, rows: pa.Table) -> np.ndarray:
    """Return small rest-frame spectra, float32 [N, 120], made by the workers.

    At rest equal kinds look equal. The catalogue's rows are the dataset's, in its order.
    """
    position, names = rows["position"].to_numpy(), rows[KEY].to_numpy(zero_copy_only=False)

    def draw(batch: Columns) -> Columns:
        at = slice(int(batch["id"][0]) * _THUMBNAILS_A_TASK, None)
        chosen = position[at][:_THUMBNAILS_A_TASK]
        columns = table_to_columns(dataset.take(chosen, [KEY, *family.columns(False)]))
        if not np.array_equal(columns[KEY], names[at][:_THUMBNAILS_A_TASK]):
            raise RuntimeError(f"{dataset.uri}: rows are not where the catalogue has them")
        inputs = family.transform(columns, training=False)
        rest_angstrom = np.linspace(3700.0, 7000.0, _THUMBNAIL_PIXELS)
        wavelength = family.grid.wavelength()
        small = [np.interp(rest_angstrom, wavelength / (1 + z), y)
                 for z, y in zip(inputs["z"], inputs["y"], strict=True)]  # fmt: skip
        return {"position": chosen, "small": np.array(small, np.float32)}

    tasks = -(-len(position) // _THUMBNAILS_A_TASK)
    drawn = ray.data.range(tasks, override_num_blocks=tasks).map_batches(
        draw, batch_size=1, batch_format="numpy"
    )
    found = list(drawn.iter_batches(batch_size=None, batch_format="numpy"))
    order = np.argsort(np.concatenate([part["position"] for part in found]))
    return np.concatenate([part["small"] for part in found])[order]
