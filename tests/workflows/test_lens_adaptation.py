"""The lens experiment end to end, as small as it goes."""

import json
from pathlib import Path

import numpy as np
import pytest

from skyray.bundles.bundle import Predictor
from skyray.cards import load_card
from skyray.families.lensing.survey_figures import measure
from skyray.simulate.base import make_simulator
from skyray.simulate.lens_cameras import CAMERAS

TINY = (
    "network.vision.architecture=resnet10t", "network.features=12", "train.epochs=1",
    "network.discriminator=[16]", "train_adaptation.epochs=2", "serving=float32",
)  # fmt: skip


@pytest.mark.slow
def test_experiment_from_simulation_to_table(ray_cluster, tmp_path):
    from skyray.data.simulate import simulate
    from skyray.workflows.lens_adaptation import reproduce

    data = str(tmp_path / "lenses")
    made = simulate(load_card("lenses_two_domains"), 120, 5, data, progress=False)
    assert sum(made["objects"].values()) == 120
    options = {"data": data, "networks": ["efficientnet"], "seeds": 1, "progress": False}
    options |= {"directions": ["hst_to_euclid"], "changes": TINY}
    out = tmp_path / "run"
    summary = reproduce(str(out), **options)
    assert list(summary) == ["HST → Euclid, EfficientNet-B0"]
    found = json.loads((out / "figures.json").read_text())
    assert found["table"][0]["published"].startswith("0.789 → 0.991")
    assert {row["survey"] for row in found["statistics"]} == {"euclid", "hst"}
    assert (out / "figures" / "lenses.png").exists()
    assert (out / "figures" / "lenses_corrected.png").exists()
    assert (out / "figures" / "auc.png").exists()
    assert reproduce(str(out), **options) == summary  # nothing is done twice
    bundle = next(Path(out).glob("hst_to_euclid-*/bundle"))
    lens = make_simulator(load_card("lenses_hst"), 1).record("CDM", 0)
    table = Predictor.from_bundle(bundle, device="cpu").predict_records([lens])
    assert table["network"][0].as_py() == "source"


@pytest.mark.parametrize("name", ["hst", "euclid"])
def test_images_show_the_snr_and_radius_that_were_asked(name):
    survey = make_simulator(load_card(f"lenses_{name}"), 2)
    found = []
    for index in range(12):
        image = survey.record("NO_SUBSTRUCTURE", index).image[0]
        found.append(measure(image, CAMERAS[name].pixel_scale_arcsec, name))
    assert np.mean([f["snr"] for f in found]) == pytest.approx(20, rel=0.1)
    assert np.mean([f["ring_arcsec"] for f in found]) == pytest.approx(1.66, rel=0.1)
