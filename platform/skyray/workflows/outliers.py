"""``skyray outliers``: score a survey under one or two populations and show the strangest.

The first bundle models the population searched (galaxies); a second one (stars) adds its density
and the star/galaxy log-likelihood ratio. Everything is written to one folder:

    OUT/catalogue/, catalogue.fits   one row an object, ordered as the dataset, with its rank
    OUT/gallery.html                 the strangest objects, to look through
    OUT/latents.html                 map of the latent space
    OUT/latents/                     index for `nearest`
    OUT/index.html                   summary, figures, links
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from skyray.bundles.bundle import Predictor, bundle_digest, history_rows, read_bundle
from skyray.bundles.named import located
from skyray.config import ConfigError
from skyray.data.dataset import Dataset, table_to_columns
from skyray.data.tables import quoted
from skyray.families.base import OutputColumn
from skyray.families.outliers import figures
from skyray.families.outliers.metrics import with_notes
from skyray.families.outliers.scoring_table import TITLES
from skyray.inference.catalogue import Catalogue
from skyray.inference.catalogue_parts import write_catalogue
from skyray.inference.nearest import NearestVectors
from skyray.inference.predict import (
    IDENTITY,
    KEY,
    SOURCE,
    VERSION,
    as_dataset,
    predict_dataset,
    write_beside,
)
from skyray.inference.ranking import ranks
from skyray.inference.results import Results
from skyray.pages.gallery import write_gallery
from skyray.pages.report import write_report
from skyray.runtime import places
from skyray.workflows.outlier_pages import gallery_entries, write_map

FAMILY = "outliers"
TRUTH = (
    OutputColumn("redshift", "float64", "", "redshift the survey lists"),
    OutputColumn("label", "str", "", "class the survey lists"),
    OutputColumn("type", "str", "", "type of a mock object; else the label"),
    OutputColumn("planted", "str", "", "kind of outlier a mock object was made to be; else empty"),
    OutputColumn("survey", "str", "", "survey the spectrum comes from"),
    OutputColumn("split", "str", "", "train: the model may have seen the object"),
)
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
_FIGURE_ROWS = 20_000
_SHORTLIST = ("rank", "object_id", "redshift", "snr", "strangeness", "neg_log_p", "chi2_reduced",
              *(column.name for column in STAR_COLUMNS), "problem")  # fmt: skip


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
    fits: bool | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Rank every object of a dataset, or of survey files, by strangeness; Ray must be running.

    An interrupted search goes on where it stopped. Scores, ranks and index are made by the workers;
    this process sees the rows it shows.

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
    fits : bool, optional
        Write ``OUT/catalogue.fits`` too; default: up to 5 million rows and 2 GB.

    Returns
    -------
    dict
        Files, number of objects, and the strangest ten.

    Raises
    ------
    ConfigError
        If a bundle is of another family.
    OtherResults
        If `out` holds the search of another bundle or dataset version.
    """
    bundle, star_bundle = located(bundle), star_bundle and located(star_bundle)
    for uri in filter(None, (bundle, star_bundle)):
        if read_bundle(uri)["family"] != FAMILY:
            raise ConfigError(f"{uri}: expected a bundle of the family {FAMILY!r}, found "
                              f"{read_bundle(uri)['family']!r}")  # fmt: skip
    dataset = as_dataset(bundle, sources, out, card, progress)
    catalogue = score(bundle, dataset, places.join(out, "catalogue"), star_bundle, workers=workers,
                      use_gpu=use_gpu, progress="score" if progress else None)  # fmt: skip
    files, note = write_beside(catalogue, fits=fits)
    predictor = Predictor.from_bundle(bundle, device="cpu")
    latents = [column.name for column in catalogue.columns if column.name.startswith("latent_")]
    nearest = NearestVectors.build(catalogue, latents, places.join(out, "latents"), ["in_domain"])
    strangest = by_rank(catalogue, range(1, top + 1))
    scored = scored_rows(catalogue)
    summary = {
        "objects": catalogue.rows, "without scores": catalogue.rows - scored,
        "bundle": bundle, "stars": star_bundle or "none",
        "data": f"{dataset.uri}, version {dataset.version}",
    }  # fmt: skip
    links = {"Catalogue": "catalogue.fits" if f"{catalogue.uri}.fits" in files else "catalogue/"}
    with places.local_folder(out) as folder:
        entries = gallery_entries(dataset, predictor, strangest.to_pylist(), nearest)
        write_gallery(folder / "gallery.html", entries, f"Strangest of {dataset.card.name}",
                      summary, TITLES)  # fmt: skip
        if explorer_rows:
            rows = by_rank(catalogue, _map_ranks(scored, explorer_rows))
            write_map(folder / "latents.html", rows, dataset, predictor.family)
            links["Map of the latent space"] = "latents.html"
        history = history_rows(bundle)
        _report(folder, catalogue, strangest, f"Outliers of {dataset.card.name}", summary, links,
                history)  # fmt: skip
    return {
        "objects": summary["objects"],
        "without scores": summary["without scores"],
        "strangest": strangest["object_id"].to_pylist()[:10],
        "catalogue": files,
        **({"note": note} if note else {}),
        "gallery": places.join(out, "gallery.html"),
        "page": places.join(out, "index.html"),
    }


