"""`skyray fit` end to end on mock files, and templates learned from known redshifts."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from skyray.bundles.bundle import Predictor
from skyray.cards import load_card
from skyray.config import ConfigError
from skyray.data.dataset import Dataset
from skyray.data.rows import columns_of
from skyray.inference.evaluate import evaluate
from skyray.models.template_bases import from_arrays
from skyray.records import Grid
from skyray.simulate import template_bases
from skyray.simulate.spectra import MockSurvey
from skyray.workflows import learned_templates
from skyray.workflows.fit import fit, read_templates, write_template_bundle
from skyray.workflows.learned_templates import learn_templates


@pytest.fixture(scope="module")
def small_bases():
    return template_bases.make_bases(seed=2, objects=60)


def test_a_bundle_of_templates_answers_single_spectra(tmp_path, small_bases):
    card = load_card("sdss_coarse")
    write_template_bundle(str(tmp_path / "bundle"), card, small_bases)
    predictor = Predictor.from_bundle(str(tmp_path / "bundle"))
    survey = MockSurvey(card, seed=8)
    records = [survey.spectrum("GALAXY", n) for n in range(3)]
    table = predictor.predict_records(records, detail=True).to_pylist()
    for row, record in zip(table, records, strict=True):
        assert row["label"] == "GALAXY"
        assert abs(row["redshift"] - record.redshift) < 1e-3
        assert row["redshift_survey"] == record.redshift
        assert row["class_survey"] == "GALAXY"
        assert len(row["redshift_pdf"]) > 1000
    kept = {k.removeprefix("templates/"): v for k, v in predictor.tensors.items()}
    assert [b.name for b in from_arrays(kept)] == [b.name for b in small_bases]


@pytest.mark.parametrize("name", ["sdss_coarse", "sdss_dr16", "desi_bgs"])
def test_a_bundle_of_templates_is_scored_by_the_classes_it_can_tell(tmp_path, small_bases, name):
    """Cards with subclasses or one class alone; a spectrum without a good pixel has no answer."""
    card = load_card(name)
    write_template_bundle(str(tmp_path / "bundle"), card, small_bases)
    predictor = Predictor.from_bundle(str(tmp_path / "bundle"))
    survey, labels = MockSurvey(card, seed=8), [*card.classes, card.classes[0]]
    records = [survey.spectrum(label, n) for n, label in enumerate(labels)]
    columns = columns_of(records, predictor.info)
    columns["ivar"][-1] = 0.0
    found = predictor.predict(columns)
    assert found["label"][-1] == ""
    kinds = ("GALAXY", "QSO", "STAR")
    probability = np.stack([found[f"p_{kind}"] for kind in kinds], axis=1)
    np.testing.assert_allclose(probability[:-1].sum(axis=1), 1.0, atol=1e-5)
    assert np.isnan(probability[-1]).all()
    assert np.isnan(found["probability"][-1])
    best = [kinds[place] for place in probability[:-1].argmax(axis=1)]
    assert best == found["label"][:-1].tolist()
    told = {column.name for column in predictor.family.output_columns()}
    assert {f"p_{kind}" for kind in kinds} <= told
    truth = {"label": np.array(labels, dtype=object)}
    for field in ("spectype", "redshift", "redshift_err", "snr", "zwarning"):
        truth[field] = np.array([getattr(record, field) for record in records])
    table = truth | {f"{k}_pred" if k in truth else k: v for k, v in found.items()}
    scores = predictor.family.evaluate(table, predictor.calibration)
    right = found["label"].astype(str) == [card.coarse.get(label, label) for label in labels]
    assert scores["accuracy"] == scores["coarse_accuracy"] == pytest.approx(right.mean())
    assert "networks_alone" not in scores["redshift"]
    assert scores["classification"]["confusion"][kinds.index(card.coarse[labels[-1]])][-1] == 1
    assert predictor.family.figures(table, scores, tmp_path)


def test_only_spectra_can_be_fitted(tmp_path):
    with pytest.raises(ConfigError, match="card of spectra"):
        write_template_bundle(str(tmp_path), load_card("ztf_bts"), [])


@pytest.mark.slow
def test_survey_files_become_a_catalogue_with_a_page(ray_cluster, tmp_path):
    from skyray.data.simulate import simulate

    card = load_card("sdss_coarse")
    simulate(card, 60, 5, str(tmp_path / "known"), progress=False)
    files = str(tmp_path / "files")
    simulate(card, 9, 6, None, as_files=files, progress=False)
    out = tmp_path / "fitted"
    found = fit([files], str(out), template_sources=[str(tmp_path / "known")], progress=False)
    assert found["objects"] == 9
    assert sum(found["classes"].values()) == 9
    table = pq.read_table(out / "catalogue").to_pandas()
    assert (table["class_fit"] == table["label"]).all()
    assert (table["class_fit"] == table["class_survey"]).sum() >= 6
    assert (table["quality_words"].str.len() > 0).equals(table["quality"] != 0)
    assert "small_delta_chi2" in (out / "index.html").read_text(encoding="utf-8")
    assert "C IV" in (out / "spectra.html").read_text(encoding="utf-8")
    scores = evaluate(
        str(out / "bundle"), str(tmp_path / "known"), str(tmp_path / "scores"), split=None
    )
    assert scores["coarse_accuracy"] > 0.8
    assert (tmp_path / "scores" / "index.html").exists()
    learned = learn_templates(Dataset.open(str(tmp_path / "known")))
    assert {basis.spectype for basis in learned} == {"GALAXY", "QSO", "STAR"}
    assert all(np.isfinite(basis.vectors).all() for basis in learned)


class FewSpectra:
    """What `learn_templates` asks of a dataset; half of its rows are of the test split."""

    uri, grid, card = "few", Grid("log10", 3.6, 1e-4, 300), load_card("sdss_coarse")

    def __init__(self, warnings):
        rows, rng = len(warnings), np.random.default_rng(1)
        self.learnt, flux = [], 1.0 + 0.1 * rng.normal(size=(rows, 300))
        self.columns = {
            "spectype": ["GALAXY"] * rows, "label": ["GALAXY"] * rows,
            "redshift": np.full(rows, 0.1), "zwarning": np.array(warnings),
            "split": ["train", "test"] * (rows // 2), "flux": flux,
            "ivar": np.full((rows, 300), 100.0), "mask": np.zeros((rows, 300), np.uint8),
        }  # fmt: skip

    def count(self) -> int:
        return len(self.columns["label"])

    def take(self, rows, names):
        if "flux" in names:
            self.learnt = rows.tolist()
        return {name: np.asarray(self.columns[name])[rows] for name in names}


def test_templates_are_not_learned_from_the_test_split_nor_from_doubted_redshifts(monkeypatch):
    monkeypatch.setattr(learned_templates, "table_to_columns", lambda columns: columns)
    known = FewSpectra([0, 0, -1, 0, 4, 0] * 8)
    learn_templates(known)
    assert known.learnt == [row for row in range(0, 48, 2) if row % 6 != 4]


def test_no_template_source_means_the_built_in_ones():
    assert read_templates([]) is None
