"""Figures: which are written for which table, and that they show the data they are given."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from skyray.families.redshift import figures, metrics

CLASSES = ("STAR_F5", "GALAXY_AGN", "GALAXY_nan", "QSO_nan")
COARSE = dict(zip(CLASSES, ("STAR", "GALAXY", "GALAXY", "QSO"), strict=True))
WAVELENGTH = np.linspace(3600.0, 9800.0, 700)
ALL = {
    "confusion.png", "confusion_coarse.png", "redshift_end_to_end.png", "redshift_true_class.png",
    "redshift_networks_alone.png", "scores_by_snr.png", "redshift_errors.png", "reliability.png",
    "example_spectra.png", "training_losses.png",
}  # fmt: skip


def draw_table(rows: int = 1600, seed: int = 0) -> dict[str, np.ndarray]:
    """A table as scoring leaves it; spectra are a continuum with one line at the redshift."""
    rng = np.random.default_rng(seed)
    label = rng.choice(CLASSES, rows)
    coarse = np.array([COARSE[name] for name in label])
    snr = rng.lognormal(1.8, 1.0, rows)
    called = np.where(rng.random(rows) < 0.6 * np.exp(-snr / 4), rng.choice(CLASSES, rows), label)
    scale = np.select([coarse == "STAR", coarse == "GALAXY"], [0.0, 0.4], 1.8)
    truth = scale * rng.uniform(0.2, 2.0, rows)
    sigma = 0.004 * (1 + truth) / snr
    own = truth + sigma * rng.standard_t(3, rows)
    own[rng.random(rows) < 0.03] += 0.3
    confidence = np.where(called == label, rng.beta(9, 1, rows), rng.beta(3, 3, rows))
    probability = {
        f"p_{name}": np.where(called == name, confidence, (1 - confidence) / (len(CLASSES) - 1))
        for name in CLASSES
    }
    line = 3 * np.exp(-0.5 * ((WAVELENGTH - 2798.75 * (1 + truth[:, None])) / 30) ** 2)
    history = [
        {"stage": stage, "epoch": e, "train_loss": 2 / (e + 1), "validation_loss": 2.2 / (e + 1)}
        for stage in ("classifier", "redshift/QSO_nan/0", "redshift/QSO_nan/1")
        for e in range(12)
    ]
    return {
        "label": label.astype(object), "label_pred": called.astype(object), "spectype": coarse,
        "redshift": truth, "snr": snr, "in_domain": np.ones(rows, bool),
        "redshift_pred": np.where(called == label, own, own + 0.2), "redshift_err_pred": sigma,
        "redshift_network": own, "redshift_network_err": 2 * sigma,
        "redshift_true_route": own, "redshift_err_true_route": sigma, **probability,
        "wavelength": WAVELENGTH, "flux": 1 + line + rng.normal(size=line.shape) / 5,
        "history": [*history, {"stage": "redshift/STAR_F5", "skipped": "no rows"}],
    }  # fmt: skip


@pytest.fixture(scope="module")
def table() -> dict[str, np.ndarray]:
    return draw_table()


def write(table, folder) -> set[str]:
    scored = metrics.evaluate_table(table, CLASSES, COARSE)
    paths = figures.write_figures(table, scored, folder, CLASSES, COARSE)
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert min(image.size) > 250
            pixels = np.asarray(image.convert("L"))
        assert 0.02 < np.mean(pixels < 250) < 0.9, f"{path.name} is blank or full"
    return {path.name for path in paths}


def test_all_figures_of_a_full_table(table, tmp_path):
    assert write(table, tmp_path / "new") == ALL


def test_figures_follow_what_the_table_holds(table, tmp_path):
    needed = ("label", "label_pred", "redshift", "redshift_pred", "redshift_err_pred")
    found = write({name: table[name] for name in needed}, tmp_path)
    assert found == {
        "confusion.png", "confusion_coarse.png", "redshift_end_to_end.png", "redshift_errors.png",
    }  # fmt: skip


def test_coarsely_labelled_real_sets_get_figures_too(table, tmp_path):
    coarse = {**table, "label": table["spectype"].astype(object)}
    del coarse["history"], coarse["flux"]
    coarse["redshift_true_route"] = np.full(1600, np.nan)  # no network for an unknown subclass
    found = write(coarse, tmp_path)
    assert {"confusion_coarse.png", "redshift_end_to_end.png", "reliability.png"} <= found
    assert "confusion.png" not in found
    assert "redshift_true_class.png" not in found


def test_few_objects_are_drawn(table, tmp_path):
    few = {name: values[:6] if len(values) == 1600 else values for name, values in table.items()}
    assert "redshift_end_to_end.png" in write(few, tmp_path)


def test_stars_only_have_no_redshift_figures(table, tmp_path):
    stars = table["spectype"] == "STAR"
    rows = {name: v[stars] if len(v) == 1600 else v for name, v in table.items()}
    found = write(rows, tmp_path)
    assert not {"redshift_end_to_end.png", "redshift_errors.png"} & found


def test_examples_show_rare_predictions(table, tmp_path):
    few = {name: values[:40] if len(values) == 1600 else values for name, values in table.items()}
    few["label_pred"] = np.array(["GALAXY_nan"] * 39 + ["QSO_nan"], dtype=object)
    path = figures.examples_figure(few, tmp_path / "e.png", count=2)
    with Image.open(path) as image:
        assert image.width > 2 * image.height, "two panels side by side"
    assert figures.examples_figure({**few, "label_pred": few["label_pred"][:0]}, path) is None
