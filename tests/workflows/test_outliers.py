"""`skyray outliers` end to end: train two tiny models, search, look at what it wrote, serve it."""

from __future__ import annotations

import socket
from copy import deepcopy

import numpy as np
import pyarrow.parquet as pq
import pytest
import requests
import torch
from astropy.table import Table

from skyray.bundles.bundle import Predictor, write_bundle
from skyray.cards import load_card
from skyray.data.dataset import Dataset, table_to_columns
from skyray.data.rows import columns_of
from skyray.families.base import DataInfo, load_recipe
from skyray.families.outliers.family import OutliersFamily
from skyray.simulate.spectra import MockSurvey

TINY = (
    "network.widths=[4,6,8]", "network.encoder_hidden=[8]", "network.decoder_hidden=[8,16]",
    "network.latents=3", "network.rest_pixels=1200", "network.subpixels=1", "input.rebin=8",
    "flow.hidden=8", "flow.layers=2", "train.epochs=2", "train_invariance.epochs=2",
    "train_flow.epochs=2",
)  # fmt: skip


def untrained_stars(folder) -> None:
    """Write a bundle as training leaves it, of a calibrated network that has not learnt."""
    card = load_card("desi_mws")
    grid = card.grid.grid()
    info = DataInfo(card.name, card.record, tuple(card.classes), card.coarse, "0" * 12, grid=grid)
    family = OutliersFamily(load_recipe("outliers/desi_mws_laptop").override(TINY), info)
    mocks = MockSurvey(card, seed=3)
    spectra = [mocks.spectrum("STAR", index) for index in range(40)]
    inputs = family.transform(columns_of(spectra, info), training=True)
    torch.manual_seed(0)
    model = family.build_model()
    with torch.no_grad():
        model.flow.set_standardisation(model.autoencoder.encoder(torch.as_tensor(inputs["y"])))
    ready = family.optimise_for_inference(deepcopy(model))
    calibration, tensors = family.calibrate(ready, inputs)
    write_bundle(str(folder), family, model, calibration, tensors, {"version": "stars-1"})


@pytest.fixture(scope="module")
def searched(ray_cluster, tmp_path_factory):
    """A mock survey, galaxies trained on two workers, stars not trained, and a finished search."""
    from skyray.data.simulate import simulate
    from skyray.training.train import train
    from skyray.workflows.outliers import find_outliers

    folder = tmp_path_factory.mktemp("outliers")
    survey = str(folder / "bgs")
    simulate(load_card("desi_bgs"), 160, 3, survey, planted=0.1, progress=False)
    recipe = load_recipe("outliers/desi_bgs_laptop").override(TINY)
    train(recipe, survey, str(folder / "galaxies"), workers=2, side_by_side=1, progress=False)
    untrained_stars(folder / "stars")
    result = find_outliers(
        str(folder / "galaxies"), [survey], str(folder / "search"),
        star_bundle=str(folder / "stars"), top=12, explorer_rows=40, progress=False,
    )  # fmt: skip
    return folder, result


@pytest.mark.slow
def test_catalogue_ranks_every_object(searched):
    folder, result = searched
    table = pq.read_table(folder / "search" / "catalogue").to_pandas()
    assert len(table) == result["objects"] == 160
    assert sorted(table["rank"]) == list(range(1, 161))
    ordered = table.sort_values("rank")
    assert ordered["strangeness"].is_monotonic_decreasing
    assert ordered["object_id"].tolist()[:10] == result["strangest"]
    np.testing.assert_allclose(
        table["log_ratio"], table["neg_log_p_star"] - table["neg_log_p"], rtol=1e-4, atol=1e-4
    )
    assert np.isfinite(table["log_likelihood_ratio"]).all()
    assert not np.allclose(table["log_likelihood_ratio"], table["log_ratio"])
    fits = Table.read(folder / "search" / "catalogue.fits")
    assert len(fits) == 160
    assert str(fits["norm"].unit)


@pytest.mark.slow
def test_batch_scores_are_the_predictors(searched):
    folder, _ = searched
    table = pq.read_table(folder / "search" / "catalogue").to_pandas()
    predictor = Predictor.from_bundle(folder / "galaxies", device="cpu")
    rows = Dataset.open(folder / "bgs").to_table([*predictor.family.columns(False), "object_id"])
    output = predictor.predict(table_to_columns(rows))
    assert rows["object_id"].to_pylist() == table["object_id"].tolist()
    for name in ("latent_0", "neg_log_p", "chi2_reduced"):
        np.testing.assert_allclose(table[name], output[name], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_gallery_page_and_nearest(searched):
    from skyray.workflows.outliers import nearest_spectra

    folder, result = searched
    gallery = (folder / "search" / "gallery.html").read_text()
    for name in result["strangest"]:
        assert name in gallery
    assert (folder / "search" / "index.html").exists()
    found = nearest_spectra(str(folder / "search"), result["strangest"][0], 4)
    assert len(found) == 4
    assert result["strangest"][0] not in found
    assert list(found.values()) == sorted(found.values())
    with pytest.raises(KeyError, match="not among"):
        nearest_spectra(str(folder / "search"), "nobody")


@pytest.mark.slow
def test_evaluate_reports_invariance_and_planted_outliers(searched):
    from skyray.inference.evaluate import evaluate

    folder, _ = searched
    scores = evaluate(str(folder / "galaxies"), str(folder / "bgs"), str(folder / "scores"),
                      split=None)  # fmt: skip
    assert scores["invariance_ratio"] > 0
    assert 0 <= scores["planted_auc_strangeness"] <= 1
    assert list((folder / "scores" / "figures").glob("*.png"))


@pytest.mark.slow
def test_service_scores_a_spectrum_with_redshift_and_refuses_one_without(searched):
    from skyray.inference.serving import load_service, running_service

    folder, _ = searched
    rows = Dataset.open(folder / "bgs").to_table(["object_id", "flux", "ivar", "redshift"])
    columns = table_to_columns(rows.slice(0, 1))
    spectrum = {
        "object_id": "a", "medium": "vacuum",
        "wavelength": Dataset.open(folder / "bgs").grid.wavelength().tolist(),
        "flux": columns["flux"][0].tolist(), "ivar": columns["ivar"][0].tolist(),
        "redshift": float(columns["redshift"][0]),
    }  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = "serve/config.yaml"
    service = load_service(place, {"bundle": str(folder / "galaxies")}, "127.0.0.1", port)
    with running_service(service) as url:
        answer = requests.post(f"{url}/predict", json=spectrum, params={"detail": True}, timeout=60)
        (prediction,) = answer.json()["predictions"]
        assert answer.status_code == 200
        assert len(prediction["model"]) > 100
        assert 0 <= prediction["percentile"] <= 100
        expected = Predictor.from_bundle(folder / "galaxies", device="cpu").predict(
            columns | {"mask": (columns["ivar"] <= 0).astype(np.uint8)}
        )
        assert prediction["neg_log_p"] == pytest.approx(float(expected["neg_log_p"][0]), rel=1e-4)
        del spectrum["redshift"]
        refused = requests.post(f"{url}/predict", json=spectrum, timeout=60)
        assert refused.status_code == 422
        assert refused.json()["error"]["reason"] == "not_for_this_model"
        assert "redshift" in refused.json()["error"]["detail"]
