"""``skyray reproduce desi-outliers``: the outlier search of Liang et al. 2023 on mock DESI surveys.

A mock BGS survey in which a known share of objects is strange, and a mock MWS survey; a model of
the galaxies and one of the stars; the search; and the figures by which it is judged, beside the
baselines PCA reconstruction error and isolation forest on PCA coefficients. With `bgs` and `mws`
datasets of real spectra the same is done on them (without what needs planted truth).

Finished steps in the folder are not repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from skyray.analysis.anomaly import IsolationScore, PcaBaseline
from skyray.bundles.bundle import BUNDLE_FILE, Predictor, history_rows
from skyray.cards import load_card
from skyray.config import ConfigError
from skyray.data.dataset import MANIFEST, Dataset, table_to_columns
from skyray.data.simulate import simulate
from skyray.families.base import Columns, load_recipe
from skyray.families.outliers import figures, metrics
from skyray.inference.evaluate import evaluate
from skyray.pages.report import write_report
from skyray.runtime import places
from skyray.training.train import train
from skyray.transforms.rest_frame import to_rest_frame
from skyray.workflows.outliers import find_outliers, score

PCA_COMPONENTS = 10
_PCA_REST_ANGSTROM = np.arange(3000.0, 7000.0, 8.0)


@dataclass(frozen=True)
class Scale:
    """How large a reproduction is; `paper` is for a cluster and real data."""

    galaxies: int
    stars: int
    galaxy_recipe: str
    star_recipe: str


SCALES = {
    "laptop": Scale(8000, 3000, "outliers/desi_bgs_laptop", "outliers/desi_mws_laptop"),
    "paper": Scale(250_000, 210_000, "outliers/desi_bgs", "outliers/desi_mws"),
}


def reproduce(
    out: str,
    scale: str = "laptop",
    *,
    bgs: str | None = None,
    mws: str | None = None,
    planted: float = 0.02,
    seed: int = 11,
    workers: int = 1,
    use_gpu: bool = False,
    threads: int | None = None,
    changes: tuple[str, ...] = (),
    progress: bool = True,
) -> dict[str, Any]:
    """Run the whole experiment in `out` and return its figures; Ray must be running.

    Parameters
    ----------
    scale : str
        ``laptop`` or ``paper``.
    bgs, mws : str, optional
        Datasets to use in place of mock surveys.
    planted : float
        Share of the mock galaxies that are planted outliers, all kinds alike.
    changes : tuple of str
        ``key=value`` changes to both recipes.
    """
    if scale not in SCALES:
        raise ConfigError(f"scale {scale!r}: expected one of {sorted(SCALES)}")
    size = SCALES[scale]
    galaxies, stars = bgs or places.join(out, "bgs"), mws or places.join(out, "mws")
    if not _there(galaxies, MANIFEST):
        simulate(load_card("desi_bgs"), size.galaxies, seed, galaxies, planted=planted,
                 progress=progress)  # fmt: skip
    if not _there(stars, MANIFEST):
        simulate(load_card("desi_mws"), size.stars, seed, stars, progress=progress)
    bundles = {"galaxies": places.join(out, "galaxies"), "stars": places.join(out, "stars")}
    for name, data, recipe in (
        ("galaxies", galaxies, size.galaxy_recipe),
        ("stars", stars, size.star_recipe),
    ):
        if not _there(bundles[name], BUNDLE_FILE):
            made = load_recipe(recipe).override([f"seed={seed}", *changes])
            train(made, data, bundles[name], workers=workers, use_gpu=use_gpu, threads=threads,
                  progress=progress)  # fmt: skip
    found: dict[str, Any] = {}
    for split in ("train", "test"):
        found[split] = evaluate(
            bundles["galaxies"], galaxies, places.join(out, f"scores-{split}"), split=split,
            figures=split == "test",
        )  # fmt: skip
    found["stage_invariance"] = stage_invariance(bundles["galaxies"])
    find_outliers(bundles["galaxies"], [galaxies], places.join(out, "search"),
                  star_bundle=bundles["stars"], use_gpu=use_gpu, progress=progress)  # fmt: skip
    table, decision = _judge(galaxies, stars, bundles)
    found |= decision
    places.write_json(places.join(out, "figures.json"), found)
    drawn = {
        "star_galaxy_auc": found["star_galaxy_density_auc"],
        "planted_auc": found["planted_auc"],
    }
    links = {"The search": "search/index.html", "Gallery": "search/gallery.html"}
    with places.local_folder(out) as folder:
        paths = figures.write_figures(table, drawn, folder / "figures")
        write_report(folder, "Outliers in DESI BGS, reproduced", summary(found), paths, {}, links)
    return summary(found)


def summary(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of an experiment as short text and numbers."""
    test, train_ = found["test"], found["train"]
    short: dict[str, Any] = {
        "test fidelity / train fidelity": test["fidelity_mean"] / train_["fidelity_mean"],
        "reduced chi2, test, median": test["chi2_median"],
        "reduced chi2, test, mean": test["chi2_mean"],
        **{f"invariance ratio after stage {k}": v for k, v in found["stage_invariance"].items()},
        "invariance ratio, test": test.get("invariance_ratio"),
        "largest |rho| of a latent with z at fixed type": test["redshift_correlation"],
        "star/galaxy AUC, likelihood ratio": found["star_galaxy_auc"],
        "star/galaxy AUC, densities alone": found["star_galaxy_density_auc"],
    }
    for name, by_kind in found["planted_auc"].items():
        kinds = {k: v for k, v in by_kind.items() if isinstance(v, float)}
        text = ", ".join(f"{kind} {value:.3f}" for kind, value in kinds.items())
        short[f"planted AUC: {name}"] = text
    return short


