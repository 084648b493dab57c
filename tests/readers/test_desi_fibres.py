"""Fibres of DESI: which saw a target, by what their file says, and exact names."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits
from tests.desi_files import coadd_file, read

from skyray.records import InvalidRecord


def fibres(**columns) -> fits.HDUList:
    """A coadd whose FIBERMAP has these columns and nothing else."""
    hdus = coadd_file(rows=len(columns["TARGETID"]))
    forms = {"TARGETID": "K", "OBJTYPE": "3A"}
    made = [fits.Column(n, forms.get(n, "J"), array=v) for n, v in columns.items()]
    hdus["FIBERMAP"] = fits.BinTableHDU.from_columns(made, name="FIBERMAP")
    return hdus


SKY_ID = 616094114412233066


FIBRES = {
    "objtype": (
        dict(TARGETID=[1, 2, 3, 4, -5], OBJTYPE=["TGT", "SKY", "BAD", "NON", ""]),
        ["", "sky_fibre", "fibre_broken", "fibre_unassigned", ""],
    ),
    "lower case": (dict(TARGETID=[1, 2], OBJTYPE=["tgt", "sky"]), ["", "sky_fibre"]),
    "fiberstatus": (
        dict(TARGETID=range(1, 7), FIBERSTATUS=[0, 1 << 2, 1 << 16, 1, 1 << 3, 1 << 9]),
        ["", "fibre_broken", "fibre_broken", "fibre_unassigned", "", "fibre_broken"],
    ),
    "coadd_fiberstatus first": (
        dict(TARGETID=[1, 2], COADD_FIBERSTATUS=[0, 4], FIBERSTATUS=[4, 0]),
        ["", "fibre_broken"],
    ),
    "fa_type": (dict(TARGETID=[1, 2, 3], FA_TYPE=[1, 4, 8]), ["", "sky_fibre", "sky_fibre"]),
    "targetid alone": (dict(TARGETID=[2**55, SKY_ID, -9]), ["", "sky_fibre", ""]),
    "all amplifiers": (dict(TARGETID=[1], FIBERSTATUS=[7 << 22]), ["fibre_broken"]),
}


@pytest.mark.parametrize("case", FIBRES)
def test_fibres_that_saw_no_target_are_refused(tmp_path, case):
    columns, reasons = FIBRES[case]
    fibres(**columns).writeto(tmp_path / "x.fits")
    found = read(tmp_path / "x.fits")
    assert [getattr(record, "reason", "") for record in found] == reasons
    assert [record.object_id for record in found] == [str(t) for t in columns["TARGETID"]]


def test_a_bad_amplifier_takes_its_arm_only(tmp_path):
    fibres(TARGETID=[1, 2], FIBERSTATUS=[1 << 22, 0]).writeto(tmp_path / "x.fits")
    first, second = read(tmp_path / "x.fits")
    assert first.mask[:2000].all()
    assert not first.ivar[:2000].any()
    assert second.ivar[:2000].any()
    assert first.ivar[4000:].any()


def test_targetids_are_exact_or_refused(tmp_path):
    ids = [39627640566453451, 39627640566453452, -(2**62) - 1]
    fibres(TARGETID=ids).writeto(tmp_path / "x.fits")
    found = read(tmp_path / "x.fits")
    assert [(s.object_id, s.extra["targetid"]) for s in found] == [(str(t), t) for t in ids]
    hdus = fibres(TARGETID=ids)
    columns = [fits.Column("TARGETID", "D", array=ids)]
    hdus["FIBERMAP"] = fits.BinTableHDU.from_columns(columns, name="FIBERMAP")
    hdus.writeto(tmp_path / "y.fits")
    with pytest.raises(InvalidRecord, match=r"column_type.*TARGETID.*float64"):
        read(tmp_path / "y.fits")


@pytest.mark.parametrize("form", ["D", "2J", "3A"])
def test_bits_of_fibres_are_integers_or_refused(tmp_path, form):
    hdus = fibres(TARGETID=[1, 2])
    value = np.zeros((2, 2)) if form == "2J" else ["a", "b"] if form == "3A" else [0, 1]
    columns = [fits.Column("TARGETID", "K", array=[1, 2]),
               fits.Column("FIBERSTATUS", form, array=value)]  # fmt: skip
    hdus["FIBERMAP"] = fits.BinTableHDU.from_columns(columns, name="FIBERMAP")
    hdus.writeto(tmp_path / "x.fits")
    with pytest.raises(InvalidRecord, match=r"column_type.*FIBERSTATUS"):
        read(tmp_path / "x.fits")