def _report(
    folder: Path, catalogue: Catalogue, strangest: pa.Table, title: str, summary: dict[str, Any],
    links: dict[str, str], history: list[dict[str, Any]],
) -> None:  # fmt: skip
    """Write the page with figures of all objects, or of a random part of very many."""
    chosen = sample_by_rank(catalogue.rows, _FIGURE_ROWS)
    if len(chosen) < catalogue.rows:
        summary = {**summary, "figures drawn from": f"{len(chosen):,} objects, chosen at random"}
    shown = table_to_columns(by_rank(catalogue, chosen)) | {"history": history}
    paths = figures.write_figures(shown, {}, folder / "figures")
    shortlist = [{name: row[name] for name in _SHORTLIST if name in row}
                 for row in strangest.slice(0, 10).to_pylist()]  # fmt: skip
    links = {"Gallery of the strangest": "gallery.html", **links}
    write_report(folder, title, summary, paths, {"The strangest ten": shortlist}, links)


def score(
    bundle: str,
    dataset: Dataset,
    out: str,
    star_bundle: str | None = None,
    *,
    workers: int | None = None,
    use_gpu: bool = False,
    progress: str | None = None,
) -> Catalogue:
    """Write identity, truth, scores and rank of every object to the catalogue `out`; return it."""
    identity = IDENTITY["spectrum"]
    kept = [column.name for column in (*identity, SOURCE)]
    how = {"workers": workers, "use_gpu": use_gpu, "progress": progress}
    stars_of = bundle_digest(read_bundle(star_bundle)) if star_bundle else ""
    results = predict_dataset(
        bundle, dataset, out, keep=[*kept, "redshift", "label", "survey", "split", "extra"],
        note={"stars": stars_of}, **how,
    )  # fmt: skip
    family = Predictor.without_network(bundle).family
    described = [*identity, *TRUTH, RANK, *family.output_columns()]
    extend, beside = _noted, places.join(out, "_stars")
    if star_bundle:
        described += STAR_COLUMNS
        if not results.finished:
            stars = predict_dataset(star_bundle, dataset, beside, keep=[], size=results.size,
                                    replace=True, **how)  # fmt: skip
            pixels = Predictor.without_network(star_bundle).family.grid.size
            extend = partial(_compared, stars, family.grid.size, pixels)
    ordered = None if results.finished else ranks(results, ["strangeness", "neg_log_p"])
    catalogue = write_catalogue(results, [*described, VERSION, SOURCE], extend, ordered)
    places.remove(beside)
    return catalogue


def _noted(number: int, table: pa.Table) -> pa.Table:
    """Add what the column ``extra`` says of mock objects."""
    notes = with_notes(table_to_columns(table.select(["label", "extra"])))
    for name in ("type", "planted"):
        table = table.append_column(name, pa.array(notes[name].tolist(), pa.string()))
    return table


def _compared(
    stars: Results, galaxy_pixels: int, star_pixels: int, number: int, table: pa.Table
) -> pa.Table:
    """Add what the other model says of the same rows."""
    found = table_to_columns(stars.read(number, [KEY, "neg_log_p", "chi2_reduced", "fidelity"]))
    mine = table_to_columns(table.select([KEY, "neg_log_p", "fidelity"]))
    if not np.array_equal(found[KEY], mine[KEY]):
        raise RuntimeError(f"{stars.piece(number)}: not the rows of the other model's piece")
    ratio = found["neg_log_p"] - mine["neg_log_p"]
    # p(spectrum) is about p(latent) p(spectrum | latent): densities alone forget how well the
    # spectrum is explained at all. Fidelity is half of chi2 over all pixels.
    misfit = found["fidelity"] * star_pixels - mine["fidelity"] * galaxy_pixels
    values = (found["neg_log_p"], found["chi2_reduced"], ratio, ratio + misfit)
    for column, array in zip(STAR_COLUMNS, values, strict=True):
        table = table.append_column(column.name, pa.array(array.astype(np.float32)))
    return _noted(number, table)


def by_rank(catalogue: Catalogue, chosen: Sequence[int]) -> pa.Table:
    """Return the rows of some ranks, in the order of the ranks; the workers pick them out."""
    wanted = pa.array(list(chosen), pa.int64())
    picked = catalogue.select(lambda group: group.filter(pc.is_in(group["rank"], wanted)))
    return picked.sort_by("rank")


def sample_by_rank(rows: int, most: int) -> list[int]:
    """Return the ranks of at most `most` of so many rows, chosen at random with a fixed seed."""
    return sorted(random.Random(0).sample(range(1, rows + 1), min(most, rows)))


def scored_rows(catalogue: Catalogue) -> int:
    """Return how many rows have scores: their ranks come first."""
    counts = catalogue.select(
        lambda group: pa.table({"rows": [pc.sum(pc.equal(group["problem"], "")).as_py() or 0]}),
        ["problem"],
    )
    return pc.sum(counts["rows"]).as_py()


def _map_ranks(scored: int, most: int) -> list[int]:
    """Return the ranks of the strangest tenth of a map, and of a random sample of the others."""
    first = min(scored, most // 10)
    rest = range(first + 1, scored + 1)
    return [*range(1, first + 1), *random.Random(0).sample(rest, min(most - first, len(rest)))]


def nearest_spectra(out: str, object_id: str, count: int = 10) -> dict[str, float]:
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
    nearest = NearestVectors.open(places.join(out, "latents"))
    own, vector = nearest.vector(object_id)
    found = nearest.query(vector, count, only=f"{KEY} != {quoted([own])}")
    return dict(zip(*(found[name].to_pylist() for name in ("object_id", "distance")), strict=True))
