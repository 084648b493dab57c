"""``skyray reproduce desi-outliers``: the outlier search of Liang et al. 2023 on mock DESI surveys.

A mock BGS survey in which a known share of objects is strange, and a mock MWS survey; a model of
the galaxies and one of the stars; the search; and the figures by which it is judged, beside the
baselines PCA reconstruction error and isolation forest on PCA coefficients. With `bgs` and `mws`
datasets of real spectra the same is done on them (without what needs planted truth).

Finished steps in the folder are not repeated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from skyray.analysis.anomaly import MAX_FIT_ROWS, IsolationScore, PcaBaseline
from skyray.bundles.bundle import (
    BUNDLE_FILE,
    Predictor,
    bundle_digest,
    history_rows,
    read_bundle,
)
from skyray.cards import load_card
from skyray.config import ConfigError
from skyray.data.dataset import Dataset, table_to_columns
from skyray.data.simulate import simulate
from skyray.families.base import Columns, Family, load_recipe
from skyray.families.outliers import figures, metrics
from skyray.inference.catalogue import Catalogue
from skyray.inference.evaluate import evaluate
from skyray.inference.predict import KEY, row_numbers
from skyray.inference.results import Results, narrow_columns, on_workers, piece_rows
from skyray.pages.report import write_report
from skyray.runtime import places
from skyray.training.train import train
from skyray.transforms.rest_frame import to_rest_frame
from skyray.workflows.outliers import find_outliers, sample_by_rank, score

PCA_COMPONENTS = 10
_DRAWN_ROWS = 20_000
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
    if not Dataset.exists(galaxies):
        simulate(load_card("desi_bgs"), size.galaxies, seed, galaxies, planted=planted,
                 progress=progress)  # fmt: skip
    if not Dataset.exists(stars):
        simulate(load_card("desi_mws"), size.stars, seed, stars, progress=progress)
    bundles = {name: places.join(out, name) for name in ("galaxies", "stars")}
    for name, data, recipe in (
        ("galaxies", galaxies, size.galaxy_recipe),
        ("stars", stars, size.star_recipe),
    ):
        if not places.exists(places.join(bundles[name], BUNDLE_FILE)):
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
    find_outliers(
        bundles["galaxies"], [galaxies], places.join(out, "search"), star_bundle=bundles["stars"],
        use_gpu=use_gpu, progress=progress,
    )  # fmt: skip
    table, decision = _judge(galaxies, stars, bundles, out)
    found |= decision
    places.write_json(places.join(out, "figures.json"), found)
    drawn = {
        "star_galaxy_auc": found["star_galaxy_density_auc"],
        "planted_auc": found["planted_auc"],
    }
    with places.local_folder(out) as folder:
        paths = figures.write_figures(table, drawn, folder / "figures")
        links = {"The search": "search/index.html", "Gallery": "search/gallery.html"}
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


def _judge(
    galaxies: str, stars: str, bundles: Mapping[str, str], out: str
) -> tuple[Columns, dict[str, Any]]:
    """Return galaxies to draw, and the planted AUCs and star/galaxy decision of all."""
    survey = Dataset.open(galaxies)
    searched = Catalogue.open(places.join(out, "search", "catalogue"))
    baseline = pca_baseline(bundles["galaxies"], survey, places.join(out, "_pca"))
    names = ("strangeness", *metrics.SCORES, "pca_error", "pca_isolation")
    ratios = {"": "log_likelihood_ratio", "density_": "log_ratio"}
    kept = [*names, "planted", "split", *ratios.values()]
    picked = searched.select(lambda group: _with_baseline(baseline, group).select(kept))
    table = narrow_columns([picked])
    found: dict[str, Any] = {"planted_auc": {}}
    if (table["planted"] != "").any():
        found["planted_auc"] = {n: metrics.planted_auc(table[n], table["planted"]) for n in names}
    others = score(bundles["galaxies"], Dataset.open(stars), places.join(out, "star-scores"),
                   bundles["stars"])  # fmt: skip
    alike = others.columns_of(["split", *ratios.values()])
    ordinary = table["planted"] == ""
    unseen = [(table, ordinary & (table["split"] == "test"), False),
              (alike, alike["split"] == "test", True)]  # fmt: skip
    for name, column in ratios.items():
        ratio = np.concatenate([t[column][rows] for t, rows, _ in unseen])
        is_star = np.concatenate([np.full(rows.sum(), star) for _, rows, star in unseen])
        roc = metrics.star_galaxy_roc(-ratio, np.zeros(len(ratio)), is_star)
        found[f"star_galaxy_{name}auc"] = roc["auc"]
        found[f"star_galaxy_{name}accuracy"] = roc["accuracy"]
        found["star_galaxy_rows"] = roc["rows"]
    drawn = pa.array(sample_by_rank(searched.rows, _DRAWN_ROWS), pa.int64())
    shown = searched.select(
        lambda group: _with_baseline(baseline, group).filter(pc.is_in(group["rank"], drawn))
    )
    places.remove(baseline.uri)
    return table_to_columns(shown) | {"history": history_rows(bundles["galaxies"])}, found


def _with_baseline(baseline: Results, group: pa.Table) -> pa.Table:
    """Add the baseline's scores to rows of the search's catalogue."""
    start, stop = group["position"][0].as_py(), group["position"][-1].as_py()
    pieces = range(start // baseline.size, stop // baseline.size + 1)
    rows = pa.concat_tables([baseline.read(number) for number in pieces])
    rows = rows.slice(start - pieces[0] * baseline.size, group.num_rows)
    if rows[KEY] != group[KEY]:
        raise RuntimeError(f"{baseline.uri}: rows are not those of the search")
    for name in ("pca_error", "pca_isolation"):
        group = group.append_column(name, rows[name])
    return group


def pca_baseline(bundle: str, dataset: Dataset, out: str) -> Results:
    """Write ``pca_error`` and ``pca_isolation`` of every object to the results table `out`.

    The spectra are prepared as for the autoencoder, then brought to 8 Å rest-frame pixels; the
    components come from the training split, of more than 20,000 spectra from a random part.
    """
    family = Predictor.without_network(bundle).family
    size = piece_rows(dataset.schema, family.columns(training=False), dataset.count())
    about = {"bundle": bundle_digest(read_bundle(bundle)), "data": dataset.manifest.fingerprint}
    results = Results.claim(places.absolute(out), about, dataset.count(), size, replace=True)
    fitted = ray.put(ray.get(ray.remote(_fit_baseline).remote(family, dataset)))
    missing = results.missing()

    def judge(task: int) -> Iterator[pa.Table]:
        number = int(missing[task])
        rows = np.arange(number * size, number * size + results.rows_of(number))
        names, y, w = _at_rest(family, dataset, rows)
        pca, isolation = ray.get(fitted)
        scores = {"pca_error": pca.reconstruction_error(y, w),
                  "pca_isolation": isolation.score(pca.coefficients(y, w))}  # fmt: skip
        yield pa.table({"rows": [results.write(number, {KEY: names, **scores})]})

    on_workers(len(missing), judge)
    return results


def _fit_baseline(family: Family, dataset: Dataset) -> tuple[PcaBaseline, IsolationScore]:
    train = row_numbers(dataset, "train")
    chosen = np.sort(np.random.default_rng(0).permutation(train)[:MAX_FIT_ROWS])
    parts = np.array_split(chosen, -(-len(chosen) // 256))
    found = [_at_rest(family, dataset, part)[1:] for part in parts]
    y, w = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    seen = (w > 0).any(axis=1)
    pca = PcaBaseline.fit(y[seen], w[seen], PCA_COMPONENTS)
    return pca, IsolationScore.fit(pca.coefficients(y[seen], w[seen]), 0)


def _at_rest(family: Family, dataset: Dataset, rows: np.ndarray):
    """Return the names of some rows, and their rest-frame spectra and weights [N, R]."""
    columns = table_to_columns(dataset.take(rows, [KEY, *family.columns(training=False)]))
    inputs = family.transform(columns, training=False)
    wavelength = family.grid.wavelength()
    rest = to_rest_frame(inputs["y"], inputs["w"], wavelength, inputs["z"], _PCA_REST_ANGSTROM)
    return columns[KEY], *rest
