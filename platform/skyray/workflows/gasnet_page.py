"""All figures of GaSNet-II from a reproduction's bundles and datasets, in the paper's order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from skyray.bundles.bundle import Predictor, history_rows
from skyray.data.dataset import Dataset, table_to_columns
from skyray.families.base import Columns
from skyray.families.redshift import (
    published,
    published_figures,
    published_networks,
    published_spectra,
)
from skyray.families.redshift.published import line, of_group, signed
from skyray.families.redshift.published_figures import Drawn
from skyray.families.redshift.released import released_scores
from skyray.inference.predict import predict_dataset
from skyray.runtime import places
from skyray.workflows.gasnet_data import RIGHT_LABEL, extra_of

_SPECTRA, _BRIGHT = 24, 0.5  # of a class for Figure D1: so many of its brighter half
_TWINS = ("ClusB", "RedGAL")
_TITLES = {"sdss": "SDSS", "fourmost": "4MOST"}


@dataclass(frozen=True)
class Sources:
    """What figures are made of; `cells`: name → (bundle, dataset), `among`: survey → classes."""

    sdss: str
    bundle: str
    fourmost: str
    cells: Mapping[str, tuple[str, str]]
    among: Mapping[str, Sequence[str]]
    shares: Sequence[float]
    released: Columns | None = None


@dataclass(frozen=True)
class _Judged:
    table: Columns
    metrics: Mapping[str, Any]
    coarse: Mapping[str, str]
    calibration: Mapping[str, Any]


def draw_all(
    sources: Sources, folder: Path, work: str, use_gpu: bool
) -> tuple[list[Drawn], list[dict[str, Any]]]:
    """Return the figures, written to `folder`, and their numbers, paper beside ours."""

    def judged(name: str, bundle: str, data: str) -> _Judged:
        return _judged(bundle, data, places.join(work, name), use_gpu)

    own = judged("sdss", sources.bundle, sources.sdss)
    cells = {name: judged(name, *where) for name, where in sources.cells.items()}
    theirs = sources.released
    scored = None if theirs is None else released_scores(theirs, published.VALIDATION_MAE)
    drawn = [
        *_sdss(sources, own, folder),
        *_fourmost(sources, cells["fourmost"], folder),
        *_desi(cells["desi"], folder),
        *_wrong(sources, cells, folder),
        *_coarse(cells, folder),
        *_appendices(sources, own, folder),
    ]
    rows = published.scores_table(own.metrics, scored)
    found = [one for one in drawn if one is not None]
    return found, rows + [row for one in found for row in one.rows]


def _judged(bundle: str, data: str, out: str, use_gpu: bool) -> _Judged:
    """Return predictions of the test split joined with the truth, and their scores."""
    predictor = Predictor.without_network(bundle)
    family = predictor.family
    results = predict_dataset(
        bundle, Dataset.open(data), out, split="test", training=True,
        keep=[*family.truth_columns(), "extra"], use_gpu=use_gpu, replace=True,
    )  # fmt: skip
    table = dict(results.columns(results.narrow()))
    extra = table.pop("extra")
    vdisp = [np.nan if v is None else float(v) for v in extra_of(extra, "vdisp")]
    right = [r or label for r, label in zip(extra_of(extra, RIGHT_LABEL), table["label"],
                                            strict=True)]  # fmt: skip
    table |= {"vdisp": np.array(vdisp), RIGHT_LABEL: np.array(right, dtype=object)}
    metrics = family.evaluate(table, predictor.calibration)
    return _Judged(table, metrics, family.data.coarse, predictor.calibration)


def _sdss(sources: Sources, own: _Judged, folder: Path) -> list[Drawn | None]:
    mae = {name: one["mae"] for name, one in own.calibration["sigma"].items()}
    table, coarse = own.table, own.coarse
    accuracy = own.metrics["classification"]["balanced_accuracy"]
    return [
        published_networks.learning_figure(
            history_rows(sources.bundle), folder / "11_learning_curves.png"
        ),
        published_networks.confusions_figure(
            {"SDSS": own.metrics["classification"]},
            "Figure 12, confusion of the 13 SDSS classes. Paper: 92.4 % on average, GALAXY_"
            f"STARFORMING the lowest (87 %). Ours: {100 * accuracy:.1f} %.",
            folder / "12_confusion.png",
        ),
        published_figures.bias_figure(table, coarse, folder / "14_bias_by_snr.png"),
        published_figures.redshift_errors_figure(
            table, coarse, "15 (and 13)",
            "GF .85 AGN, .94 starburst, .91 star-forming, .93 broad-line; errors grow at high z.",
            folder / "15_redshifts.png",
        ),
        published_figures.tau_figure(table, coarse, folder / "16_tau.png"),
        published_figures.sigma_snr_figure(
            table, coarse, folder / "17_sigma_snr.png", sources.released
        ),
        published_figures.bias_figure(table, coarse, folder / "18_robust.png", mae),
    ]  # fmt: skip


def _fourmost(sources: Sources, own: _Judged, folder: Path) -> list[Drawn | None]:
    paper, section = published.FOURMOST, own.metrics["classification"]
    recall = [
        line("19", f"recall of {name}", value, published_networks.recall_of(section, name))
        for name, value in paper["recall"].items()
    ]
    mixed = published_networks.called(section, *reversed(_TWINS))
    rows = [line("19", "mean accuracy of the classes", paper["accuracy"],
                 section["balanced_accuracy"]), *recall,
            line("19", "RedGAL called ClusB", paper["RedGAL as ClusB"], mixed)]  # fmt: skip
    lost = "unknown" if mixed is None else f"{100 * mixed:.0f} %"
    caption = (
        "Figure 19, confusion of the ten 4MOST classes. Paper: 93.4 %, RedGAL 66 %, 29 % of it "
        f"called ClusB. Ours: {100 * section['balanced_accuracy']:.1f} %, {lost} of "
        "RedGAL called ClusB."
    )
    redshifts = published_figures.redshift_errors_figure(
        own.table, own.coarse, "21", "Δz .0055 of galaxies, .003 of AGN; WAVES the worst.",
        folder / "21_redshifts_4most.png",
    )  # fmt: skip
    return [
        published_networks.confusions_figure(
            {"4MOST": section}, caption, folder / "19_confusion_4most.png", rows
        ),
        published_spectra.twins_figure(
            _spectra(sources.fourmost, _TWINS), _TWINS, (0.3, 0.9), folder / "20_twins.png"
        ),
        _with_scores(redshifts, "21", own, paper["delta_z"], paper["good"]),
    ]


def _desi(own: _Judged, folder: Path) -> list[Drawn | None]:
    paper, section = published.DESI, own.metrics["classification"]
    found = section["balanced_accuracy"]
    rows = [line("22", "mean accuracy of the classes", paper["accuracy"], found)]
    redshifts = published_figures.redshift_errors_figure(
        own.table, own.coarse, "23", "Δz .028 of galaxies, .048 of quasars, few at high z.",
        folder / "23_redshifts_desi.png",
    )  # fmt: skip
    return [
        published_networks.confusions_figure(
            {"DESI": section}, "Figure 22, confusion of the three DESI classes. Paper: 96 %, each "
            f"above 93 %. Ours: {100 * found:.1f} %.", folder / "22_confusion_desi.png", rows,
        ),
        _with_scores(redshifts, "23", own, paper["delta_z"], {}),
    ]  # fmt: skip


def _with_scores(
    drawn: Drawn | None, figure: str, own: _Judged, delta_z: Mapping, good: Mapping
) -> Drawn | None:
    if drawn is None:
        return None
    routes = own.metrics["redshift"]
    rows = [
        line(figure, f"{title}, {group}", value, of_group(routes["true_class"], group, score),
             end_to_end=of_group(routes["end_to_end"], group, score))
        for title, score, papers in (("mean Δz/(1+z)", "delta_z_mean", delta_z),
                                     ("good fraction", "good_fraction", good))
        for group, value in papers.items()
    ]  # fmt: skip
    return Drawn(drawn.path, drawn.caption, rows)


def _wrong(sources: Sources, cells: Mapping[str, _Judged], folder: Path) -> list[Drawn | None]:
    """Return Figures A1–A3; scores are against the labels as they are, and on right ones alone."""
    made: list[Drawn | None] = []
    for figure, (survey, among) in zip(("A1", "A2"), sources.among.items(), strict=True):
        found = {share: cells[f"wrong-{survey}-{round(100 * share)}"] for share in sources.shares}
        paper = published.CONTAMINATED[_TITLES[survey]]["accuracy"]
        rows = _effects(found, figure, among, paper, "accuracy")
        panels = {f"{100 * share:.0f} % shuffled": one.metrics["classification"]
                  for share, one in found.items()}  # fmt: skip
        caption = f"Figure {figure}, {_wrong_caption(paper, rows, 'accuracy')}"
        made.append(published_networks.confusions_figure(
            panels, caption, folder / f"{figure}_wrong_labels.png", rows
        ))  # fmt: skip
    among, paper = sources.among["sdss"], published.CONTAMINATED["SDSS"]["good_fraction"]
    found = {share: cells[f"wrong-sdss-{round(100 * share)}"] for share in sources.shares}
    rows = _effects(found, "A3", among, paper, "good_fraction")
    for share, one in found.items():
        drawn = published_figures.redshift_errors_figure(
            one.table, one.coarse, f"A3, {100 * share:.0f} % of the labels shuffled",
            "the good fraction hardly changes.",
            folder / f"A3_redshifts_{round(100 * share)}_shuffled.png", among,
        )  # fmt: skip
        if drawn is not None and share == 0:
            text = f"{drawn.caption} Of all three, {_wrong_caption(paper, rows, 'good fraction')}"
            drawn = Drawn(drawn.path, text, rows)
        made.append(drawn)
    return made


def _effects(found: Mapping[float, _Judged], figure: str, among, paper, score: str):
    """Return the points lost, with all labels as published, and where the label is right."""
    asis = {share: one.metrics for share, one in found.items()}
    right = {share: _where_right(one) for share, one in found.items()}
    rows = published_networks.contamination_rows(asis, figure, among, paper, score)
    clean = published_networks.contamination_rows(right, figure, among, (None, None), score)
    return rows + [{**row, "score": f"{row['score']}, objects with right labels"} for row in clean]


def _where_right(one: _Judged) -> Mapping[str, Any]:
    from skyray.families.redshift.metrics import evaluate_table

    right = np.asarray(one.table["label"], str) == np.asarray(one.table[RIGHT_LABEL], str)
    kept = {name: np.asarray(values)[right] for name, values in one.table.items()}
    return evaluate_table(kept, list(one.coarse), one.coarse)


def _wrong_caption(paper: Sequence[float], rows, score: str) -> str:
    ours = [signed(row["ours"], 1) for row in rows]
    return (
        f"5 and 10 % shuffled labels in all splits. Paper: {score} {signed(paper[0], 1)} and "
        f"{signed(paper[1], 1)} points. Ours: {ours[0]} and {ours[1]}; of the objects whose label "
        f"is right {ours[2]} and {ours[3]}."
    )


def _coarse(cells: Mapping[str, _Judged], folder: Path) -> list[Drawn | None]:
    panels, rows = {}, []
    for survey, title in _TITLES.items():
        section = cells[f"coarse-{survey}"].metrics["classification"]
        panels[title] = section
        rows += published_networks.coarse_rows(section, title, published.COARSE[title])
    accuracies = [f"{100 * row['ours']:.1f} %" for row in rows if "accuracy" in row["score"]]
    caption = (
        "Figure B1, networks trained on three classes only. Paper: 99 % (SDSS) and 98 % (4MOST) on "
        f"average, stars nearly 100 %, quasars 98 %. Ours: {' and '.join(accuracies)}."
    )
    return [
        published_networks.confusions_figure(panels, caption, folder / "B1_coarse.png", rows)
    ]  # fmt: skip


def _appendices(sources: Sources, own: _Judged, folder: Path) -> list[Drawn | None]:
    by_snr = own.metrics["classification"].get("by_snr")
    found, wavelength = _gradients(sources)
    return [
        by_snr and published_figures.accuracy_snr_figure(by_snr, folder / "C1_accuracy_snr.png"),
        published_spectra.gradients_figure(found, wavelength, folder / "D1_gradients.png"),
        published_figures.dispersion_figure(own.table, own.coarse, folder / "E1_dispersion.png"),
    ]


def _gradients(sources: Sources) -> tuple[dict[str, dict[str, Any]], np.ndarray]:
    """Return `gradients_figure`'s input: the brighter half of each class, the middle one first."""
    predictor = Predictor.from_bundle(sources.bundle, "cpu")
    family, recipe = predictor.family, predictor.family.recipe
    dataset = Dataset.open(sources.sdss)
    narrow = table_to_columns(dataset.to_table(["label", "snr", "redshift"]))
    splits = np.asarray(dataset.to_table(["split"])["split"].to_pylist())
    found = {}
    for name in family.redshift_classes:
        here = (narrow["label"].astype(str) == name) & (splits == "test")
        rows = np.flatnonzero(here & np.isfinite(narrow["redshift"]))
        if not len(rows):
            continue
        rows = rows[np.argsort(-narrow["snr"][rows], kind="stable")]
        rows = rows[: max(1, round(_BRIGHT * len(rows)))][:_SPECTRA]
        rows = np.roll(rows, -(len(rows) // 2))
        columns = table_to_columns(dataset.take(rows, family.columns(training=True)))
        x = predictor.inputs(columns)["x"]
        by_class, by_redshift = published_spectra.input_gradients(
            predictor.model, recipe, x, family.data.classes.index(name), name
        )
        found[name] = {"group": family.data.coarse.get(name, name), "z": columns["redshift"],
                       "x": x, "P": by_class, "dz": by_redshift}  # fmt: skip
    return found, recipe.input.grid().wavelength()


def _spectra(uri: str, classes: Sequence[str], most: int = 400) -> Columns:
    """Return spectra of some classes, at most so many of each."""
    dataset = Dataset.open(uri)
    label = np.asarray(dataset.to_table(["label"])["label"].to_pylist())
    rows = np.concatenate([np.flatnonzero(label == name)[:most] for name in classes])
    columns = table_to_columns(dataset.take(rows, ["label", "redshift", "snr", "flux"]))
    return {**columns, "wavelength": dataset.grid.wavelength()}
