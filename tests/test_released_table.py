"""The benchmark of GaSNet-II's released redshifts, on a small file of the same columns."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import requests
from astropy.table import Table

from skyray.families.redshift.released import CLASSES, read_released

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import released_table

_EACH = 40


def released(shape: tuple[int, ...] = ()) -> Table:
    """A table as the authors' code writes it: every second redshift off by four good limits."""
    label = np.repeat(list(CLASSES), _EACH)
    z = np.linspace(0.1, 0.5, len(label))
    limit = np.where(np.char.startswith(label, "QSO"), 0.015, 0.0015)
    off = np.where(np.arange(len(label)) % 2, 4.0, 0.5) * limit * (1 + z)
    kind, _, subclass = np.char.partition(label, "_").T
    return Table({
        "label": z.reshape(-1, *shape), "SNR": np.linspace(1, 30, len(z)), "CLASS": kind,
        "SUBCLASS": subclass, "PLATE": np.arange(len(z)), "MJD": np.arange(len(z)),
        "FIBERID": np.arange(len(z)), "pred_bar": (z + off).astype(np.float32),
        "pred_std": (off / 2).astype(np.float32), "class": kind, "subclass": subclass,
    })  # fmt: skip


def write(table: Table, folder: Path) -> Path:
    table.write(folder / "made.fits", overwrite=True)
    return folder / "made.fits"


@pytest.mark.parametrize("shape", [(), (1,)])
def test_numbers_are_those_of_the_definitions(tmp_path, monkeypatch, shape):
    table, report = write(released(shape), tmp_path), tmp_path / "rows.json"
    monkeypatch.setattr(
        sys, "argv", ["released_table.py", "--table", str(table), "--json", str(report)]
    )
    released_table.main()
    rows = {row["name"]: row for row in json.loads(report.read_text())}
    assert rows["rows"]["value"] == 6 * _EACH
    # |ln((1+z+off)/(1+z))| ≈ .5 or 4 limits: one half is good; Δz is the mean of both
    assert rows["good fraction, GALAXY_AGN"]["value"] == 0.5
    assert rows["mean Δz/(1+z), GALAXY"]["value"] == pytest.approx(2.25 * 0.0015, rel=1e-3)
    assert rows["mean Δz/(1+z), QSO"]["value"] == pytest.approx(2.25 * 0.015, rel=1e-3)
    assert rows["τ < 3, QSO_nan"]["value"] == 1.0
    assert rows["within 1 σ, QSO_nan"]["value"] == 0.0
    assert "DIFFERS" in rows["good fraction, GALAXY_AGN"]["note"]
    assert rows["mean Δz/(1+z), QSO"]["reference"] == 0.021  # the paper's


def test_it_is_skipped_with_the_reason_offline(monkeypatch, capsys, tmp_path):
    def offline(*_, **__):
        raise requests.ConnectionError("no route")

    monkeypatch.setattr(requests, "get", offline)
    monkeypatch.setattr(sys, "argv", ["released_table.py", "--keep", str(tmp_path / "a.fits")])
    released_table.main()
    assert "skipped" in (out := capsys.readouterr().out)
    assert "no route" in out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.remove_column("pred_std"), r"made.fits: columns \['pred_std'\] are missing"),
        (lambda t: t["CLASS"].__setitem__(3, "STAR"), "row 3: expected a class"),
        (lambda t: t["pred_bar"].__setitem__(5, np.nan), "row 5: pred_bar: expected a number"),
        (lambda t: t.replace_column("SNR", t["class"]), "SNR: expected one number a row"),
        (lambda t: t.remove_rows(slice(None)), "expected rows"),
    ],
)
def test_what_is_not_the_released_table_is_refused_by_name(tmp_path, change, said):
    table = released()
    change(table)
    with pytest.raises(ValueError, match=said):
        read_released(write(table, tmp_path))


def test_what_is_no_fits_table_is_refused(tmp_path):
    (tmp_path / "made.fits").write_text("404: Not Found")
    with pytest.raises(ValueError, match="expected a FITS table"):
        read_released(tmp_path / "made.fits")
