"""BTSbot's published triplets: rows of an array and a table; nothing of theirs becomes code."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pyarrow import fs

from skyray.cards import load_card
from skyray.data.rows import row_of
from skyray.readers.base import SurveyFile, make_reader
from skyray.records import InvalidRecord
from skyray.transforms.alerts import FEATURES

CARD = load_card("btsbot_triplets")


def read(path: Path, **options) -> list:
    reader = make_reader("ztf_triplets", options)
    assert reader.claims(str(path))
    file = SurveyFile(fs.LocalFileSystem(), str(path))
    return [record for unit in reader.units(file) for record in reader.read(file, unit)]


def made(folder: Path, rows: int = 5, **columns) -> Path:
    triplets = np.random.default_rng(2).normal(0, 1, (rows, 63, 63, 3)).astype(np.float32)
    np.save(folder / "train_triplets_v1.npy", triplets)
    table = {
        "objectId": [f"ZTF{n // 2}" for n in range(rows)], "candid": np.arange(rows) + 10**18,
        "jd": 2460000.0 + np.arange(rows), "fid": 1, "ra": 10.0, "dec": -5.0, "label": 1,
        "isdiffpos": "t", "magpsf": 18.5, **columns,
    }  # fmt: skip
    pd.DataFrame(table).to_csv(folder / "train_cand_v1.csv", index=False)
    return folder / "train_triplets_v1.npy"


def test_the_published_example_has_the_published_features(survey_data, tmp_path):
    source = survey_data / "ztf_btsbot_example"
    triplets = np.load(source / "triplets.npz")["triplets"]
    np.save(tmp_path / "test_triplets_v11.npy", triplets)
    shutil.copy(source / "candidates.csv", tmp_path / "test_cand_v11.csv")
    table = pd.read_csv(source / "candidates.csv")
    for path in (tmp_path / "test_triplets_v11.npy", source / "triplets.npz"):
        options = {"table": "candidates.csv"} if path.suffix == ".npz" else {}
        rows = [row_of(CARD, alert) for alert in read(path, **options)]
        metadata = np.array([row["metadata"] for row in rows])
        expected = table[list(FEATURES)].to_numpy(np.float64)
        np.testing.assert_allclose(metadata, expected, rtol=2e-7)
        stored = np.array([row["triplet"] for row in rows])
        np.testing.assert_array_equal(stored, np.moveaxis(triplets, -1, 1))
        assert [row["label"] == "BRIGHT_TRANSIENT" for row in rows] == list(table["label"] == 1)
        assert len({row["observation_id"] for row in rows}) == len(rows)  # candid is rounded there
        assert len({row["object_key"] for row in rows}) == 2


def test_identifiers_are_those_of_the_table_and_rows_are_numbered(tmp_path):
    alerts = read(made(tmp_path))
    assert [alert.candid for alert in alerts] == [10**18 + n for n in range(5)]
    assert alerts[3].object_id == str(10**18 + 3)
    assert alerts[3].source.endswith("train_triplets_v1.npy#3")


def test_a_bad_row_does_not_take_the_others_along(tmp_path):
    found = read(made(tmp_path, jd=["x", 2460001.0, 2460002.0, "", 2460004.0]))
    reasons = [getattr(item, "reason", "read") for item in found]
    assert reasons == ["packet_field_invalid", "read", "read", "packet_field_invalid", "read"]


def refused(path: Path) -> str:
    with pytest.raises(InvalidRecord) as refusal:
        read(path)
    return refusal.value.reason


def test_arrays_that_do_not_fit_are_refused(tmp_path):
    path = made(tmp_path)
    whole = path.read_bytes()
    np.save(path, np.array([object()] * 5), allow_pickle=True)
    assert refused(path) == "npy_invalid"
    for values in (np.ones((5, 63, 63)), np.ones((5, 63, 63, 4)), np.ones((4, 63, 63, 3), "F")):
        np.save(path, values)
        assert refused(path) in ("npy_invalid", "rows_differ")
    path.write_bytes(whole[:-1000])
    assert refused(path) == "npy_invalid"
    path.write_bytes(b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 70_000)
    assert refused(path) == "npy_invalid"
    path.write_bytes(whole)
    (tmp_path / "train_cand_v1.csv").unlink()
    assert refused(path) == "table_missing"
