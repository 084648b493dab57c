"""``skyray outliers``: score a survey under one or two populations and show the strangest.

The first bundle models the population searched (galaxies); a second one (stars) adds its density
and the star/galaxy log-likelihood ratio. Everything is written to one folder:

    OUT/catalogue.parquet, .fits   one row an object, ordered as the dataset
    OUT/gallery.html               the strangest objects, to look through
    OUT/latents.html               map of the latent space
    OUT/latents/                   index for `nearest`
    OUT/index.html                 summary, figures, links
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from skyray.analysis.similarity import NearestLatents
from skyray.bundles.bundle import Predictor, history_rows, read_bundle
from skyray.config import ConfigError
from skyray.data.dataset import Dataset
from skyray.families.base import Columns, OutputColumn
from skyray.families.outliers import figures
from skyray.families.outliers.family import with_notes
from skyray.families.outliers.metrics import SCORES, stacked
from skyray.families.outliers.scoring_table import TITLES
from skyray.inference.catalogue import CatalogueWriter
from skyray.inference.predict import (
    IDENTITY,
    SOURCE,
    VERSION,
    as_dataset,
    collect,
    predict_dataset,
    table_to_columns,
)
from skyray.pages.gallery import GalleryEntry, Neighbour, write_gallery
from skyray.pages.report import write_report
from skyray.pages.scatter_map import Points, write_scatter_map
from skyray.runtime import places

FAMILY = "outliers"
REDSHIFT = OutputColumn("redshift", "float64", "", "redshift the survey lists")
RANK = OutputColumn("rank", "int64", "", "1 = strangest")
STAR_COLUMNS = (
    OutputColumn("neg_log_p_star", "float32", "", "-log density of the latent among stars"),
    OutputColumn("chi2_reduced_star", "float32", "", "chi2 of the star model per measured pixel"),
    OutputColumn(
        "log_ratio", "float32", "", "log p(galaxy) - log p(star) of the densities; > 0: galaxy"
    ),
    OutputColumn(
        "log_likelihood_ratio", "float32", "", "log_ratio and half the chi2 that stars fit worse"
    ),
)
_NEIGHBOURS = 3
_THUMBNAIL_PIXELS = 120


def find_outliers(
    bundle: str,
    sources: Sequence[str],
    out: str,
    *,
    star_bundle: str | None = None,
    card: str | None = None,
    top: int = 100,
    explorer_rows: int = 5000,
    workers: int | None = None,
    use_gpu: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Rank every object of a dataset, or of survey files, by strangeness; Ray must be running.

    Parameters
    ----------
    bundle : str
        Bundle of the family ``outliers`` for the population that is searched.
    star_bundle : str, optional
        A second one, for stars.
    top : int
        Objects in the gallery.
    explorer_rows : int
        Points in the map of the latent space (0: no map).

    Returns
    -------
    dict
        Files, number of objects, and the strangest ten.

    Raises
    ------
    ConfigError
        If a bundle is of another family.
    """
    for uri in filter(None, (bundle, star_bundle)):
        if read_bundle(uri)["family"] != FAMILY:
            raise ConfigError(f"{uri}: expected a bundle of the family {FAMILY!r}, found "
                              f"{read_bundle(uri)['family']!r}")  # fmt: skip
    dataset = as_dataset(bundle, sources, out, card, progress)
    table = score(bundle, dataset, star_bundle, workers=workers, use_gpu=use_gpu)
    files = write_catalogue(table, bundle, out, with_stars=star_bundle is not None)
    predictor = Predictor.from_bundle(bundle, device="cpu")
    folder = Path(out)
    nearest = _index(table)
    nearest.save(folder / "latents")
    strangest = np.argsort(table["rank"])[:top]
    entries = _entries(dataset, predictor, table, strangest, nearest)
    summary = {
        "objects": len(table["rank"]), "without scores": int((table["problem"] != "").sum()),
        "bundle": bundle, "stars": star_bundle or "none", "data": dataset.uri,
    }  # fmt: skip
    links = {"Gallery of the strangest": "gallery.html", "Catalogue": "catalogue.parquet"}
    write_gallery(folder / "gallery.html", entries, f"Strangest of {dataset.card.name}", summary,
                  TITLES)  # fmt: skip
    if explorer_rows:
        _write_map(folder / "latents.html", table, dataset, predictor, explorer_rows)
        links["Map of the latent space"] = "latents.html"
    table["history"] = history_rows(bundle)
    paths = figures.write_figures(table, {}, folder / "figures")
    write_report(folder, f"Outliers of {dataset.card.name}", summary, paths,
                 {"The strangest ten": _shortlist(table, strangest[:10])}, links)  # fmt: skip
    return {
        "objects": summary["objects"],
        "without scores": summary["without scores"],
        "strangest": [str(table["object_id"][i]) for i in strangest[:10]],
        "catalogue": files,
        "gallery": str(folder / "gallery.html"),
        "page": str(folder / "index.html"),
    }