def stage_invariance(bundle: str) -> dict[str, float]:
    """Return the validation invariance ratio at the end of each autoencoder stage."""
    last: dict[str, float] = {}
    for row in history_rows(bundle):
        if "validation_invariance" in row:
            last[row["stage"]] = row["validation_invariance"]
    return last


def _judge(galaxies: str, stars: str, bundles: Mapping[str, str]) -> tuple[Columns, dict[str, Any]]:
    """Return the galaxies' table with baselines, planted AUCs and the star/galaxy decision."""
    survey = Dataset.open(galaxies)
    table = score(bundles["galaxies"], survey, bundles["stars"])
    table |= pca_baseline(bundles["galaxies"], survey)
    names = ("strangeness", *metrics.SCORES, "pca_error", "pca_isolation")
    found: dict[str, Any] = {"planted_auc": {}}
    if (table["planted"] != "").any():
        found["planted_auc"] = {n: metrics.planted_auc(table[n], table["planted"]) for n in names}
    alike = score(bundles["galaxies"], Dataset.open(stars), bundles["stars"])
    ordinary = table["planted"] == ""
    unseen = [(table, ordinary & (table["split"] == "test"), False),
              (alike, alike["split"] == "test", True)]  # fmt: skip
    for name, column in (("", "log_likelihood_ratio"), ("density_", "log_ratio")):
        ratio = np.concatenate([t[column][rows] for t, rows, _ in unseen])
        is_star = np.concatenate([np.full(rows.sum(), star) for _, rows, star in unseen])
        roc = metrics.star_galaxy_roc(-ratio, np.zeros(len(ratio)), is_star)
        found[f"star_galaxy_{name}auc"] = roc["auc"]
        found[f"star_galaxy_{name}accuracy"] = roc["accuracy"]
        found["star_galaxy_rows"] = roc["rows"]
    table["history"] = history_rows(bundles["galaxies"])
    return table, found


def pca_baseline(bundle: str, dataset: Dataset) -> Columns:
    """Return ``pca_error`` and ``pca_isolation`` of every object, in the dataset's order.

    The spectra are prepared as for the autoencoder, then brought to 8 Å rest-frame pixels; the
    components come from the training split.
    """
    family = Predictor.from_bundle(bundle, device="cpu").family
    flux, weight, split = [], [], []
    for table in dataset.iter_tables([*family.columns(training=True), "split"]):
        columns = table_to_columns(table)
        inputs = family.transform(columns, training=False)
        y, w = to_rest_frame(
            inputs["y"], inputs["w"], family.grid.wavelength(), inputs["z"], _PCA_REST_ANGSTROM
        )
        flux.append(y)
        weight.append(w)
        split.append(columns["split"])
    y, w, split = np.concatenate(flux), np.concatenate(weight), np.concatenate(split)
    seen = (split == "train") & (w > 0).any(axis=1)
    pca = PcaBaseline.fit(y[seen], w[seen], PCA_COMPONENTS)
    coefficients = pca.coefficients(y, w)
    isolation = IsolationScore.fit(coefficients[seen], 0).score(coefficients)
    return {"pca_error": pca.reconstruction_error(y, w), "pca_isolation": isolation}


def _there(folder: str, name: str) -> bool:
    return places.exists(places.join(folder, name))
