"""1-D images with a spectral axis: every kind of axis against its formula; refusals by name."""

from __future__ import annotations

import io

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs

from skyray.config import ConfigError
from skyray.readers.base import SurveyFile, make_reader
from skyray.readers.memory import memory_file
from skyray.records import InvalidRecord, Spectrum, check_spectrum
from skyray.records.reasons import reason_of
from skyray.transforms.spectra import air_to_vacuum

SIZE = 600
PIXEL = np.arange(SIZE)
C = 2.99792458e18  # Å/s
HC = 12398.419843320026  # eV Å
FLUX = np.linspace(1, 3, SIZE)
UNIT = {"BUNIT": "10**(-17) erg/s/cm2/Angstrom"}


def write(path, keywords, errors=None):
    primary = fits.PrimaryHDU(FLUX)
    noise = fits.ImageHDU(np.full(SIZE, 0.5) if errors is None else errors, name="ERRS")
    for hdu in (primary, noise):
        hdu.header.update({**UNIT, **{k: v for k, v in keywords.items() if hdu is primary}})
    fits.HDUList([primary, noise]).writeto(path)
    return path


def read(path, **options) -> Spectrum:
    reader = make_reader("spectrum_image", {"error": "ERRS", **options})
    (record,) = reader.read(SurveyFile(fs.LocalFileSystem(), str(path)))
    return record


def linear(ctype, unit, start, step, **more):
    return {"CTYPE1": ctype, "CUNIT1": unit, "CRVAL1": start, "CDELT1": step, "CRPIX1": 1.0, **more}


# keywords, the axis in vacuum Å pixel by pixel
AXES = {
    "WAVE Å": (linear("WAVE", "Angstrom", 4000, 2), 4000 + 2 * PIXEL),
    "WAVE nm": (linear("WAVE", "nm", 400, 0.2), 4000 + 2 * PIXEL),
    "WAVE m": (linear("WAVE", "m", 4e-7, 2e-10), 4000 + 2 * PIXEL),
    "AWAV": (linear("AWAV", "nm", 400, 0.2), air_to_vacuum(4000 + 2 * PIXEL)),
    "CRPIX": (linear("WAVE", "nm", 400, 0.2, CRPIX1=11.0), 4000 + 2 * (PIXEL - 10)),
    "CD1_1": ({"CTYPE1": "WAVE", "CUNIT1": "nm", "CRVAL1": 400.0, "CD1_1": 0.2, "CRPIX1": 1.0},
              4000 + 2 * PIXEL),
    "WAVE-LOG": (linear("WAVE-LOG", "nm", 400, 0.2), 4000 * np.exp(2 * PIXEL / 4000)),
    "AWAV-LOG": (linear("AWAV-LOG", "Angstrom", 4000, 2),
                 air_to_vacuum(4000 * np.exp(2 * PIXEL / 4000))),
    "FREQ": (linear("FREQ", "Hz", 5e14, 2e11), C / (5e14 + 2e11 * PIXEL)),
    "FREQ GHz": (linear("FREQ", "GHz", 5e5, 2e2), C / (5e14 + 2e11 * PIXEL)),
    "ENER": (linear("ENER", "eV", 2, 1e-3), HC / (2 + 1e-3 * PIXEL)),
    "WAVN": (linear("WAVN", "1/m", 2e6, 1e3), 1e10 / (2e6 + 1e3 * PIXEL)),
    "WAVE-F2W": (linear("WAVE-F2W", "nm", 500, 0.2),  # linear in frequency, paper III eq. 30
                 C / (C / 5000 - PIXEL * 2 * C / 5000**2)),
    "IRAF linear": (linear("LINEAR", "", 4000, 2, VACUUM=True, WAT1_001="units=angstroms"),
                    4000 + 2 * PIXEL),
    "IRAF log": ({"CTYPE1": "LINEAR", "CRVAL1": 3.6, "CD1_1": 2e-4, "CRPIX1": 1.0, "DC-FLAG": 1,
                  "VACUUM": True}, 10 ** (3.6 + 2e-4 * PIXEL)),
    "PC1_1": (linear("WAVE", "nm", 400, 0.1, PC1_1=2.0), 4000 + 2 * PIXEL),
    "SDSS": ({"COEFF0": 3.6, "COEFF1": 1e-4, "VACUUM": True}, 10 ** (3.6 + 1e-4 * PIXEL)),
}  # fmt: skip


