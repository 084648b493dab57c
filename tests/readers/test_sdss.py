"""SDSS and BOSS spec files: equal to astropy on real files; what is read without a catalogue."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from pyarrow import fs
from tests.damaged_fits import spec_file

from skyray.cards import load_card
from skyray.data.rows import row_of
from skyray.readers.base import SurveyFile, make_reader
from skyray.readers.sdss import BAD_PIXEL_BITS
from skyray.records import InvalidRecord, Spectrum, check_spectrum
from skyray.transforms.spectra import air_to_vacuum

RAW = (
    "spec-0266-51602-0001", "spec-0266-51602-0013", "spec-0266-51602-0031",
    "spec-1059-52618-0453", "spec-3655-55240-0026", "spec-7102-56666-0156",
)  # fmt: skip


def read_one(path: Path) -> Spectrum:
    (record,) = make_reader("sdss_spec").read(SurveyFile(fs.LocalFileSystem(), str(path)))
    assert isinstance(record, Spectrum)
    return record


@pytest.mark.parametrize("name", RAW)
def test_real_file_equals_astropy(survey_data, name):
    path = survey_data / "spectra_sdss" / "raw_fits" / f"{name}.fits"
    spectrum = read_one(path)
    with fits.open(path) as hdus:
        coadd, row, header = hdus[1].data, hdus[2].data[0], hdus[0].header
        np.testing.assert_array_equal(spectrum.flux, coadd["flux"])
        np.testing.assert_array_equal(spectrum.ivar, coadd["ivar"])
        np.testing.assert_array_equal(
            spectrum.wavelength, 10.0 ** coadd["loglam"].astype(np.float64)
        )
        bad = sum(1 << bit for bit in BAD_PIXEL_BITS.values())
        np.testing.assert_array_equal(spectrum.mask, (coadd["and_mask"] & bad) != 0)
        assert spectrum.spectype == row["CLASS"].strip()
        assert spectrum.subtype == row["SUBCLASS"].strip()
        assert spectrum.redshift == row["Z"]
        assert spectrum.redshift_err == row["Z_ERR"]
        assert spectrum.zwarning == row["ZWARNING"]
        assert spectrum.snr == row["SN_MEDIAN_ALL"]
        assert (spectrum.ra, spectrum.dec) == (header["PLUG_RA"], header["PLUG_DEC"])
        assert spectrum.extra["plate"] == row["PLATE"]
    assert spectrum.object_id == name.removeprefix("spec-")
    check_spectrum(spectrum)


@pytest.mark.parametrize("shift", [0.0, 1e-6, -4e-5, 0.5])
def test_wavelengths_on_and_off_the_surveys_own_pixels(tmp_path, shift):
    with fits.open(io.BytesIO(spec_file())) as hdus:
        loglam = hdus["COADD"].data["loglam"]
        loglam += np.float32(shift)
        expected = 10.0 ** loglam.astype(np.float64)
        hdus.writeto(tmp_path / "spec-1-2-3.fits")
    np.testing.assert_array_equal(read_one(tmp_path / "spec-1-2-3.fits").wavelength, expected)


def test_real_files_cover_both_surveys_and_all_classes(survey_data):
    folder = survey_data / "spectra_sdss" / "raw_fits"
    spectra = [read_one(folder / f"{name}.fits") for name in RAW]
    assert {s.spectype for s in spectra} == {"STAR", "GALAXY", "QSO"}
    assert [s.survey for s in spectra] == ["sdss"] * 4 + ["boss"] * 2


@pytest.mark.parametrize("catalogue", ["SPECOBJ", "SPALL", ""])
def test_catalogue_row_by_any_name(tmp_path, catalogue):
    path = tmp_path / "spec-0266-51602-0007.fits"
    path.write_bytes(spec_file(catalogue))
    spectrum = read_one(path)
    assert (spectrum.spectype, spectrum.subtype, spectrum.zwarning) == ("GALAXY", "AGN", 4)
    assert spectrum.redshift == np.float32(0.125)


def test_without_catalogue_the_class_is_unknown(tmp_path):
    path = tmp_path / "spec-0266-51602-0007.fits"
    path.write_bytes(spec_file(catalogue=None))
    spectrum = read_one(path)
    assert (spectrum.spectype, spectrum.subtype, spectrum.zwarning) == ("", "", -1)
    assert np.isnan(spectrum.redshift)
    assert spectrum.object_id == "0266-51602-0007"
    assert (spectrum.ra, spectrum.dec) == (10.5, -1.25)
    expected = np.median(spectrum.flux * np.sqrt(2.0))
    assert spectrum.snr == pytest.approx(expected, rel=1e-6)


def test_bright_sky_is_kept_and_no_data_is_bad(tmp_path):
    path = tmp_path / "spec-0266-51602-0007.fits"
    path.write_bytes(spec_file())
    with fits.open(path, mode="update") as hdus:
        hdus["COADD"].data["and_mask"][:3] = [1 << 23, 1 << 24, (1 << 23) | (1 << 27)]
    np.testing.assert_array_equal(read_one(path).mask[:4], [False, True, True, False])


def test_later_hdus_are_not_needed(tmp_path):
    whole = spec_file(extra_hdus=3)
    path = tmp_path / "spec-0266-51602-0007.fits"
    path.write_bytes(whole[:-20_000])
    assert read_one(path).spectype == "GALAXY"


def test_gzip_is_read(tmp_path):
    import gzip

    path = tmp_path / "spec-0266-51602-0007.fits.gz"
    path.write_bytes(gzip.compress(spec_file()))
    assert read_one(path).object_id == "0266-51602-0007"


@pytest.mark.parametrize(
    ("path", "claimed"),
    [
        ("a/spec-0266-51602-0007.fits", True),
        ("s/spec-lite-0266-51602-0007.fits", True),
        ("spec-015150-59291-4544164319.fits.gz", True),
        ("SPEC-0266-51602-0007.FITS", True),
        ("galaxy.fit.bz2", True),
        ("spPlate-0266-51602.fits", False),
        ("notes.txt", False),
        ("specObj-dr16.fits", False),
    ],
)
def test_claims(path, claimed):
    assert make_reader("sdss_spec").claims(path) is claimed


LEGACY = {"PLATE": ("J", 266), "MJD": ("J", 51602), "FIBERID": ("J", 7)}
SDSS_V = {"FIELD": ("K", 15000), "MJD": ("K", 59146), "CATALOGID": ("K", 27021598108289694),
          "SDSS_ID": ("K", 114545), "SURVEY": ("3A", "mwm"), "PROGRAMNAME": ("0A", ""),
          "OBJTYPE": ("7A", "science"), "RUN2D": ("6A", "v6_1_3")}  # fmt: skip
FITTED = {"CLASS": ("6A", "STAR"), "SUBCLASS": ("21A", "F9"), "Z": ("E", -0.00031),
          "Z_ERR": ("E", 1e-5), "ZWARNING": ("J", 0), "PLUG_RA": ("D", 221.5),
          "PLUG_DEC": ("D", -0.25), "VDISP": ("E", 120.0)}  # fmt: skip


def pixels(names: str = "flux loglam ivar and_mask", mask_form: str = "J", size: int = 300):
    loglam = 3.58 + 1e-4 * np.arange(size)
    values = {"flux": np.linspace(1, 2, size), "loglam": loglam.astype("f4"),
              "wavelength": 10**loglam, "ivar": np.full(size, 4.0),
              "and_mask": np.where(np.arange(size) == 9, 1 << 24, 0), "or_mask": np.zeros(size),
              "wdisp": np.ones(size)}  # fmt: skip
    forms = {"and_mask": mask_form, "or_mask": "J", "wavelength": "D"}
    columns = [fits.Column(n, forms.get(n.lower(), "E"), array=values[n.lower()])
               for n in names.split()]  # fmt: skip
    return fits.BinTableHDU.from_columns(columns, name="COADD")


def one_row(cells: dict, name: str | None, rows: int = 1) -> fits.BinTableHDU:
    columns = [fits.Column(n, form, array=[value] * rows) for n, (form, value) in cells.items()]
    return fits.BinTableHDU.from_columns(columns, name=name)


def spec(path: Path, *hdus: fits.BinTableHDU, **header) -> Path:
    primary = fits.PrimaryHDU()
    primary.header.update(header)
    fits.HDUList([primary, *hdus]).writeto(path)
    return path


@pytest.mark.parametrize(
    "names",
    ["flux loglam ivar and_mask", "FLUX LOGLAM IVAR AND_MASK OR_MASK WDISP", "Wavelength Flux "
     "Ivar And_Mask", "flux loglam wavelength ivar and_mask"],
)  # fmt: skip
@pytest.mark.parametrize("mask_form", ["I", "J", "K"])
def test_columns_in_any_case_order_and_width(tmp_path, names, mask_form):
    if mask_form == "I":
        table = pixels(names, "J")
        table.data[next(n for n in table.columns.names if n.lower() == "and_mask")] = 1 << 1
    else:
        table = pixels(names, mask_form)
    spectrum = read_one(spec(tmp_path / "x.fits", table))
    np.testing.assert_allclose(spectrum.wavelength, 10 ** (3.58 + 1e-4 * np.arange(300)), rtol=3e-7)
    np.testing.assert_allclose(spectrum.flux, np.linspace(1, 2, 300), rtol=1e-6)
    expected = np.ones(300, bool) if mask_form == "I" else np.arange(300) == 9
    np.testing.assert_array_equal(spectrum.mask, expected)


@pytest.mark.parametrize("path", ["spec-0266-51602-0007.fits", "spec-lite-0266-51602-0007.FITS",
                                  "upload", "a.b.fits"])  # fmt: skip
@pytest.mark.parametrize("table", ["SPECOBJ", "SPALL", None])
def test_plates_by_table_whatever_the_name(tmp_path, path, table):
    made = spec(tmp_path / path, pixels(), one_row({**LEGACY, **FITTED}, table))
    spectrum = read_one(made)
    assert spectrum.object_id == "0266-51602-0007"
    assert (spectrum.extra["plate"], spectrum.extra["vdisp"]) == (266, 120.0)
    assert (spectrum.spectype, spectrum.subtype, spectrum.ra) == ("STAR", "F9", 221.5)


@pytest.mark.parametrize("table", ["SPECOBJ", None])
def test_hdus_in_any_order_and_without_names(tmp_path, table):
    first, second = one_row({**LEGACY, **FITTED}, table), pixels()
    assert read_one(spec(tmp_path / "x.fits", first, second)).spectype == "STAR"
    del second.header["EXTNAME"]
    assert read_one(spec(tmp_path / "y.fits", first, second)).object_id == "0266-51602-0007"


@pytest.mark.parametrize("path", ["spec-015000-59146-27021598108289694.fits", "upload.fits"])
@pytest.mark.parametrize("catalogid", [("K", 27021598108289694), ("20A", "27021598108289694"),
                                       ("K", 4375786564)])  # fmt: skip
def test_sdss_v(tmp_path, path, catalogid):
    row = {**SDSS_V, "CATALOGID": catalogid, **FITTED}
    made = spec(tmp_path / path, pixels("FLUX LOGLAM IVAR AND_MASK"), one_row(row, "SPALL"))
    spectrum = read_one(made)
    number = int(catalogid[1])
    assert spectrum.object_id == f"15000-59146-{number}"
    assert (spectrum.extra["catalogid"], spectrum.extra["sdss_id"]) == (number, 114545)
    assert (spectrum.survey, spectrum.extra["field"]) == ("mwm", 15000)


def test_sdss_v_named_by_its_file_alone(tmp_path):
    spectrum = read_one(spec(tmp_path / "spec-allepoch_apo-60000-27021602603659704.fits", pixels()))
    assert spectrum.object_id == "allepoch_apo-60000-27021602603659704"
    assert spectrum.spectype == ""


def test_nameless_files_are_told_apart_by_their_content(tmp_path):
    found = []
    for scale in (1, 2):
        table = pixels()
        table.data["flux"] *= scale
        (tmp_path / str(scale)).mkdir()
        found.append(read_one(spec(tmp_path / str(scale) / "galaxy.fits", table)))
    assert [s.object_id for s in found] == ["galaxy", "galaxy"]
    assert found[0].observation_id != found[1].observation_id


def test_unknown_sdss_id_and_position_are_unknown(tmp_path):
    row = {**SDSS_V, "SDSS_ID": ("K", -999), **FITTED, "PLUG_RA": ("D", -999.0),
           "RACAT": ("D", 3.0), "DECCAT": ("D", 4.0)}  # fmt: skip
    spectrum = read_one(spec(tmp_path / "x.fits", pixels(), one_row(row, "SPALL")))
    assert "sdss_id" not in spectrum.extra
    assert (spectrum.ra, spectrum.dec) == (3.0, 4.0)


@pytest.mark.parametrize("fits_table", ["SPZALL", "ZALL"])
def test_best_fit_where_there_is_no_catalogue_row(tmp_path, fits_table):
    fitted = one_row(FITTED, fits_table, rows=5)
    fitted.data["Z"] = np.arange(5) / 10
    spectrum = read_one(spec(tmp_path / "spec-0266-51602-0007.fits", pixels(), fitted))
    assert (spectrum.spectype, spectrum.redshift) == ("STAR", 0.0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"OBJTYPE": ("16A", "SKY")}, "sky_fibre"),
        ({"OBJTYPE": ("16A", "sky_boss")}, "sky_fibre"),
        ({"SOURCETYPE": ("16A", "SKY")}, "sky_fibre"),
        ({"TARGETTYPE": ("16A", "SKY")}, "sky_fibre"),
        ({"ZWARNING": ("J", 1)}, "sky_fibre"),
        ({"ZWARNING": ("J", 128 | 4)}, "fibre_broken"),
        ({"ZWARNING": ("J", 2 | 512)}, None),
        ({"OBJTYPE": ("16A", "SPECTROPHOTO_STD")}, None),
    ],
    ids=str,
)
def test_fibres_without_an_object_are_refused(tmp_path, change, reason):
    path = spec(tmp_path / "x.fits", pixels(), one_row({**LEGACY, **FITTED, **change}, "SPALL"))
    if reason is None:
        assert read_one(path).object_id == "0266-51602-0007"
    else:
        with pytest.raises(InvalidRecord) as refusal:
            read_one(path)
        assert (refusal.value.reason, refusal.value.object_id) == (reason, "0266-51602-0007")


def test_air_wavelengths_are_converted(tmp_path):
    spectrum = read_one(spec(tmp_path / "x.fits", pixels(), VACUUM=False))
    expected = air_to_vacuum(10 ** (3.58 + 1e-4 * np.arange(300)))
    np.testing.assert_allclose(spectrum.wavelength, expected, rtol=3e-7)


def _two_wavelengths():
    table = pixels("flux loglam wavelength ivar and_mask")
    table.data["wavelength"] += 1.0
    return [table]


@pytest.mark.parametrize(
    ("hdus", "reason"),
    [
        (_two_wavelengths, "layout_ambiguous"),
        (lambda: [pixels(), one_row(FITTED, "SPALL", rows=3)], "layout_ambiguous"),
        (lambda: [pixels("flux loglam ivar")], "column_missing"),
        (lambda: [pixels(mask_form="E")], "column_type"),
        (lambda: [one_row(FITTED, None)], "layout_unknown"),
        (lambda: [one_row(FITTED, "REDSHIFTS")], "layout_unknown"),
        (lambda: [], "hdu_missing"),
        (lambda: [pixels(), one_row({**FITTED, "Z": ("3A", "?")}, "SPALL")], "field_invalid"),
        (lambda: [pixels(), one_row({**FITTED, "ZWARNING": ("E", 0.5)}, "SPALL")], "field_invalid"),
    ],
)
def test_other_layouts_are_refused_with_what_was_found(tmp_path, hdus, reason):
    with pytest.raises(InvalidRecord) as refusal:
        read_one(spec(tmp_path / "x.fits", *hdus()))
    assert refusal.value.reason == reason
    assert "found" in refusal.value.detail


def test_old_spspec_files_are_refused_by_name(tmp_path):
    fits.PrimaryHDU(np.ones((5, 300), "f4")).writeto(tmp_path / "spSpec-51602-0266-007.fit")
    with pytest.raises(InvalidRecord, match=r"layout_unknown.*spSpec.*image 5 × 300"):
        read_one(tmp_path / "spSpec-51602-0266-007.fit")


def test_public_case_of_sdss_v(survey_data):
    folder = survey_data.parent / "cases" / "spectra" / "16-sdssv-dr19"
    if not folder.exists():
        pytest.skip("no cases beside the data of SKYRAY_TEST_DATA")
    expected = json.loads((folder / "expected.json").read_text())
    (path,) = (folder / "input").iterdir()
    spectrum = read_one(path)
    row = row_of(load_card("sdss_dr16"), spectrum)
    assert row["label"] == expected.pop("label")
    assert row["redshift"] == pytest.approx(expected.pop("redshift"), rel=1e-6)
    assert {name: row[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("where", "unit", "factor"),
    [("TUNIT1", "10^-17 ergs/s/cm^2/Angs", 1.0), ("TUNIT1", "erg/s/cm^2/Angstrom", 1e17),
     ("BUNIT", "1E-17 erg/cm^2/s/Ang", 1.0), ("BUNIT", "1E-15 erg/cm^2/s/Ang", 100.0)],
)  # fmt: skip
def test_flux_units_are_honoured(tmp_path, where, unit, factor):
    table = pixels()
    if where == "TUNIT1":
        table.header[where] = unit
    header = {} if where == "TUNIT1" else {where: unit}
    spectrum = read_one(spec(tmp_path / "x.fits", table, **header))
    np.testing.assert_allclose(spectrum.flux, factor * np.linspace(1, 2, 300), rtol=1e-6)
    np.testing.assert_allclose(spectrum.ivar, 4.0 / factor**2, rtol=1e-6)


@pytest.mark.parametrize("unit", ["nanomaggy", "counts", "eV", "?"])
def test_flux_units_that_are_none_are_refused(tmp_path, unit):
    with pytest.raises(InvalidRecord, match=r"unit_unknown: flux: expected .* found"):
        read_one(spec(tmp_path / "x.fits", pixels(), BUNIT=unit))


def test_wavelengths_in_nanometres(tmp_path):
    table = pixels("flux wavelength ivar and_mask")
    table.header["TUNIT2"] = "nm"
    table.data["wavelength"] /= 10
    spectrum = read_one(spec(tmp_path / "x.fits", table))
    np.testing.assert_allclose(spectrum.wavelength, 10 ** (3.58 + 1e-4 * np.arange(300)), rtol=1e-9)


IVAR = "1e32 (s2 cm4 Angstrom2) / erg2"  # (1e-16 …)⁻²


@pytest.mark.parametrize("flux", ["", "1e-16 erg/s/cm2/Angstrom"])
def test_the_unit_of_ivar_is_its_own(tmp_path, flux):
    table = pixels()
    table.header["TUNIT3"] = IVAR
    if flux:
        table.header["TUNIT1"] = flux
    spectrum = read_one(spec(tmp_path / "x.fits", table))
    np.testing.assert_allclose(spectrum.ivar, 4.0 / 100, rtol=1e-6)
    np.testing.assert_allclose(spectrum.flux[0], 10.0 if flux else 1.0, rtol=1e-6)
    assert spectrum.statements["ivar_unit"] == f"{IVAR}: TUNIT3"
    table.header["TUNIT3"] = "1e-17 erg/s/cm2/Angstrom"
    with pytest.raises(InvalidRecord, match="unit_unknown: ivar"):
        read_one(spec(tmp_path / "y.fits", table))


def test_the_table_of_pixels_states_its_medium_and_units(tmp_path):
    table = pixels()
    table.header.update({"VACUUM": False, "TUNIT2": "log10(nm)"})
    table.data["loglam"] -= 1
    spectrum = read_one(spec(tmp_path / "x.fits", table, VACUUM=True))
    expected = air_to_vacuum(10 ** (3.58 + 1e-4 * np.arange(300)))
    np.testing.assert_allclose(spectrum.wavelength, expected, rtol=1e-6)
    table.header["TUNIT2"] = "Angstrom"
    with pytest.raises(InvalidRecord, match="unit_conflict: loglam: expected 'log10"):
        read_one(spec(tmp_path / "y.fits", table))
