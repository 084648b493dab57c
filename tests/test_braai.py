"""The torch port of braai gives the score that the stream carries."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from pyarrow import fs

from skyray.readers.base import SurveyFile, make_reader
from skyray.transforms.alerts import triplet_input

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

from braai import braai_scores, load_braai


def test_scores_are_those_of_the_stream(survey_data):
    reader = make_reader("ztf")
    file = SurveyFile(fs.LocalFileSystem(), str(survey_data / "ztf_alerts" / "alerts.parquet"))
    alerts = [a for unit in reader.units(file) for a in reader.read(file, unit)]
    chosen = [a for a in alerts if a.science.shape == (63, 63) and a.candidate["drb"] is not None]
    stamps = [[np.where(np.isnan(s), np.nanmedian(s), s) for s in a.stamps()] for a in chosen]
    image = triplet_input(np.array(stamps), np.full((len(chosen), 2), 63))
    network = load_braai(survey_data / "weights_braai" / "braai_d6_m9.weights.h5")
    ours = braai_scores(network, image)
    theirs = np.array([alert.candidate["drb"] for alert in chosen])
    assert len(ours) > 450  # those of old packets without a score (0, no version) are left out
    assert np.median(np.abs(ours - theirs)) < 0.002
    assert np.corrcoef(ours, theirs)[0, 1] > 0.8