@pytest.mark.parametrize("name", AXES)
def test_axes(tmp_path, name):
    keywords, expected = AXES[name]
    spectrum = read(write(tmp_path / "x.fits", keywords))
    check_spectrum(spectrum)
    descending = expected[0] > expected[-1]
    flux = FLUX[::-1] if descending else FLUX
    expected = expected[::-1] if descending else expected
    np.testing.assert_allclose(spectrum.wavelength, expected, rtol=1e-9)
    np.testing.assert_allclose(spectrum.flux, flux, rtol=1e-6)
    np.testing.assert_allclose(spectrum.ivar, 4.0, rtol=1e-6)
    assert {"medium", "wavelength_unit", "flux_unit", "frame"} <= set(spectrum.statements)


NO_WAVELENGTHS = [
    linear("PIXEL", "", 1, 1), linear("LINEAR", "", 1, 1),
    linear("", "", 4000, 2, **{"DC-FLAG": -1}), linear("LINEAR", "", 4000, 2, **{"DC-FLAG": 2}),
    linear("LINEAR", "nm", 400, 0.2, CD1_2=0.1),
    linear("LINEAR", "", 4000, 2, WAT1_001="wtype=linear label=Pixel"),
    linear("LOG-LIN", "", 3.6, 1e-4, **{"DC-FLAG": 0}), linear("LINEAR", "", "4000", 2),
    linear("WAVE-LOG", "nm", 400, 0.2, **{"DC-FLAG": 1}), linear("WAVE", "nm", 400, 0.2, PC1_1=0.0),
    linear("MULTISPE", "", 1, 1), linear("WAVE", "nm", 400, 0.2, CD1_1=0.2, PC1_1=2.0),
]  # fmt: skip


@pytest.mark.parametrize(
    ("keywords", "options", "reason"),
    [(linear("LINEAR", "Angstrom", 4000, 2), {}, "medium_unknown"),
     (linear("AWAV", "nm", 400, 0.2), {"medium": "vacuum"}, "medium_conflict"),
     (linear("WAVE", "nm", 400, 0.2, BUNIT="adu"), {}, "unit_unknown"),
     (linear("WAVE", "nm", 400, 0.2, BUNIT="Jy"), {"flux_unit": 1.0}, "unit_conflict"),
     (linear("WAVE", "nm", 400, 0.2, SPECSYS="TOPOCENT"), {}, "frame_topocentric"),
     (linear("VELO", "km/s", 0, 20), {}, "unit_unknown"), (linear("RA---TAN", "deg", 0, 1), {},
                                                          "wavelength_missing"),
     ({"CTYPE1": "WAVE", "CUNIT1": "nm"}, {}, "wavelength_missing"), ({}, {"medium": "air"},
                                                                      "wavelength_missing"),
     *((keywords, {"medium": "air"}, "wavelength_missing") for keywords in NO_WAVELENGTHS),
     (linear("LINEAR", "nm", 400, 0.2, WAT1_001="units=angstroms"), {}, "unit_conflict"),
     (linear("LINEAR", "", 0.4, 2e-4), {"medium": "air"}, "unit_unknown"),
     (linear("", "", 1, 2), {"medium": "air"}, "unit_unknown"),
     (linear("WAVE", "", 400, 0.2), {}, "unit_unknown"), (linear("WAVE", "parsec/s", 4, 2), {},
                                                          "unit_unknown")],
)  # fmt: skip
def test_what_is_not_told_or_contradicts_is_refused(tmp_path, keywords, options, reason):
    path = write(tmp_path / "x.fits", keywords)
    with pytest.raises(InvalidRecord) as refused:
        read(path, **options)
    assert refused.value.reason == reason
    assert refused.value.source == str(path)


def test_a_stack_needs_a_row(tmp_path):
    stack = np.stack([FLUX, FLUX * 2, np.full(SIZE, 0.5)])[:, None]
    hdu = fits.PrimaryHDU(stack)
    hdu.header.update({**UNIT, **linear("WAVE", "nm", 400, 0.2), "OBJECT": "HD 1", "RA": "1:00:00"})
    hdu.writeto(tmp_path / "x.fits")
    spectrum = read(tmp_path / "x.fits", flux="0:1", error="0:2")
    np.testing.assert_allclose(spectrum.flux, 2 * FLUX, rtol=1e-6)
    assert (spectrum.object_id, spectrum.ra) == ("HD 1", pytest.approx(15.0))
    assert spectrum.observation_id.startswith("HD 1-")
    for options in ({"error": "0:0"}, {"flux": "0:3", "error": "0:2"}):
        with pytest.raises(InvalidRecord, match="shape_mismatch"):
            read(tmp_path / "x.fits", **options)
    with pytest.raises(ConfigError, match="noise"):
        read(tmp_path / "x.fits", error=0)


