"""``skyray reproduce gasnet-ii``: Zhong et al. 2024 on a mock of SDSS DR16, or on a real dataset.

Networks are trained and scored as published (each redshift network on spectra of its true class)
and end to end, and stand beside the paper: Table 1 (the dataset), Table 4 (the networks) and the
numbers of Figures 12, 13 and 15–18. `skyray evaluate`'s page of the same bundle has the figures.
Tables 2 and 3 are the datasets of the paper's other surveys, as our mocks of them are drawn.

The paper has networks alone, and so have the bundle and all figures: no templates are fitted.
Finished steps in the folder are not repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from skyray.bundles.bundle import Predictor, history_rows
from skyray.cards import load_card
from skyray.config import ConfigError
from skyray.data.dataset import Dataset, table_to_columns
from skyray.data.simulate import simulate
from skyray.families.base import Columns, Recipe, load_recipe
from skyray.inference.evaluate import evaluate
from skyray.pages.report import write_report
from skyray.runtime import places
from skyray.training.train import train

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Scale:
    """How large a reproduction is; `paper` is for a cluster. `mocks` are of Tables 2 and 3."""

    objects: int
    mocks: int
    recipe: str


SCALES = {
    "laptop": Scale(5200, 400, "redshift/sdss_dr16_laptop"),
    "paper": Scale(260_000, 20_000, "redshift/sdss_dr16_as_published"),
}
# (mean z, lowest z, highest z, mean of the median SNR); None: stars.
TABLE_1 = {
    "STAR_A0": (None, None, None, 26.2), "STAR_F5": (None, None, None, 30.5),
    "STAR_F9": (None, None, None, 34.9), "STAR_G2": (None, None, None, 33.7),
    "STAR_K1": (None, None, None, 32.8), "STAR_K3": (None, None, None, 31.1),
    "STAR_K5": (None, None, None, 31.0), "GALAXY_nan": (0.46, 0.0, 1.86, 5.82),
    "GALAXY_AGN": (0.21, 0.0, 0.57, 14.3), "GALAXY_STARBURST": (0.15, 0.0, 0.57, 9.78),
    "GALAXY_STARFORMING": (0.11, 0.0, 0.56, 12.4), "QSO_nan": (1.68, 0.01, 7.04, 2.64),
    "QSO_BROADLINE": (1.78, 0.03, 5.29, 6.54),
}  # fmt: skip
TABLE_2 = {
    "Dyn": (None, None, None, 74.5), "GalHR": (None, None, None, 39.9),
    "ESN": (None, None, None, 12.8), "GalDiskLR": (None, None, None, 140.4),
    "MCsn": (None, None, None, 72.3), "COSMO_AGN": (2.2, 0.9, 4.0, 6.3),
    "ClusB": (0.52, 0.3, 1.0, 5.8), "WAVES": (0.32, 0.0, 0.8, 1.6),
    "RedGAL": (0.33, 0.0, 1.1, 8.7), "tides_host": (0.11, 0.0, 0.6, 19.7),
}  # fmt: skip
TABLE_3 = {
    "STAR": (None, None, None, 19.1), "QSO": (1.59, 0.06, 4.27, 6.54),
    "GALAXY": (0.196, 0.0, 1.69, 7.53),
}  # fmt: skip
DATASETS = {"Table 1: SDSS": TABLE_1, "Table 2: 4MOST mock": TABLE_2, "Table 3: DESI": TABLE_3}
MILLION_PARAMETERS, CLASSIFIER_ACCURACY = 4.16, 0.919  # Table 4
VALIDATION_MAE = {
    "GALAXY_nan": 0.011, "GALAXY_AGN": 0.003, "GALAXY_STARBURST": 0.001,
    "GALAXY_STARFORMING": 0.002, "QSO_nan": 0.107, "QSO_BROADLINE": 0.027,
}  # fmt: skip
TEST_ACCURACY, COARSE_ACCURACY = 0.924, 0.99  # Figure 12, Appendix B
DELTA_Z = {"GALAXY": 0.0023, "QSO": 0.021}
GOOD = {"GALAXY_nan": 0.63, "GALAXY_AGN": 0.85, "GALAXY_STARBURST": 0.94,
        "GALAXY_STARFORMING": 0.91, "QSO_BROADLINE": 0.93}  # fmt: skip
TAU_BELOW_3 = 0.96


def dataset_table(columns: Columns, published: Mapping[str, tuple]) -> Rows:
    """Return one row a class: mean z, range and mean SNR, paper beside ours."""
    label, z = np.asarray(columns["label"], str), np.asarray(columns["redshift"], float)
    snr, rows = np.asarray(columns["snr"], float), []
    for name, (mean, low, high, brightness) in published.items():
        here = label == name
        row: dict[str, Any] = {"class": name, "objects": int(here.sum())}
        redshifts = z[here & np.isfinite(z)] if mean is not None else np.zeros(0)
        some = len(redshifts) > 0
        row |= {
            "z, paper": mean, "z, ours": float(redshifts.mean()) if some else None,
            "range, paper": None if mean is None else f"{low:g}–{high:g}",
            "range, ours": f"{redshifts.min():.2f}–{redshifts.max():.2f}" if some else None,
            "SNR, paper": brightness,
            "SNR, ours": float(np.nanmean(snr[here])) if here.any() else None,
        }  # fmt: skip
        rows.append(row)
    return rows


def networks_table(
    parameters: Mapping[str, int], trained_on: Mapping[str, int], accuracy: float,
    mae: Mapping[str, float],
) -> Rows:  # fmt: skip
    """Return Table 4: size, training rows, and the best validation accuracy or MAE."""

    def row(name: str, part: str, paper: float, ours: float | None) -> dict[str, Any]:
        return {
            "network": name, "parameters/10⁶, paper": MILLION_PARAMETERS,
            "parameters/10⁶, ours": parameters[part] / 1e6, "training spectra": trained_on[name],
            "accuracy or MAE, paper": paper, "accuracy or MAE, ours": ours,
        }  # fmt: skip

    rows = [row("classifier", "classifier", CLASSIFIER_ACCURACY, accuracy)]
    return rows + [
        row(name, "redshift", paper, mae.get(name)) for name, paper in VALIDATION_MAE.items()
    ]


def scores_table(metrics: Mapping[str, Any]) -> Rows:
    """Return the numbers of Figures 12, 13 and 15–18; `metrics` as `evaluate` returns them."""
    routes = metrics["redshift"]  # beside templates the networks' answers have a route of their own
    routed, whole = routes["true_class"], routes.get("networks_alone", routes["end_to_end"])

    def row(figure: str, name: str, paper: float | None, ours, end_to_end=None) -> dict[str, Any]:
        return {"figure": figure, "score": name, "paper": paper, "ours": ours,
                "ours, end to end": end_to_end}  # fmt: skip

    def both(group: str, score: str) -> tuple[float | None, float | None]:
        found = (route.get(group) or route["per_class"].get(group) for route in (routed, whole))
        return tuple(one[score] if one else None for one in found)

    recall = metrics["classification"]["balanced_accuracy"]
    rows = [
        row("12", "mean accuracy of the classes", TEST_ACCURACY, recall),
        row("B1", "accuracy, star/galaxy/quasar", COARSE_ACCURACY, metrics["coarse"]["accuracy"]),
    ]
    rows += [row("13, 15", f"mean Δz/(1+z), {g}", v, *both(g, "delta_z_mean"))
             for g, v in DELTA_Z.items()]  # fmt: skip
    for name in VALIDATION_MAE:
        rows.append(
            row("15", f"good fraction, {name}", GOOD.get(name), *both(name, "good_fraction"))
        )
        rows.append(row("14", f"median bias Δz/(1+z), {name}", None, *both(name, "bias_median")))
        rows.append(row("16", f"τ < 3, {name}", TAU_BELOW_3, *both(name, "tau_below_3")))
        rows.append(row("18", f"robust share, {name}", None, *both(name, "robust_fraction")))
    return rows


def reproduce(
    out: str,
    scale: str = "laptop",
    *,
    data: str | None = None,
    seed: int = 11,
    workers: int = 1,
    use_gpu: bool = False,
    changes: tuple[str, ...] = (),
    progress: bool = True,
) -> dict[str, Any]:
    """Run the experiment in `out` and return its figures; Ray must be running.

    Parameters
    ----------
    scale : str
        ``laptop`` or ``paper``.
    data : str, optional
        A dataset of card ``sdss_dr16`` in place of its mock.
    changes : tuple of str
        ``key=value`` changes to the recipe.

    Raises
    ------
    ConfigError
        Also where the changes, or the bundle in `out`, have templates beside the networks.
    """
    if scale not in SCALES:
        raise ConfigError(f"scale {scale!r}: expected one of {sorted(SCALES)}")
    size, bundle = SCALES[scale], places.join(out, "bundle")
    recipe = load_recipe(size.recipe).override(["template_fit=as_published", *changes])
    trained = places.exists(places.join(bundle, "bundle.json"))
    _refuse_templates(Predictor.without_network(bundle).family.recipe if trained else recipe, out)
    survey = data or _mock("sdss_dr16", size.objects, seed, places.join(out, "sdss"), progress)
    info = Dataset.open(survey).info()
    if missing := sorted(set(TABLE_1) - set(info.classes)):
        raise ConfigError(f"{survey}: expected the classes of card sdss_dr16, without {missing}")
    others = {"Table 2: 4MOST mock": "fourmost_mock", "Table 3: DESI": "desi_edr"}
    sources = {"Table 1: SDSS": survey} | {
        title: _mock(card, size.mocks, seed, places.join(out, card), progress)
        for title, card in others.items()
    }
    tables = {name: dataset_table(_truth(uri), DATASETS[name]) for name, uri in sources.items()}
    scores = places.join(out, "scores")
    if not trained:
        train(recipe, survey, bundle, workers=workers, use_gpu=use_gpu, progress=progress)
    if not places.exists(places.join(scores, "index.html")):
        evaluate(bundle, survey, scores, use_gpu=use_gpu)
    metrics = places.read_json(places.join(scores, "metrics.json"))
    tables["Table 4: networks"] = _networks(bundle)
    tables["Figures 12–18"] = scores_table(metrics)
    places.write_json(places.join(out, "figures.json"), tables)
    summary = {"scale": scale, "data": survey, "true class": "as published, the column `ours`"}
    with places.local_folder(out) as folder:
        write_report(folder, "GaSNet-II, reproduced", summary, (), tables,
                     {"figures": "scores/index.html"})  # fmt: skip
    shown = {f"{row['figure']}: {row['score']}": f"paper {row['paper']}, ours {row['ours']}"
             for row in tables["Figures 12–18"] if row["paper"] is not None}  # fmt: skip
    return shown | {"page": places.join(out, "index.html")}


def _refuse_templates(recipe: Recipe, out: str) -> None:
    if recipe.switch("template_fit") != "as_published":
        raise ConfigError(
            f"{out}: template_fit: expected as_published, for the paper's figures are of networks "
            "alone, found corrected; leave the change out, or take a folder without such a bundle"
        )


def _mock(card: str, objects: int, seed: int, out: str, progress: bool) -> str:
    if not Dataset.exists(out):
        simulate(load_card(card), objects, seed, out, progress=progress)
    return out


def _truth(uri: str) -> Columns:
    """Return class, redshift and SNR of all rows of a dataset."""
    names = ["label", "redshift", "snr"]
    parts = [table_to_columns(t) for t in Dataset.open(uri).iter_tables(names, rows=1 << 16)]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def _networks(bundle: str) -> Rows:
    predictor = Predictor.without_network(bundle)
    model, counts = predictor.family.build_model(), predictor.info.counts["train"]
    members = next(iter(model.redshift.values()))
    parts = {"classifier": model.classifier, "redshift": members[0]}
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    history = history_rows(bundle)
    best = max(row["validation_accuracy"] for row in history if row["stage"] == "classifier")
    trained_on = dict(counts) | {"classifier": sum(counts.values())}
    mae = {name: one["mae"] for name, one in predictor.calibration["sigma"].items()}
    return networks_table(sizes, trained_on, best, mae)
