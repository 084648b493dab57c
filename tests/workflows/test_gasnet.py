"""The tables of `skyray reproduce gasnet-ii` beside the paper's; the steps are tested elsewhere."""

import numpy as np
import pytest
from typer.testing import CliRunner

from skyray.cards import load_card
from skyray.cli import app
from skyray.config import ConfigError
from skyray.data.dataset import NotADataset
from skyray.families.redshift import metrics
from skyray.workflows import gasnet

CARD = load_card("sdss_dr16")


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(2)
    label = np.repeat(CARD.classes, 40)
    coarse = np.array([CARD.coarse[name] for name in label])
    z = np.where(coarse == "STAR", 0.0, rng.uniform(0.1, 0.5, len(label)))
    own = z + np.where(coarse == "STAR", 0.0, 0.002 * (1 + z))
    return {
        "label": label, "label_pred": label, "spectype": coarse, "redshift": z,
        "snr": rng.uniform(5, 9, len(label)), "in_domain": np.ones(len(label), bool),
        "redshift_pred": own + 0.1 * (coarse != "STAR"), "redshift_err_pred": np.full(len(z), 0.01),
        "redshift_true_route": own, "redshift_err_true_route": np.full(len(z), 0.01),
        **{f"p_{name}": (label == name).astype(float) for name in CARD.classes},
    }  # fmt: skip


def test_the_tables_name_the_classes_of_the_cards():
    cards = ("sdss_dr16", "fourmost_mock", "desi_edr")
    for card, published in zip(cards, gasnet.DATASETS.values(), strict=True):
        assert set(load_card(card).classes) == set(published)


def test_dataset_table_counts_what_is_there(table):
    rows = {row["class"]: row for row in gasnet.dataset_table(table, gasnet.TABLE_1)}
    galaxies, stars = rows["GALAXY_AGN"], rows["STAR_A0"]
    here = table["label"] == "GALAXY_AGN"
    assert galaxies["objects"] == 40
    assert galaxies["z, ours"] == pytest.approx(table["redshift"][here].mean())
    assert (galaxies["z, paper"], stars["z, ours"]) == (0.21, None)
    assert stars["SNR, ours"] == pytest.approx(table["snr"][table["label"] == "STAR_A0"].mean())


def test_scores_are_those_of_the_true_class_with_end_to_end_beside(table):
    found = metrics.evaluate_table(table, CARD.classes, CARD.coarse, gasnet.VALIDATION_MAE)
    rows = {row["score"]: row for row in gasnet.scores_table(found)}
    delta = rows["mean Δz/(1+z), GALAXY"]
    assert (delta["paper"], delta["ours"]) == (0.0023, pytest.approx(0.002))
    assert delta["ours, end to end"] > 0.05
    assert rows["good fraction, GALAXY_AGN"]["ours"] == 0.0  # off by 0.002
    assert rows["good fraction, QSO_BROADLINE"]["ours"] == 1.0
    assert rows["mean accuracy of the classes"]["ours"] == 1.0


def test_scores_are_the_networks_own_where_templates_stand_beside(table):
    own = {"redshift_network": table["redshift_pred"]}
    own["redshift_network_err"] = table["redshift_err_pred"]
    fitted = {**table, **own, "redshift_pred": table["redshift"]}
    found = metrics.evaluate_table(fitted, CARD.classes, CARD.coarse, gasnet.VALIDATION_MAE)
    rows = {row["score"]: row for row in gasnet.scores_table(found)}
    assert rows["mean Δz/(1+z), GALAXY"]["ours, end to end"] > 0.05


@pytest.mark.parametrize("scale", ["laptop", "paper"])
def test_networks_are_reproduced_alone(tmp_path, monkeypatch, scale):
    with pytest.raises(ConfigError, match="networks alone"):
        gasnet.reproduce(str(tmp_path), scale, changes=("template_fit=corrected",))
    seen = []
    monkeypatch.setattr(gasnet, "_refuse_templates", lambda recipe, out: seen.append(recipe))
    with pytest.raises(NotADataset):
        gasnet.reproduce(str(tmp_path), scale, data=str(tmp_path / "nowhere"))
    assert seen[0].switch("template_fit") == "as_published"


def test_networks_table():
    sizes, counts = {"classifier": 4_160_000, "redshift": 4_156_209}, dict.fromkeys(
        ["classifier", *gasnet.VALIDATION_MAE], 7
    )  # fmt: skip
    rows = gasnet.networks_table(sizes, counts, 0.9, {"QSO_nan": 0.1})
    assert [row["network"] for row in rows] == ["classifier", *gasnet.VALIDATION_MAE]
    assert rows[0]["accuracy or MAE, ours"] == 0.9
    assert rows[5]["accuracy or MAE, ours"] == 0.1
    assert rows[1]["accuracy or MAE, ours"] is None  # a class without validation rows


def test_only_papers_that_take_a_dataset_are_given_one(tmp_path):
    done = CliRunner().invoke(
        app, ["reproduce", "des-galaxies", "--out", str(tmp_path), "--data", "somewhere"]
    )
    assert done.exit_code != 0
    assert "takes no dataset" in done.output