def test_a_stack_with_its_wavelengths_in_an_hdu_is_a_spectrum_a_row(tmp_path):
    """As MaNGA's data analysis and others write: WAVE of a row, FLUX, IVAR and MASK of many."""
    flux, ivar = np.outer([1.0, 2.0, 3.0], FLUX), np.full((3, SIZE), 4.0)
    mask = np.zeros((3, SIZE), "i4")
    mask[2, 7] = 1
    parts = {"WAVE": 4000.0 + PIXEL, "FLUX": flux, "IVAR": ivar, "MASK": mask}
    hdus = [fits.ImageHDU(values, name=name) for name, values in parts.items()]
    hdus[1].header.update({**UNIT, "OBJECT": "all"})
    path = tmp_path / "x.fits"
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(path)
    options = {"flux": "FLUX", "ivar": "IVAR", "mask": "MASK", "wavelength": "WAVE"}
    reader = make_reader("spectrum_image", {**options, "medium": "vacuum"})
    folder = SurveyFile(fs.LocalFileSystem(), str(path), "plate/x.fits")
    found = list(reader.read(folder))
    assert [spectrum.object_id for spectrum in found] == [f"plate/x-{row}" for row in range(3)]
    np.testing.assert_allclose(found[2].flux, 3 * FLUX, rtol=1e-6)
    np.testing.assert_array_equal(found[0].wavelength, 4000.0 + PIXEL)
    assert np.flatnonzero(found[2].mask).tolist() == [7]
    with pytest.raises(InvalidRecord, match="medium_unknown"):
        list(make_reader("spectrum_image", options).read(folder))
    with pytest.raises(InvalidRecord, match=r"mask: expected \(3, 600\)"):
        list(
            make_reader("spectrum_image", {**options, "mask": "WAVE", "medium": "air"}).read(folder)
        )


def multispec(path, *specs, **more):
    """A file as IRAF writes it: specN of all lines in one text, cut every 68 characters."""
    text = "wtype=multispec " + " ".join(f'spec{n} = "{one}"' for n, one in enumerate(specs, 1))
    parts = [text[at : at + 68] for at in range(0, len(text), 68)]
    flux = np.stack([FLUX] * len(specs))
    hdu = fits.PrimaryHDU(np.stack([flux, np.full(flux.shape, 0.5)]))  # a plane of noise
    hdu.header.update({**UNIT, "CTYPE1": "MULTISPE", "CTYPE2": "MULTISPE", "CDELT1": 1.0,
                       "WAT0_001": "system=multispec", "VACUUM": True,
                       "WAT1_001": "wtype=multispec label=Wavelength units=angstroms", **more,
                       **{f"WAT2_{n:03d}": part for n, part in enumerate(parts, 1)}})  # fmt: skip
    hdu.writeto(path)
    return path


def test_multispec_has_an_axis_a_line(tmp_path):
    x = 2 * PIXEL / (SIZE - 1) - 1  # of pmin 1 to pmax SIZE
    angle = np.arccos(np.clip(x, -1, 1))
    series = 0.5 * (10 + 5000 + 1000 * x + 30 * np.cos(2 * angle) + 2 * np.cos(3 * angle))
    series += 0.5 * (5000 + 1000 * x + 20 * (1.5 * x**2 - 0.5))
    lines = {
        f"1 1 0 4000. 2. {SIZE} 0.1 0. 10.": (4000 + 2 * PIXEL) / 1.1,
        f"2 1 1 3.6 2e-4 {SIZE} 0. 0. 10.": 10 ** (3.6 + 2e-4 * PIXEL),
        "3 1 0 4000. 2. 500 0. 0. 10.": 4000 + 2 * PIXEL[:500],
        f"4 1 2 4000. 3. {SIZE} 0. 0. 10. .5 10. 1 4 1. {SIZE}. 5000. 1000. 30. 2. "
        f".5 0. 2 3 1. {SIZE}. 5000. 1000. 20.": series,
    }
    path = multispec(tmp_path / "x.fits", *lines)
    for row, expected in enumerate(lines.values()):
        spectrum = read(path, flux=f"0:{row}", error=f"0:{len(lines) + row}")
        check_spectrum(spectrum)
        np.testing.assert_allclose(spectrum.wavelength, expected, rtol=1e-9)
        np.testing.assert_allclose(spectrum.flux, FLUX[: len(expected)], rtol=1e-6)


