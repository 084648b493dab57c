"""`skyray reproduce gasnet-ii`: what it refuses, and the datasets that it makes of a survey."""

from dataclasses import dataclass

import numpy as np
import pytest
from typer.testing import CliRunner

from skyray.cards import load_card
from skyray.cli import app
from skyray.config import ConfigError
from skyray.data.dataset import Dataset, NotADataset, table_to_columns
from skyray.families.redshift import metrics, published
from skyray.inference.predict import KEY
from skyray.workflows import gasnet, gasnet_data, gasnet_page

CARD = load_card("sdss_dr16")


def test_the_tables_name_the_classes_of_the_cards():
    cards = ("sdss_dr16", "fourmost_mock", "desi_edr")
    for card, paper in zip(cards, published.DATASETS.values(), strict=True):
        assert set(load_card(card).classes) == set(paper)
    for (_, among), card in zip(gasnet.AMONG.items(), cards, strict=False):
        assert set(among) < set(load_card(card).classes)


@pytest.mark.parametrize("scale", ["laptop", "paper"])
def test_networks_are_reproduced_alone(tmp_path, monkeypatch, scale):
    with pytest.raises(ConfigError, match="networks alone"):
        gasnet.reproduce(str(tmp_path), scale, changes=("template_fit=corrected",))
    seen = []
    monkeypatch.setattr(gasnet, "_refuse_templates", lambda recipe, out: seen.append(recipe))
    with pytest.raises(NotADataset):
        gasnet.reproduce(str(tmp_path), scale, data=str(tmp_path / "nowhere"))
    assert seen[0].switch("template_fit") == "as_published"
    assert (seen[0].mode == "as_published") is (scale == "paper")


def test_a_released_table_that_is_none_is_refused_before_anything_is_trained(tmp_path):
    (tmp_path / "released.fits").write_text("404: Not Found")
    with pytest.raises(ValueError, match="expected a FITS table"):
        gasnet.reproduce(str(tmp_path), "laptop")


def test_only_papers_that_take_a_dataset_are_given_one(tmp_path):
    done = CliRunner().invoke(
        app, ["reproduce", "des-galaxies", "--out", str(tmp_path), "--data", "somewhere"]
    )
    assert done.exit_code != 0
    assert "takes no dataset" in done.output


@dataclass
class Survey:
    """A dataset of which only the labels matter."""

    label: np.ndarray
    card = CARD
    uri = "survey"


@pytest.fixture
def made(monkeypatch):
    """What would be written: the card and observation_id → label."""
    found = []

    def labels(survey):
        names = np.array([f"{i:05d}" for i in range(len(survey.label))])
        return names, survey.label

    monkeypatch.setattr(gasnet_data, "_labels", labels)
    monkeypatch.setattr(gasnet_data, "_relabelled", lambda _, card, chosen, out: found.append(
        (card, chosen)))  # fmt: skip
    return found


def test_a_coarse_dataset_holds_equally_many_of_each_class(made, tmp_path):
    survey = Survey(np.repeat(CARD.classes, 30))
    gasnet_data.coarse_dataset(survey, str(tmp_path / "c"), 50, 1)
    gasnet_data.coarse_dataset(survey, str(tmp_path / "d"), 5000, 1)  # as many as quasars
    for (card, chosen), each in zip(made, (50, 60), strict=True):
        assert card.classes == ["STAR", "GALAXY", "QSO"]
        names, counts = np.unique(list(chosen.values()), return_counts=True)
        assert dict(zip(names, counts, strict=True)) == dict.fromkeys(card.classes, each)
        assert all(CARD.coarse[survey.label[int(n)]] == c for n, c in chosen.items())
    with pytest.raises(ConfigError, match="stars, galaxies and quasars"):
        gasnet_data.coarse_dataset(Survey(np.array(["STAR_A0"])), str(tmp_path / "e"), 5, 1)


def test_a_contaminated_dataset_holds_some_classes_with_some_labels_shuffled(made, tmp_path):
    survey, among = Survey(np.repeat(CARD.classes, 200)), gasnet.AMONG["sdss"]
    for share in (0.0, 0.1):
        gasnet_data.contaminated_dataset(survey, str(tmp_path / f"{share}"), among, share, 3)
    for (card, chosen), share in zip(made, (0.0, 0.1), strict=True):
        assert tuple(card.classes) == among
        assert len(chosen) == 600
        wrong = [survey.label[int(name)] != label for name, label in chosen.items()]
        assert np.mean(wrong) == pytest.approx(share * 2 / 3, abs=0.025)
    with pytest.raises(ConfigError, match="none of"):
        gasnet_data.contaminated_dataset(Survey(np.array(["STAR_A0"])), str(tmp_path / "n"),
                                         among, 0.1, 3)  # fmt: skip


def test_only_labels_change_in_the_datasets_that_are_made(mock_dataset, tmp_path):
    source, among = Dataset.open(mock_dataset), ["STAR", "GALAXY", "QSO"]
    made = gasnet_data.contaminated_dataset(source, str(tmp_path / "w"), among, 0.3, 1)
    assert gasnet_data.contaminated_dataset(source, made, among, 0.3, 1) == made  # not again
    before, after = (
        table_to_columns(one.to_table().sort_by(KEY)) for one in (source, Dataset.open(made))
    )
    for name in (KEY, "split", "redshift", "flux", "ivar", "object_key"):
        np.testing.assert_array_equal(before[name], after[name])
    right = gasnet_data.extra_of(after["extra"], gasnet_data.RIGHT_LABEL)
    assert right == before["label"].tolist()
    assert 0 < np.mean(before["label"] != after["label"]) < 0.3
    assert sorted(before["label"]) == sorted(after["label"])  # shuffled


def _scored(among, share: float) -> gasnet_page._Judged:
    """Faultless predictions, scored against labels of which a share is wrong."""
    right = np.repeat(among, 100)
    label = np.where(np.arange(300) % 100 < 100 * share, np.roll(right, 100), right)
    coarse, z = {name: CARD.coarse.get(name, "GALAXY") for name in among}, np.full(300, 0.2)
    table = {"label": label, "label_pred": right, gasnet_data.RIGHT_LABEL: right, "redshift": z,
             "redshift_pred": z, "redshift_err_pred": z / 100, "redshift_true_route": z,
             "redshift_err_true_route": z / 100, "snr": 50 * z}  # fmt: skip
    return gasnet_page._Judged(table, metrics.evaluate_table(table, among, coarse), coarse, {})


def test_wrong_labels_cost_what_they_are_and_nothing_where_the_label_is_right(tmp_path):
    shares = gasnet.SHARES
    cells = {f"wrong-{survey}-{round(100 * share)}": _scored(list(among), share)
             for survey, among in gasnet.AMONG.items() for share in shares}  # fmt: skip
    sources = gasnet_page.Sources("", "", "", {}, gasnet.AMONG, shares)
    drawn = gasnet_page._wrong(sources, cells, tmp_path)
    assert [one.path.name[:2] for one in drawn] == ["A1", "A2", "A3", "A3", "A3"]
    for one, paper in zip(drawn, ((-3.3, -7.7), (-5.7, -9.0), (-2.0, -3.3)), strict=False):
        assert tuple(row["paper"] for row in one.rows[:2]) == paper
    assert [row["ours"] for row in drawn[0].rows] == [pytest.approx(v) for v in (-5, -10, 0, 0)]