def score(
    bundle: str,
    dataset: Dataset,
    star_bundle: str | None = None,
    *,
    workers: int | None = None,
    use_gpu: bool = False,
) -> Columns:
    """Return identity, truth and scores of every object, in the dataset's order, with ranks."""
    keep = [column.name for column in (*IDENTITY["spectrum"], REDSHIFT, SOURCE)]
    keep += ["label", "extra", "split", "survey"]
    rows = predict_dataset(bundle, dataset, keep=keep, workers=workers, use_gpu=use_gpu)
    table = collect(rows)
    if len(table.get("object_id", ())) != dataset.count():
        raise RuntimeError(f"{dataset.uri}: expected {dataset.count()} scores, found "
                           f"{len(table.get('object_id', ()))}")  # fmt: skip
    if star_bundle:
        stars = collect(
            predict_dataset(
                star_bundle, dataset, keep=["object_id"], workers=workers, use_gpu=use_gpu
            )
        )
        if not np.array_equal(stars["object_id"], table["object_id"]):
            raise RuntimeError(f"{dataset.uri}: the two models' rows are not in the same order")
        table["neg_log_p_star"] = stars["neg_log_p"]
        table["chi2_reduced_star"] = stars["chi2_reduced"]
        table["log_ratio"] = stars["neg_log_p"] - table["neg_log_p"]
        # p(spectrum) is about p(latent) p(spectrum | latent): densities alone forget how well the
        # spectrum is explained at all. Fidelity is half of chi2 over all pixels.
        misfit = stars["fidelity"] * _pixels(star_bundle) - table["fidelity"] * _pixels(bundle)
        table["log_likelihood_ratio"] = (table["log_ratio"] + misfit).astype(np.float32)
    table = with_notes(table)
    table["rank"] = ranks(table["strangeness"], table["neg_log_p"])
    return table


def _pixels(bundle: str) -> int:
    return Predictor.from_bundle(bundle, device="cpu").family.grid.size


def ranks(strangeness_N: np.ndarray, neg_log_p_N: np.ndarray) -> np.ndarray:
    """Return 1 for the strangest object, int64 [N]; ties by −log p, those without scores last."""
    strange = np.where(np.isfinite(strangeness_N), strangeness_N, -np.inf)
    tie = np.where(np.isfinite(neg_log_p_N), neg_log_p_N, -np.inf)
    order = np.lexsort((-tie, -strange))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(1, len(order) + 1)
    return rank


def write_catalogue(table: Columns, bundle: str, out: str, with_stars: bool) -> list[str]:
    """Write the catalogue in Parquet and FITS and return its files."""
    family = Predictor.from_bundle(bundle, device="cpu").family
    extra = STAR_COLUMNS if with_stars else ()
    described = [
        *IDENTITY["spectrum"],
        REDSHIFT,
        RANK,
        *family.output_columns(),
        *extra,
        VERSION,
        SOURCE,
    ]
    with CatalogueWriter(places.join(out, "catalogue"), described) as writer:
        writer.write(pa.table({column.name: table[column.name] for column in described}))
    return writer.files


def nearest_spectra(out: str, object_id: str, count: int = 10) -> dict[str, Any]:
    """Return the objects of a finished search whose latents are nearest to one object's.

    Parameters
    ----------
    out : str
        Folder that `find_outliers` wrote.

    Raises
    ------
    KeyError
        If the search holds no scored object of that id.
    """
    nearest = NearestLatents.load(Path(out) / "latents")
    ids, distances = nearest.query(
        nearest.latent(object_id), count, exclude_self=True, own_ids=[object_id]
    )
    return {str(name): float(d) for name, d in zip(ids, distances, strict=True)}


def _index(table: Columns) -> NearestLatents:
    scored = table["problem"] == ""
    return NearestLatents.build(stacked(table, "latent_")[scored], table["object_id"][scored])


def _rows_of(dataset: Dataset, ids: Sequence[str]) -> dict[str, Columns]:
    """Return the dataset rows of some objects, by id; pixels of the others are not kept."""
    wanted = pa.array(sorted(set(map(str, ids))))
    names = ["object_id", "flux", "ivar", "mask", "redshift", "ra", "dec", "label", "source"]
    found: dict[str, Columns] = {}
    for table in dataset.iter_tables(names):
        hits = table.filter(pc.is_in(table.column("object_id"), wanted))
        columns = table_to_columns(hits)
        for row in range(hits.num_rows):
            single = {name: values[row : row + 1] for name, values in columns.items()}
            found[str(columns["object_id"][row])] = single
    return found