@pytest.mark.parametrize(
    "spec",
    ["1 1 -1 4000. 2. 600 0. 0. 10.", "1 1 1 3.6 2e-4 600 0.1 0. 10.", "1 1 0 4000. 2.",
     "1 1 2 4000. 2. 600 0. 0. 10. 1. 0. 3 4 1. 600. 1. 2. 3. 4.", "1 1 0 INDEF 2. 600 0. 0. 10.",
     "1 1 2 4000. 2. 600 0. 0. 10.", "1 1 2 4000. 2. 600 0. 0. 10. 1. 0. 1 9 1. 600. 1."],
)  # fmt: skip
def test_multispec_that_is_not_read_is_refused(tmp_path, spec):
    with pytest.raises(InvalidRecord, match=r"wavelength_missing.*WAT2"):
        read(multispec(tmp_path / "x.fits", spec), flux="0:0", error="0:1")


@pytest.mark.parametrize(
    ("flux", "noise", "options", "ivar"),
    [("1e-17 erg/s/cm2/A", "1e-18 erg/s/cm2/A", {}, 4e2), ("", "1e-18 erg/s/cm2/A",
                                                           {"flux_unit": "1e-17 erg/s/cm2/A"}, 4e2),
     ("adu", "adu", {"flux_unit": "relative"}, 4), ("adu", "1e-1 adu", {"flux_unit": "relative"},
                                                    4e2),
     ("adu", "adu**-2", {"flux_unit": "relative", "ivar": "ERRS", "error": None}, 0.5),
     ("flubber", "flubber", {"flux_unit": 2.0}, 1), ("", "1e-18 erg/s/cm2/A", {}, None),
     ("", "adu", {"flux_unit": "relative"}, None), ("adu", "mJy", {"flux_unit": "relative"}, None),
     ("1e-17 erg/s/cm2/A", "adu", {}, None)],
)  # fmt: skip
def test_the_unit_of_the_noise_is_its_own(tmp_path, flux, noise, options, ivar):
    path = write(tmp_path / "x.fits", {**linear("WAVE", "nm", 400, 0.2), "BUNIT": flux})
    with fits.open(path, mode="update") as hdus:
        hdus["ERRS"].header["BUNIT"] = noise
    if ivar is None:
        with pytest.raises(InvalidRecord, match=r"unit_conflict|unit_unknown"):
            read(path, **options)
        return
    np.testing.assert_allclose(read(path, **options).ivar, ivar, rtol=1e-6)


_VALUES = st.one_of(
    st.sampled_from(["", "WAVE", "AWAV-LOG", "FREQ-W2F", "WAVE-GRI", "WAVE-TAB", "LINEAR", "nm",
                     "Hz", "Angstrom", "erg/s/cm2/A", "Jy", "TOPOCENT", "BARYCENT", "air",
                     "12:00:00",
                     "2020-01-01T00:00:00", "units=", "log(", "MULTISPE", "system=multispec",
                     "?" * 60]),
    st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**40), 2**40), st.booleans(),
)  # fmt: skip
_KEYWORDS = ["CTYPE1", "CUNIT1", "CRVAL1", "CDELT1", "CD1_1", "CRPIX1", "DC-FLAG", "WAT1_001",
             "COEFF0", "COEFF1", "BUNIT", "SPECSYS", "RA", "DEC", "MJD-OBS", "EXPTIME", "DATE-OBS",
             "OBSGEO-X", "OBSGEO-Y", "OBSGEO-Z", "AIRORVAC", "VACUUM", "HELIO", "RADESYS",
             "PV1_1", "RESTFRQ", "OBJECT", "PC1_1", "CD1_2", "WAT0_001", "WAT2_001",
             "EQUINOX"]  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.sampled_from(_KEYWORDS), _VALUES, max_size=8), st.booleans())
def test_any_keyword_is_understood_or_refused(told, sound):
    keywords = {**(linear("WAVE", "nm", 400, 0.2) if sound else {}), **told}
    stream = io.BytesIO()
    primary = fits.PrimaryHDU(FLUX[:40])
    primary.header.update({**UNIT, **keywords})
    fits.HDUList([primary, fits.ImageHDU(FLUX[:40], name="ERRS")]).writeto(stream)
    reader = make_reader("spectrum_image", {"error": "ERRS", "medium": "vacuum"})
    try:
        (spectrum,) = reader.read(memory_file(stream.getvalue(), "x.fits"))
        check_spectrum(spectrum, 1)
    except InvalidRecord as refused:
        assert reason_of(refused.reason)  # noqa: PT017
