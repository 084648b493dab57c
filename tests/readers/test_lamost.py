"""LAMOST: real DR1 files equal to astropy; the layouts of later releases; what is unknown."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from pyarrow import fs

from skyray.cards import load_card
from skyray.data.rows import row_of
from skyray.readers.base import SurveyFile, make_reader
from skyray.readers.lamost import BAD_PIXEL_BITS
from skyray.records import InvalidRecord, Spectrum, check_spectrum
from skyray.transforms.spectra import air_to_vacuum

SIZE = 600
WAVE = 10 ** (3.5682 + 1e-4 * np.arange(SIZE))
HEADER = {"TELESCOP": "LAMOST", "OBSID": 101001, "LMJD": 55862, "PLANID": "B6212", "SPID": 6,
          "FIBERID": 3, "DESIG": "LAMOST J063715.90+271356.5", "RA": 99.3, "DEC": 27.2,
          "CLASS": "STAR", "SUBCLASS": "F9", "Z": -7e-05, "Z_ERR": 1e-05, "VACUUM": True,
          "HELIO": True, "COEFF0": 3.5682, "COEFF1": 1e-4, "SN_G": 71.4}  # fmt: skip
ROWS = "Flux Inverse Wavelength Andmask Ormask"


def read(path: Path) -> Spectrum:
    (spectrum,) = make_reader("lamost").read(SurveyFile(fs.LocalFileSystem(), str(path)))
    return spectrum


def values() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    mask = np.zeros(SIZE)
    mask[:7] = [1, 2, 4, 8, 16, 32, 0]
    return {"flux": rng.normal(500, 20, SIZE), "ivar": np.full(SIZE, 0.01), "wavelength": WAVE,
            "andmask": mask, "ormask": mask}  # fmt: skip


def primary(data=None, **change) -> fits.PrimaryHDU:
    hdu = fits.PrimaryHDU(data)
    hdu.header.update({k: v for k, v in {**HEADER, **change}.items() if v is not None})
    return hdu


def image(third: np.ndarray = WAVE, **change) -> fits.HDUList:
    """DR1 to DR5: five rows in the primary image."""
    found = {**values(), "wavelength": third}
    return fits.HDUList([primary(np.array(list(found.values()), "f4"), **change)])


def table(one_row: bool = True, name: str = "COADD", drop: str = "", **change) -> fits.HDUList:
    """DR6 on: a table, of one row with arrays or a row a pixel."""
    forms = {"andmask": "J", "ormask": "J", "loglam": "D"}
    found = {**values(), "loglam": np.log10(WAVE)}
    size = SIZE if one_row else ""
    columns = [
        fits.Column(n.upper(), f"{size}{forms.get(n, 'E')}", array=[v] if one_row else v)
        for n, v in found.items() if n not in drop.split()
    ]  # fmt: skip
    return fits.HDUList([primary(**change), fits.BinTableHDU.from_columns(columns, name=name)])


LAYOUTS = {
    "image, rows named": lambda **c: image(EXTEN0=ROWS, **c),
    "image, rows not named": image,
    "image, continuum instead of wavelengths": lambda **c: image(
        np.ones(SIZE), EXTEN0="Flux Inverse Subcontinuum Andmask Ormask", **c
    ),
    "image, wavelengths in the row alone": lambda **c: image(COEFF0=None, COEFF1=None, **c),
    "table of arrays": table,
    "table of pixels": lambda **c: table(one_row=False, **c),
    "table without a name": lambda **c: table(name=None, **c),
    "table of loglam": lambda **c: table(drop="wavelength", **c),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "name", ["spec-55862-B6212_sp06-003.fits", "101001", "X.FITS", "x.fits.gz"]
)
def test_every_layout_of_any_name(tmp_path, layout, name):
    path = tmp_path / name
    LAYOUTS[layout]().writeto(tmp_path / "made.fits")
    body = (tmp_path / "made.fits").read_bytes()
    path.write_bytes(gzip.compress(body) if name.endswith(".gz") else body)
    spectrum = read(path)
    check_spectrum(spectrum)
    np.testing.assert_allclose(spectrum.wavelength, WAVE, rtol=1e-6)
    np.testing.assert_allclose(spectrum.flux, values()["flux"], rtol=1e-6)
    np.testing.assert_allclose(spectrum.ivar, 0.01, rtol=1e-6)
    # BRIGHTSKY (bit 3) marks sky lines and is no fault of the pixel.
    assert spectrum.mask[:7].tolist() == [True, True, True, False, True, True, False]
    assert (spectrum.object_id, spectrum.observation_id) == ("J063715.90+271356.5", "101001")
    assert (spectrum.spectype, spectrum.subtype, spectrum.zwarning) == ("STAR", "F9", -1)
    assert (spectrum.redshift, spectrum.ra) == (-7e-05, 99.3)
    assert (spectrum.extra["flux_unit"], spectrum.extra["obsid"]) == ("relative", 101001)


@pytest.mark.parametrize("obsid", [None, -9999, "-9999", ""])
def test_without_obsid_the_fibre_names_the_observation(tmp_path, obsid):
    image(OBSID=obsid).writeto(tmp_path / "x.fits")
    assert read(tmp_path / "x.fits").observation_id == "55862-B6212-06-003"
    table(OBSID=obsid, LMJD=None).writeto(tmp_path / "y.fits")
    assert read(tmp_path / "y.fits").observation_id.startswith("lamost-")


def test_minus_9999_is_unknown(tmp_path):
    made = table(CLASS="Unknown", SUBCLASS="", Z=-9999.0, Z_ERR=-9999, RA=-9999.0, SN_G=-9999.0)
    made.writeto(tmp_path / "x.fits")
    spectrum = read(tmp_path / "x.fits")
    assert (spectrum.spectype, spectrum.subtype, "sn_g" in spectrum.extra) == ("", "", False)
    assert all(np.isnan(v) for v in (spectrum.redshift, spectrum.redshift_err, spectrum.ra))
    assert row_of(load_card("lamost_dr10"), read(tmp_path / "x.fits"))["label"] == ""


@pytest.mark.parametrize("layout", LAYOUTS)
def test_air_is_converted_and_topocentric_refused(tmp_path, layout):
    LAYOUTS[layout](VACUUM=False).writeto(tmp_path / "air.fits")
    np.testing.assert_allclose(
        read(tmp_path / "air.fits").wavelength, air_to_vacuum(WAVE), rtol=1e-6
    )
    LAYOUTS[layout](HELIO=False).writeto(tmp_path / "topo.fits")
    with pytest.raises(InvalidRecord, match=r"frame_topocentric.*HELIO"):
        read(tmp_path / "topo.fits")


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [("FIBERTYP", "Sky", "sky_fibre"),
     ("OBJTYPE", "sky", "sky_fibre"), ("FIBERTYP", "Unused", "fibre_unassigned"),
     ("FIBERTYP", "Dead", "fibre_broken"), ("FIBERTYP", "PosErr", "fibre_broken"),
     ("FIBERTYP", "F-std", None)],
)  # fmt: skip
def test_fibres_that_saw_no_target_are_refused(tmp_path, key, value, reason):
    table(**{key: value}).writeto(tmp_path / "x.fits")
    if reason is None:
        assert read(tmp_path / "x.fits").spectype == "STAR"
    else:
        with pytest.raises(InvalidRecord, match=reason):
            read(tmp_path / "x.fits")


REFUSED = {
    "row and header disagree": (lambda: image(WAVE * 1.001), "layout_ambiguous"),
    "no wavelengths": (
        lambda: image(EXTEN0="Flux Inverse Subcontinuum Andmask Ormask", COEFF0=None),
        "wavelength_missing",
    ),
    "rows of other names": (lambda: image(EXTEN0="Sky Flux A B C"), "layout_unknown"),
    "another telescope": (lambda: image(TELESCOP="SDSS 2.5-M"), "layout_unknown"),
    "medium resolution": (lambda: table(name="COADD_B"), "layout_unknown"),
    "no mask": (lambda: table(drop="andmask"), "layout_unknown"),
    "nothing": (lambda: fits.HDUList([primary()]), "layout_unknown"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_layouts_are_refused_with_what_was_found(tmp_path, case):
    make, reason = REFUSED[case]
    make().writeto(tmp_path / "x.fits")
    with pytest.raises(InvalidRecord) as refusal:
        read(tmp_path / "x.fits")
    assert refusal.value.reason == reason
    assert "found" in refusal.value.detail


def test_real_files_equal_astropy_and_their_catalogue(survey_data):
    folder = survey_data / "spectra_lamost"
    bad = sum(1 << bit for bit in BAD_PIXEL_BITS.values())
    with (folder / "truth.csv").open() as stream:
        truth = list(csv.DictReader(stream))
    assert len(truth) == 78
    card, ids = load_card("lamost_dr10"), set()
    for row in truth:
        spectrum = read(folder / row["file"])
        with fits.open(folder / row["file"]) as hdus:
            flux, ivar, _, mask, _ = hdus[0].data
            header = hdus[0].header
            wavelength = 10 ** (header["COEFF0"] + header["COEFF1"] * np.arange(flux.size))
        np.testing.assert_array_equal(spectrum.flux, flux)
        np.testing.assert_array_equal(spectrum.ivar, ivar)
        np.testing.assert_array_equal(spectrum.mask, (mask.astype(int) & bad) != 0)
        np.testing.assert_allclose(spectrum.wavelength, wavelength, rtol=1e-12)
        assert (spectrum.spectype, spectrum.subtype) == (row["class"], row["subclass"])
        assert spectrum.redshift == pytest.approx(float(row["z"]), abs=1e-8)
        written = row_of(card, spectrum)
        np.testing.assert_array_equal(written["flux"], flux)  # the card's grid is the survey's
        assert written["label"] == "STAR"
        ids.add(written["observation_id"])
    assert len(ids) == 78


@pytest.mark.parametrize("where", ["TUNIT", "BUNIT", "image"])
def test_a_unit_that_the_file_states_is_honoured(tmp_path, where):
    hdus = image() if where == "image" else table()
    key = {"TUNIT": "TUNIT1"}.get(where, "BUNIT")
    hdus[1 if where == "TUNIT" else 0].header[key] = "1e-16 erg/s/cm2/Angstrom"
    hdus.writeto(tmp_path / "x.fits")
    spectrum = read(tmp_path / "x.fits")
    np.testing.assert_allclose(spectrum.flux, 10 * values()["flux"], rtol=1e-6)
    np.testing.assert_allclose(spectrum.ivar, 1e-4, rtol=1e-6)
    assert spectrum.extra["flux_unit"] == "1e-16 erg/s/cm2/Angstrom"


def test_counts_are_relative_with_their_own_ivar_alone(tmp_path):
    hdus = table()
    hdus[1].header.update({"TUNIT1": "count", "TUNIT2": "count-2"})
    hdus.writeto(tmp_path / "x.fits")
    spectrum = read(tmp_path / "x.fits")
    assert spectrum.statements["flux_unit"] == "relative: data model (the file says 'count')"
    np.testing.assert_allclose(spectrum.ivar, 0.01, rtol=1e-6)
    hdus[1].header["TUNIT2"] = "adu-2"
    hdus.writeto(tmp_path / "y.fits")
    with pytest.raises(InvalidRecord, match=r"unit_conflict.*adu-2"):
        read(tmp_path / "y.fits")