def _entries(dataset, predictor, table: Columns, chosen: np.ndarray, nearest: NearestLatents):
    """Return the gallery's entries, with their nearest neighbours that are not strange."""
    latents = stacked(table, "latent_")
    normal = {str(i) for i, ok in zip(table["object_id"], table["in_domain"], strict=True) if ok}
    near: dict[int, list[tuple[str, float]]] = {}
    for row in chosen:
        near[row] = []
        if table["problem"][row] == "":
            ids, distances = nearest.query(latents[row], 10 * _NEIGHBOURS)
            pairs = zip(map(str, ids), map(float, distances), strict=True)
            others = [p for p in pairs if p[0] in normal and p[0] != str(table["object_id"][row])]
            near[row] = others[:_NEIGHBOURS]
    wanted = {str(table["object_id"][row]) for row in chosen}
    wanted |= {name for pairs in near.values() for name, _ in pairs}
    rows = _rows_of(dataset, sorted(wanted))
    return [_entry(predictor, table, row, rows, near[row]) for row in chosen]


def _entry(predictor: Predictor, table: Columns, row: int, rows, near) -> GalleryEntry:
    family, columns = predictor.family, rows[str(table["object_id"][row])]
    inputs = family.transform(columns, training=False)
    output = predictor.predict(columns, detail=True)
    norm = inputs["norm"][0]
    names = [*SCORES, "percentile", "strangeness", "neg_log_p_star", "log_ratio"]
    wavelength = family.grid.wavelength()
    return GalleryEntry(
        rank=int(table["rank"][row]),
        object_id=str(table["object_id"][row]),
        ra=float(table["ra"][row]),
        dec=float(table["dec"][row]),
        redshift=float(table["redshift"][row]),
        label=" · ".join(filter(None, (str(table["label"][row]), table["planted"][row]))),
        scores={name: float(table[name][row]) for name in names if name in table},
        wavelength_L=wavelength,
        flux_L=inputs["y"][0] * norm,
        ivar_L=inputs["w"][0] / norm**2,
        masked_L=inputs["w"][0] <= 0,
        model_L=output["model"][0],
        neighbours=[_neighbour(family, rows[name], name, distance) for name, distance in near],
        source=str(table["source"][row]),
        survey=str(table["survey"][row]),
    )


def _neighbour(family, columns: Columns, name: str, distance: float) -> Neighbour:
    inputs = family.transform(columns, training=False)
    return Neighbour(name, distance, family.grid.wavelength() / (1 + inputs["z"][0]),
                     inputs["y"][0])  # fmt: skip


def _write_map(path: Path, table: Columns, dataset, predictor, most: int) -> None:
    """Write the map: the strangest objects and a random sample of the others."""
    from skyray.analysis.embedding import umap_2d  # numba takes its time

    scored = np.flatnonzero(table["problem"] == "")
    order = scored[np.argsort(table["rank"][scored])]
    rest = np.random.default_rng(0).permutation(order[most // 10 :])
    chosen = np.sort(np.concatenate([order[: most // 10], rest[: most - most // 10]]))
    latents = stacked(table, "latent_")[chosen]
    names = ["object_id", "redshift", "snr", "label", "rank", "strangeness", *SCORES]
    names += [c.name for c in STAR_COLUMNS if c.name in table]
    columns = {name: table[name][chosen] for name in names}
    rows = _rows_of(dataset, table["object_id"][chosen])
    thumbnails = _thumbnails(predictor.family, [rows[str(i)] for i in columns["object_id"]])
    points = Points({"UMAP": umap_2d(latents, 0)}, columns, spectra=np.stack(thumbnails))
    title, note = f"Latents of {dataset.card.name}", "UMAP of the latents"
    write_scatter_map(path, points, title, color_by="neg_log_p", note=note, titles=TITLES)


def _thumbnails(family, rows: Sequence[Columns]) -> list[np.ndarray]:
    """Return small rest-frame spectra, so that equal kinds look equal."""
    small = []
    rest_angstrom = np.linspace(3700.0, 7000.0, _THUMBNAIL_PIXELS)
    for columns in rows:
        inputs = family.transform(columns, training=False)
        wavelength = family.grid.wavelength() / (1 + inputs["z"][0])
        small.append(np.interp(rest_angstrom, wavelength, inputs["y"][0]).astype(np.float32))
    return small


def _shortlist(table: Columns, chosen: np.ndarray) -> list[dict[str, Any]]:
    names = ["rank", "object_id", "redshift", "snr", "strangeness", "neg_log_p", "chi2_reduced"]
    names += [c.name for c in STAR_COLUMNS if c.name in table] + ["problem"]
    return [{name: table[name][row] for name in names} for row in chosen]
