"""What file and card say of a table's numbers: honoured, refused, or marked unknown by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.table import Table
from pyarrow import fs

from skyray.readers import spectrum_values
from skyray.readers.base import SurveyFile, make_reader
from skyray.readers.column_facts import ColumnFacts
from skyray.readers.fits_header import Header
from skyray.readers.fits_keywords import Keywords
from skyray.readers.spectrum_values import DataModel, decide
from skyray.readers.table_options import WavelengthOptions
from skyray.records import InvalidRecord, Spectrum
from skyray.transforms.spectra import air_to_vacuum

SIZE = 300
WAVE_COLUMN = WavelengthOptions(column="wave")
WAVE = 4000.0 + 2.0 * np.arange(SIZE)
FLUX = np.linspace(1.0, 2.0, SIZE)
C = 2.99792458e18
OURS = "10**(-17) erg/s/cm2/Angstrom"
OPTIONS = {"medium": "vacuum", "wavelength": {"column": "wave"}, "flux": "flux", "error": "err",
           "fields": {"object_id": "name", "ra": "ra", "dec": "dec"}}  # fmt: skip


def write(path: Path, keywords=None, **columns) -> Path:
    """One row; a column is (values, TUNIT)."""
    given = {"wave": (WAVE, "Angstrom"), "flux": (FLUX, OURS), "err": (np.full(SIZE, 0.1), OURS),
             "ra": (10.0, "deg"), "dec": (-5.0, "deg"), **columns}  # fmt: skip
    made = [fits.Column("name", "8A", array=["star"])]
    for name, (values, unit) in given.items():
        text = isinstance(values, str)
        form = (
            "20A"
            if text
            else f"{np.size(values)}{'L' if np.asarray(values).dtype == bool else 'D'}"
        )
        made.append(fits.Column(name, form, unit=unit or None, array=[values]))
    table = fits.BinTableHDU.from_columns(made)
    table.header.update(keywords or {})
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(path)
    return path


def read(path: Path, **options) -> Spectrum:
    reader = make_reader("spectrum_table", {**OPTIONS, **options})
    (record,) = reader.read(SurveyFile(fs.LocalFileSystem(), str(path)))
    if isinstance(record, InvalidRecord):
        raise record
    return record


def refusal(path: Path, **options) -> InvalidRecord:
    with pytest.raises(InvalidRecord) as refused:
        read(path, **options)
    assert str(path) in refused.value.source
    return refused.value


# flux and noise ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("unit", "factor"),
    [(OURS, 1.0), ("1e-16 erg/s/cm2/A", 10.0), ("erg/s/cm2/nm", 1e16), ("W m-2 um-1", 1e16),
     ("mJy", 1e-26 * C / WAVE**2 * 1e17), ("1e-26 erg/s/cm2/Hz", C / WAVE**2 * 1e-9)],
)  # fmt: skip
def test_the_units_of_the_file_are_honoured(tmp_path, unit, factor):
    err = np.full(SIZE, 0.1)
    spectrum = read(write(tmp_path / "x.fits", flux=(FLUX, unit), err=(err, unit)))
    np.testing.assert_allclose(spectrum.flux, FLUX * factor, rtol=1e-6)
    np.testing.assert_allclose(spectrum.ivar, 1 / (0.1 * factor) ** 2, rtol=1e-6)
    assert spectrum.statements["flux_unit"] == f"{unit}: TUNIT3"
    np.testing.assert_allclose(spectrum.snr, np.median(FLUX / 0.1), rtol=1e-3)


def test_noise_has_its_own_unit(tmp_path):
    err = (np.full(SIZE, 100.0), "uJy")
    spectrum = read(write(tmp_path / "e.fits", flux=(FLUX, "mJy"), err=err))
    np.testing.assert_allclose(spectrum.flux * np.sqrt(spectrum.ivar), FLUX / 0.1, rtol=1e-6)
    ivar = (np.full(SIZE, 400.0), "10**32 (s2 cm4 nm2) / erg2")  # 1/(1e-16 …/nm)²
    path = write(tmp_path / "i.fits", err=ivar)
    spectrum = read(path, error=None, ivar="err")
    np.testing.assert_allclose(spectrum.ivar, 400.0, rtol=1e-6)
    assert spectrum.statements["ivar_unit"].endswith("TUNIT4")
    assert refusal(write(tmp_path / "s.fits", err=(WAVE, "nm"))).reason == "unit_unknown"
    silent = write(tmp_path / "n.fits", flux=(FLUX, ""))
    assert refusal(silent).reason == "unit_conflict"
    assert refusal(write(tmp_path / "v.fits"), error=None, ivar="err").reason == "unit_unknown"


@pytest.mark.parametrize(
    ("stated", "card", "reason"),
    [(OURS, 10.0, "unit_conflict"), (OURS, "Jy", "unit_conflict"), ("adu", OURS, "unit_conflict"),
     ("count", 1.0, "unit_conflict"), ("adu", None, "unit_unknown"), ("mag", None, "unit_unknown"),
     ("erg/s/cm2", None, "unit_unknown"), ("flux units", None, "unit_unknown"),
     (OURS, "relative", "unit_conflict")],
)  # fmt: skip
def test_units_that_contradict_or_are_none_are_refused(tmp_path, stated, card, reason):
    path = write(tmp_path / "x.fits", flux=(FLUX, stated), err=(FLUX, stated))
    found = refusal(path, flux_unit=card)
    assert found.reason == reason
    assert repr(stated) in found.detail


@pytest.mark.parametrize(
    ("stated", "card", "factor", "told"),
    [("", None, 1.0, "unknown: neither file nor card states one"), ("", 10.0, 10.0, "× 10: card"),
     ("", "1e-16 erg/s/cm2/A", 10.0, "1e-16 erg/s/cm2/A: card"),
     ("", "relative", 1.0, "relative: card"), ("", "unknown", 1.0, "relative: card"),
     ("adu", "relative", 1.0, "relative: card (the file says 'adu')"),
     ("flux units", 1.0, 1.0, "× 1: card (not understood: 'flux units')"),
     ("1e-16 erg/s/cm2/A", 10.0, 10.0, "1e-16 erg/s/cm2/A: TUNIT3"),
     ("1e-17 FLAM", "1e-17 erg/s/cm2/A", 1.0, "1e-17 FLAM: TUNIT3")],
)  # fmt: skip
def test_what_was_decided_is_told(tmp_path, stated, card, factor, told):
    noise = stated if stated.startswith("1e") else ""
    path = write(tmp_path / "x.fits", flux=(FLUX, stated), err=(FLUX / 10, noise))
    spectrum = read(path, flux_unit=card)
    np.testing.assert_allclose(spectrum.flux, FLUX * factor, rtol=1e-6)
    np.testing.assert_allclose(spectrum.flux * np.sqrt(spectrum.ivar), 10, rtol=1e-5)
    assert spectrum.statements["flux_unit"] == told


@pytest.mark.parametrize("unit", ["furlong", "adu", "Angstrom", "mag"])
def test_a_card_with_an_impossible_unit_is_refused_when_it_is_read(unit):
    with pytest.raises(ValueError, match="flux_unit"):
        make_reader("spectrum_table", {**OPTIONS, "flux_unit": unit})


def test_fluxes_beyond_32_bit_floats_are_converted_first_or_refused(tmp_path):
    cgs = {"flux": (FLUX * 1e-18, "erg/s/cm2/A"), "err": (FLUX * 1e-20, "erg/s/cm2/A")}
    spectrum = read(write(tmp_path / "x.fits", **cgs))
    np.testing.assert_allclose(spectrum.flux, FLUX * 0.1, rtol=1e-6)
    np.testing.assert_allclose(spectrum.ivar, (FLUX * 1e-3) ** -2, rtol=1e-6)
    silent = {name: (values, "") for name, (values, _) in cgs.items()}
    found = refusal(write(tmp_path / "y.fits", **silent))
    assert found.reason == "value_out_of_range"
    assert "flux_unit" in found.detail
    stated = read(tmp_path / "y.fits", flux_unit="erg/s/cm2/Angstrom")
    np.testing.assert_array_equal(stated.flux, spectrum.flux)


# wavelengths --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("values", "unit", "card"),
    [(WAVE / 10, "nm", {}), (WAVE / 1e4, "um", {}), (np.log10(WAVE), "log10(Angstrom)", {}),
     (np.log(WAVE), "ln(Angstrom)", {}), (C / WAVE, "Hz", {}),
     (12398.419843320026 / WAVE, "eV", {}),
     (WAVE / 10, "", {"unit": "nm"}), (WAVE / 10, "", {"unit_angstrom": 10.0}),
     (WAVE / 10, "nm", {"unit_angstrom": 10.0}), (WAVE / 10, "nanom.", {"unit": "nm"})],
)  # fmt: skip
def test_wavelengths_in_any_unit(tmp_path, values, unit, card):
    path = write(tmp_path / "x.fits", wave=(values, unit))
    spectrum = read(path, wavelength={"column": "wave", **card})
    np.testing.assert_allclose(spectrum.wavelength, WAVE, rtol=1e-12)
    np.testing.assert_allclose(spectrum.flux, FLUX, rtol=1e-6)


def test_descending_wavelengths_are_turned_round_with_all_that_belongs_to_them(tmp_path):
    err = np.linspace(0.1, 0.3, SIZE)
    mask = np.arange(SIZE) == 7
    path = write(tmp_path / "x.fits", wave=(WAVE[::-1], "Angstrom"), err=(err, OURS),
                 mask=(mask, ""))  # fmt: skip
    spectrum = read(path, mask="mask")
    np.testing.assert_array_equal(spectrum.wavelength, WAVE)
    np.testing.assert_allclose(spectrum.flux, FLUX[::-1], rtol=1e-6)
    np.testing.assert_allclose(spectrum.ivar, err[::-1] ** -2.0, rtol=1e-6)
    np.testing.assert_array_equal(spectrum.mask, mask[::-1])


@pytest.mark.parametrize(
    ("unit", "card", "reason"),
    [("nm", {"unit_angstrom": 1.0}, "unit_conflict"), ("Angstrom", {"unit": "nm"}, "unit_conflict"),
     ("km/s", {}, "unit_unknown"), ("pixel", {}, "unit_unknown"), ("dex", {}, "unit_unknown"),
     ("Angstrom", {"unit": "log10(Angstrom)"}, "unit_conflict")],
)  # fmt: skip
def test_wavelengths_of_a_unit_that_contradicts_or_is_none(tmp_path, unit, card, reason):
    path = write(tmp_path / "x.fits", wave=(WAVE, unit))
    assert refusal(path, wavelength={"column": "wave", **card}).reason == reason


def test_air_by_the_file_is_converted_and_told(tmp_path):
    path = write(tmp_path / "x.fits", {"TUCD2": "em.wl;obs.air", "SPECSYS": "HELIOCEN"})
    spectrum = read(path, medium="from_file")
    np.testing.assert_array_equal(spectrum.wavelength, air_to_vacuum(WAVE))
    assert spectrum.statements["medium"] == "air: UCD em.wl;obs.air of wave"
    assert spectrum.statements["frame"] == "heliocen: SPECSYS"
    assert refusal(path, medium="vacuum").reason == "medium_conflict"


def test_topocentric_wavelengths_are_corrected_or_refused(tmp_path):
    told = {"SPECSYS": "TOPOCENT", "RA": 26.0, "DEC": -15.9, "MJD-AVG": 56532.97,
            "OBSGEO-X": 1814985.3, "OBSGEO-Y": -5213916.8, "OBSGEO-Z": -3187738.1}  # fmt: skip
    spectrum = read(write(tmp_path / "x.fits", told))
    velocity = (spectrum.wavelength / WAVE - 1) * 299792.458
    np.testing.assert_allclose(velocity, velocity[0], atol=1e-6)
    assert 5 < abs(velocity[0]) < 31
    del told["OBSGEO-X"]
    assert refusal(write(tmp_path / "y.fits", told)).reason == "frame_topocentric"


# Parquet ------------------------------------------------------------------------------------------
def test_parquet_states_units_in_its_fields_or_as_astropy_writes_them(tmp_path):
    rows = {"wave": [WAVE / 10], "flux": [FLUX], "err": [FLUX / 10], "name": ["a"], "ra": [1.0],
            "dec": [2.0]}  # fmt: skip
    fields = [pa.field("wave", pa.list_(pa.float64()), metadata={"unit": "nm", "ucd": "em.wl"})]
    fields += [
        pa.field(n, pa.list_(pa.float64()), metadata={"unit": "1e-16 erg/s/cm2/A"})
        for n in ("flux", "err")
    ]
    fields += [pa.field("name", pa.string()), pa.field("ra", pa.float64()),
               pa.field("dec", pa.float64())]  # fmt: skip
    pq.write_table(pa.table(rows, schema=pa.schema(fields)), tmp_path / "x.parquet")
    flam = u.Unit("1e-16 erg/(s cm2 Angstrom)")
    table = Table({"wave": [WAVE / 10] * u.nm, "flux": [FLUX] * flam,
                   "err": [FLUX / 10] * flam, "name": ["a"],
                   "ra": [1.0] * u.deg, "dec": [2.0] * u.deg})  # fmt: skip
    arrow = pa.table({n: list(np.asarray(table[n])) for n in table.colnames})
    from astropy.table import meta

    text = "\n".join(meta.get_yaml_from_table(table)).encode()
    arrow = arrow.replace_schema_metadata({b"table_meta_yaml": text})
    pq.write_table(arrow, tmp_path / "y.parquet")
    for name, medium in (("x", "from_file"), ("y", "vacuum")):
        spectrum = read(tmp_path / f"{name}.parquet", medium=medium)
        np.testing.assert_allclose(spectrum.wavelength, WAVE, rtol=1e-12)
        np.testing.assert_allclose(spectrum.flux, 10 * FLUX, rtol=1e-6)


# positions and masks ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("ra", "dec"),
    [((10.0, "deg"), (-5.0, "deg")), ((np.deg2rad(10.0), "rad"), (np.deg2rad(-5.0), "rad")),
     ((10 / 15, "hourangle"), (-5.0, "")), (("00:40:00.0", ""), ("-05:00:00", "")),
     (("0h40m0s", ""), ("-5d0m0s", "")), ((10 / 15, "h"), (-18000.0, "arcsec"))],
)  # fmt: skip
def test_positions_in_any_unit(tmp_path, ra, dec):
    spectrum = read(write(tmp_path / "x.fits", ra=ra, dec=dec))
    assert (spectrum.ra, spectrum.dec) == (pytest.approx(10.0), pytest.approx(-5.0))


@pytest.mark.parametrize(
    ("column", "reason"),
    [({"dec": (-95.0, "deg")}, "field_invalid"), ({"ra": (1e6, "deg")}, "field_invalid"),
     ({"ra": ("north", "")}, "field_invalid"), ({"ra": (1.0, "m")}, "unit_unknown")],
)  # fmt: skip
def test_impossible_positions_are_refused(tmp_path, column, reason):
    assert refusal(write(tmp_path / "x.fits", **column)).reason == reason


def test_a_mask_may_mean_good(tmp_path):
    good = np.arange(SIZE) % 3 > 0
    path = write(tmp_path / "x.fits", mask=(good, ""))
    np.testing.assert_array_equal(read(path, mask="mask", mask_means="good").mask, ~good)
    np.testing.assert_array_equal(read(path, mask="mask").mask, good)
    fractions = write(tmp_path / "y.fits", mask=(good + 0.5, ""))
    assert refusal(fractions, mask="mask", bad_bits=[0]).reason == "column_type"
    unknown = write(tmp_path / "z.fits", mask=(np.where(good, 0.0, np.nan), ""))
    np.testing.assert_array_equal(read(unknown, mask="mask", bad_bits=[0]).mask, ~good)


# tables that describe themselves ------------------------------------------------------------------
def eso(path: Path, **change) -> Path:
    """A phase 3 spectrum: one row of arrays, described by UCD and UTYPE, under any names."""
    names = {"wave": "WAVE_A", "flux": "F1", "err": "E1", "extra": "FLUX_REDUCED", **change}
    unit = "10**(-16)erg.cm**(-2).s**(-1).angstrom**(-1)"
    made = [
        fits.Column(names["wave"], f"{SIZE}D", unit="nm", array=[WAVE / 10]),
        fits.Column(names["flux"], f"{SIZE}E", unit=unit, array=[FLUX]),
        fits.Column(names["err"], f"{SIZE}E", unit=unit, array=[FLUX / 10]),
        fits.Column(names["extra"], f"{SIZE}E", unit="adu", array=[FLUX * 99]),
    ]
    table = fits.BinTableHDU.from_columns(made)
    about = [("SpectralAxis.Value", "em.wl;obs.atmos"),
             ("FluxAxis.Value", "phot.flux.density;em.wl"),
             ("FluxAxis.Accuracy.StatError", "stat.error;phot.flux.density;em.wl"),
             ("eso:Data.FluxAxis.Value", "phot.flux.density;em.wl")]  # fmt: skip
    for n, (utype, ucd) in enumerate(about, 1):
        table.header[f"TUTYP{n}"] = utype if ":" in utype else f"Spectrum.Data.{utype}"
        table.header[f"TUCD{n}"] = ucd
    primary = fits.PrimaryHDU()
    primary.header.update({"OBJECT": "HD 2", "RA": 10.0, "DEC": -5.0, "SPECSYS": "BARYCENT"})
    fits.HDUList([primary, table]).writeto(path)
    return path


def bare(path: Path, **options) -> Spectrum:
    reader = make_reader("spectrum_table", options)
    (record,) = reader.read(SurveyFile(fs.LocalFileSystem(), str(path)))
    return record


def test_a_phase_3_spectrum_needs_no_more_than_the_reader(tmp_path):
    spectrum = bare(eso(tmp_path / "ADP.fits"))
    np.testing.assert_allclose(spectrum.wavelength, air_to_vacuum(WAVE), rtol=1e-12)
    np.testing.assert_allclose(spectrum.flux, 10 * FLUX, rtol=1e-6)
    np.testing.assert_allclose(spectrum.flux * np.sqrt(spectrum.ivar), 10, rtol=1e-5)
    assert (spectrum.object_id, spectrum.ra, spectrum.dec) == ("HD 2", 10.0, -5.0)
    assert spectrum.observation_id.startswith("HD 2-")
    assert spectrum.statements["medium"] == "air: UCD em.wl;obs.atmos of WAVE_A"


def test_by_names_where_nothing_else_is_told_and_a_row_a_pixel(tmp_path):
    made = [
        fits.Column(n, "D", unit=unit, array=values)
        for n, unit, values in (
            ("Wavelength", "Angstrom (vacuum)", WAVE),
            ("Flux", OURS, FLUX),
            ("ivar", None, FLUX),
        )
    ]
    fits.BinTableHDU.from_columns(made).writeto(tmp_path / "star.fits")
    spectrum = bare(tmp_path / "star.fits")
    np.testing.assert_array_equal(spectrum.wavelength, WAVE)
    np.testing.assert_allclose(spectrum.ivar, FLUX, rtol=1e-6)
    assert spectrum.statements["medium"].startswith("vacuum: unit")


def test_what_could_be_two_columns_is_refused(tmp_path):
    path = tmp_path / "two.fits"
    made = [fits.Column(n, f"{SIZE}D", array=[FLUX]) for n in ("wave", "wavelength", "flux", "err")]
    fits.BinTableHDU.from_columns(made).writeto(path)
    with pytest.raises(InvalidRecord, match=r"column_ambiguous.*wave.*wavelength"):
        bare(path)
    with pytest.raises(InvalidRecord, match="column_missing"):
        bare(write(tmp_path / "none.fits", flux=(FLUX, OURS)), flux="flux", error="nowhere",
             wavelength={"column": "wave"}, medium="air")  # fmt: skip


# regular grids ----------------------------------------------------------------------------------
GRIDS = {
    "Å": ("linear", (4000.0, "Angstrom"), (2.0, "Angstrom"), 4000 + 2 * np.arange(SIZE)),
    "nm": ("linear", (400.0, "nm"), (0.2, "nm"), 4000 + 2 * np.arange(SIZE)),
    "µm and nm": ("linear", (0.4, "um"), (0.2, "nm"), 4000 + 2 * np.arange(SIZE)),
    "Hz": ("linear", (5e14, "Hz"), (-2e11, "Hz"), C / (5e14 - 2e11 * np.arange(SIZE))),
    "log10 nm": ("log10", (2.6, "log10(nm)"), (1e-4, ""), 10 ** (3.6 + 1e-4 * np.arange(SIZE))),
    "dex": ("log10", (3.6, "dex"), (1e-4, "dex"), 10 ** (3.6 + 1e-4 * np.arange(SIZE))),
    "silent": ("log10", (3.6, ""), (1e-4, ""), 10 ** (3.6 + 1e-4 * np.arange(SIZE))),
    "nm beside nothing": ("linear", (400.0, "nm"), (0.2, ""), "unit_conflict"),
    "Å of a logarithm": ("log10", (3.6, "Angstrom"), (1e-4, ""), "unit_conflict"),
    "a logarithm of Å": ("linear", (4000.0, "log10(Angstrom)"), (2.0, ""), "unit_conflict"),
    "nm and Hz": ("linear", (400.0, "nm"), (2e11, "Hz"), "unit_conflict"),
    "ln": ("log10", (8.3, "ln(Angstrom)"), (1e-4, ""), "unit_conflict"),
    "none": ("linear", (4000.0, "adu"), (2.0, "adu"), "unit_unknown"),
}


@pytest.mark.parametrize("name", GRIDS)
def test_the_units_of_start_and_step_are_honoured(tmp_path, name):
    kind, start, step, expected = GRIDS[name]
    path = write(tmp_path / "x.fits", start=start, step=step)
    wavelength = {"kind": kind, "start": "start", "step": "step"}
    if isinstance(expected, str):
        assert refusal(path, wavelength=wavelength).reason == expected
        return
    found = read(path, wavelength=wavelength)
    np.testing.assert_allclose(found.wavelength, expected, rtol=1e-12)


def test_a_grid_by_keywords_is_in_their_cunit(tmp_path):
    keywords = {"CRVAL1": 400.0, "CDELT1": 0.2, "CUNIT1": "nm"}
    path = write(tmp_path / "x.fits", keywords)
    found = read(path, wavelength={"kind": "linear", "start": "CRVAL1", "step": "CDELT1"})
    np.testing.assert_allclose(found.wavelength, WAVE, rtol=1e-12)
    mixed = read(path, wavelength={"kind": "linear", "start": 4000.0, "step": "CDELT1"})
    np.testing.assert_allclose(mixed.wavelength, WAVE, rtol=1e-12)  # the card's numbers are Å


def test_what_files_state_alike_is_decided_once_and_refused_in_the_name_of_each(monkeypatch):
    made, ours = [], spectrum_values._decide
    monkeypatch.setattr(spectrum_values, "_decide", lambda *a: made.append(a[0]) or ours(*a))
    spectrum_values._silent.cache_clear()

    def meaning(source, unit, **keywords):
        facts = {role: ColumnFacts(role) for role in ("wavelength", "noise")}
        facts["flux"] = ColumnFacts("flux", unit, origin="TUNIT1")
        header = Keywords(((None, Header.of(fits.Header(keywords).tostring().encode())),))
        model = DataModel("heliocentric")
        return decide(source, header, facts, WAVE_COLUMN, "from_file", None, False, model)

    assert [meaning(name, OURS).source for name in "abc"] == ["a", "b", "c"]
    assert len(made) == 1
    assert meaning("d", OURS, VACUUM=False).medium == "air"
    assert meaning("e", OURS).medium == "vacuum"
    for name in ("f", "g"):
        with pytest.raises(InvalidRecord, match="unit_unknown") as refused:
            meaning(name, "K")
        assert refused.value.source == name
