"""Air or vacuum by every convention; nobody's word, and two that contradict, are refused."""

from __future__ import annotations

import pytest

from skyray.readers.medium import decide_medium, medium_said, to_vacuum
from skyray.records import InvalidRecord
from skyray.transforms.spectra import air_to_vacuum


def decided(card=None, header=None, **facts):
    return decide_medium("x.fits", card, medium_said(header or {}, {"name": "WAVE", **facts}))


AIR = [
    ({}, {"ucd": "em.wl;obs.air"}),
    ({}, {"ucd": "em.wl;obs.atmos"}),
    ({}, {"ucd": "EM.WL;OBS.AIR"}),
    ({}, {"ctype": "AWAV"}),
    ({}, {"ctype": "AWAV-LOG"}),
    ({"VACUUM": False}, {}),
    ({"VACUUM": "F"}, {}),
    ({"VACUUM": 0}, {}),
    ({"AIRORVAC": "air"}, {}),
    ({"AIRORVAC": "AIR "}, {}),
    ({"WAVEMED": "Air"}, {}),
    ({}, {"name": "WAVE_AIR"}),
    ({}, {"name": "lambda_air"}),
    ({}, {"unit": "Angstrom (air)"}),
    ({}, {"comment": "wavelength in air"}),
    ({}, {"ucd": "em.wl", "name": "air_wavelength"}),
    ({"AIRORVAC": "air"}, {"ucd": "em.wl"}),
]
VACUUM = [
    ({}, {"ucd": "em.wl"}),
    ({}, {"ctype": "WAVE"}),
    ({}, {"ctype": "WAVE-LOG"}),
    ({"VACUUM": True}, {}),
    ({"VACUUM": 1}, {}),
    ({"VACUUM": "T"}, {}),
    ({"AIRORVAC": "vac"}, {}),
    ({"AIRORVAC": "vacuum"}, {}),
    ({}, {"name": "WAVE_VAC"}),
    ({}, {"comment": "vacuum wavelengths"}),
    ({"MEDIUM": "Vacuum"}, {}),
]
SILENT = [
    ({}, {}),
    ({"CTYPE1": "LINEAR"}, {}),
    ({}, {"ctype": "WAVELENGTH"}),
    ({}, {"comment": "air, or vacuum"}),
    ({}, {"name": "hair"}),
    ({"AIRMASS": 1.1}, {}),
    ({"VACUUM": "unknown"}, {}),
    ({}, {"ucd": "em.opt"}),
]


@pytest.mark.parametrize(("header", "facts"), AIR)
def test_air(header, facts):
    medium, told = decided(None, header, **facts)
    assert medium == "air"
    assert told.startswith("air: ")
    assert decided("air", header, **facts)[0] == "air"
    with pytest.raises(InvalidRecord, match=r"medium_conflict: expected vacuum.*found air by"):
        decided("vacuum", header, **facts)


@pytest.mark.parametrize(("header", "facts"), VACUUM)
def test_vacuum(header, facts):
    assert decided(None, header, **facts)[0] == "vacuum"
    with pytest.raises(InvalidRecord, match=r"medium_conflict: expected air.*found vacuum by"):
        decided("air", header, **facts)


@pytest.mark.parametrize(("header", "facts"), SILENT)
def test_where_the_file_is_silent_the_card_decides_and_nobody_else(header, facts):
    assert decided("air", header, **facts) == ("air", "air: card")
    with pytest.raises(InvalidRecord, match="medium_unknown"):
        decided(None, header, **facts)


@pytest.mark.parametrize(
    ("header", "facts"),
    [({"VACUUM": True}, {"ucd": "em.wl;obs.air"}), ({"AIRORVAC": "vac"}, {"ctype": "AWAV"}),
     ({"VACUUM": False}, {"name": "wave_vac"})],
)  # fmt: skip
@pytest.mark.parametrize("card", [None, "air", "vacuum"])
def test_a_file_that_contradicts_itself_is_refused(header, facts, card):
    with pytest.raises(InvalidRecord, match=r"medium_conflict: .*air by .* and vacuum by"):
        decided(card, header, **facts)


def test_only_air_is_converted():
    assert to_vacuum("air", 5000.0) == air_to_vacuum(5000.0) == pytest.approx(5001.394, abs=2e-3)
    assert to_vacuum("vacuum", 5000.0) == 5000.0
    assert to_vacuum("air", 1215.67) == 1215.67
