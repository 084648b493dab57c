"""Column maps: the same spectra in Parquet, FITS, npz and CSV; real packed tables; refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from pyarrow import fs

from skyray.cards import load_card
from skyray.config import ConfigError
from skyray.readers import columns as columns_module
from skyray.readers.base import Reader, SurveyFile, make_reader
from skyray.records import InvalidRecord, Spectrum, check_spectrum, tensor_array
from skyray.transforms.spectra import air_to_vacuum

ROWS, PIXELS = 5, 300
WAVE = 4000.0 + 2.0 * np.arange(PIXELS)
OPTIONS = {
    "medium": "vacuum",
    "wavelength": {"column": "wave"},
    "flux": "flux",
    "ivar": "ivar",
    "mask": "bad",
    "fields": {"object_id": "name", "ra": "ra", "redshift": "z", "spectype": "kind"},
    "extra": ["plate"],
}


def columns() -> dict:
    rng = np.random.default_rng(4)
    return {
        "name": [f"obj{n}" for n in range(ROWS)],
        "ra": np.linspace(0, 40, ROWS),
        "z": np.linspace(0.1, 0.5, ROWS),
        "kind": ["STAR", "GALAXY", "QSO", "", "STAR"],
        "plate": np.arange(ROWS) + 266,
        "wave": np.tile(WAVE, (ROWS, 1)),
        "flux": rng.normal(2, 0.3, (ROWS, PIXELS)),
        "ivar": rng.uniform(1, 2, (ROWS, PIXELS)),
        "bad": (rng.random((ROWS, PIXELS)) < 0.05).astype(np.int32),
    }


def write(path: Path, table: dict, group: int = 2) -> Path:
    if path.suffix == ".parquet":
        lists = {k: list(v) if np.ndim(v) == 2 else v for k, v in table.items()}
        pq.write_table(pa.table(lists), path, row_group_size=group)
    elif path.suffix == ".npz":
        np.savez(path, **{k: np.asarray(v) for k, v in table.items()})
    else:
        formats = {"name": "8A", "kind": "6A", "plate": "J", "bad": f"{PIXELS}J"}
        made = []
        for name, values in table.items():
            default = f"{PIXELS}D" if np.ndim(values) == 2 else "D"
            made.append(fits.Column(name.upper(), formats.get(name, default), array=values))
        fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(made)]).writeto(path)
    return path


def file(path: Path) -> SurveyFile:
    return SurveyFile(fs.LocalFileSystem(), str(path))


def read(path: Path, options: dict) -> list:
    reader: Reader = make_reader("spectrum_table", options)
    return [r for unit in reader.units(file(path)) for r in reader.read(file(path), unit)]


@pytest.mark.parametrize("suffix", [".parquet", ".npz", ".fits"])
def test_same_spectra_in_every_format(tmp_path, suffix):
    table = columns()
    spectra = read(write(tmp_path / f"spectra{suffix}", table), OPTIONS)
    assert [s.object_id for s in spectra] == table["name"]
    for row, spectrum in enumerate(spectra):
        check_spectrum(spectrum)
        np.testing.assert_array_equal(spectrum.wavelength, WAVE)
        np.testing.assert_array_equal(spectrum.flux, table["flux"][row].astype(np.float32))
        np.testing.assert_array_equal(spectrum.ivar, table["ivar"][row].astype(np.float32))
        np.testing.assert_array_equal(spectrum.mask, table["bad"][row] != 0)
        assert (spectrum.ra, spectrum.redshift) == (table["ra"][row], table["z"][row])
        assert spectrum.spectype == table["kind"][row]
        assert spectrum.extra == {"plate": 266 + row}
        assert spectrum.source.endswith(f"spectra{suffix}#{row}")


def test_parquet_is_read_by_row_groups(tmp_path):
    path = write(tmp_path / "spectra.parquet", columns())
    reader = make_reader("spectrum_table", OPTIONS)
    assert reader.units(file(path)) == [0, 1, 2]
    assert [s.object_id for s in reader.read(file(path), 1)] == ["obj2", "obj3"]
    assert [s.source[-2:] for s in reader.read(file(path), 2)] == ["#4"]


def test_csv_of_pixels(tmp_path):
    table = columns()
    path = tmp_path / "star-7.csv"
    lines = zip(WAVE, table["flux"][0], table["ivar"][0] ** -0.5, strict=True)
    path.write_text("wave,flux,sigma\n" + "\n".join(f"{w},{f:.17g},{e:.17g}" for w, f, e in lines))
    options = {"medium": "air", "layout": "pixels", "wavelength": {"column": "wave"},
               "flux": "flux", "error": "sigma", "flux_unit": 10.0, "survey": "mine"}  # fmt: skip
    (spectrum,) = read(path, options)
    check_spectrum(spectrum)
    assert (spectrum.object_id, spectrum.survey) == ("star-7", "mine")
    np.testing.assert_array_equal(spectrum.wavelength, air_to_vacuum(WAVE))
    np.testing.assert_allclose(spectrum.flux, 10 * table["flux"][0], rtol=1e-6)
    np.testing.assert_allclose(spectrum.ivar, table["ivar"][0] / 100, rtol=1e-6)


def test_fits_keywords_stand_in_for_columns(tmp_path):
    path = tmp_path / "one.fits"
    made = [fits.Column(n, "D", array=v) for n, v in (("w", WAVE), ("f", WAVE / 1e3))]
    made.append(fits.Column("e", "D", array=np.full(PIXELS, 0.5)))
    table = fits.BinTableHDU.from_columns(made)
    table.header["TARGET"] = "HD 1234"
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(path)
    options = {"medium": "vacuum", "layout": "pixels", "wavelength": {"column": "w"}, "flux": "f",
               "error": "e", "fields": {"object_id": "target"}}  # fmt: skip
    (spectrum,) = read(path, options)
    assert spectrum.object_id == "HD 1234"
    assert spectrum.ivar[0] == 4.0


def test_regular_grid_by_columns_and_numbers(tmp_path):
    table = columns()
    table["loglam0"] = np.full(ROWS, 3.6)
    path = write(tmp_path / "spectra.parquet", table)
    log = {**OPTIONS, "wavelength": {"kind": "log10", "start": "loglam0", "step": 1e-4}}
    expected = 10.0 ** (3.6 + 1e-4 * np.arange(PIXELS))
    np.testing.assert_allclose(read(path, log)[0].wavelength, expected, rtol=1e-14)
    linear = {**OPTIONS, "wavelength": {"kind": "linear", "start": 5000, "step": 0.5}}
    np.testing.assert_allclose(read(path, linear)[0].wavelength, 5000 + 0.5 * np.arange(PIXELS))


def test_shared_wavelengths_and_bits(tmp_path):
    table = {**columns(), "wave": WAVE, "bad": np.full((ROWS, PIXELS), 1 << 23, dtype=np.int32)}
    table["bad"][0, 3] |= 1 << 24
    path = write(tmp_path / "spectra.npz", table)
    spectra = read(path, {**OPTIONS, "bad_bits": [24]})
    np.testing.assert_array_equal(spectra[4].wavelength, WAVE)
    assert [int(s.mask.sum()) for s in spectra] == [1, 0, 0, 0, 0]


def test_a_bad_row_does_not_stop_the_others(tmp_path):
    table = columns()
    lists = {k: list(v) for k, v in table.items()}
    lists["ivar"][1] = lists["ivar"][1][:-5]
    lists["flux"][2] = None
    path = tmp_path / "spectra.parquet"
    pq.write_table(pa.table(lists), path)
    found = read(path, OPTIONS)
    assert [type(r) for r in found] == [Spectrum, InvalidRecord, InvalidRecord, Spectrum, Spectrum]
    assert [found[1].reason, found[2].reason] == ["shape_mismatch", "column_type"]
    assert found[1].object_id == "obj1"
    assert found[2].source.endswith("#2")


def test_null_and_text_cells_are_refused_row_by_row(tmp_path):
    table = columns()
    lists = {k: list(v) for k, v in table.items()}
    lists["name"][0] = None
    lists["start"] = [4000.0, None, 4000.0, 4000.0, 4000.0]
    path = tmp_path / "spectra.parquet"
    pq.write_table(pa.table(lists), path)
    options = {**OPTIONS, "wavelength": {"kind": "linear", "start": "start", "step": 2.0}}
    found = read(path, options)
    reasons = [r.reason if isinstance(r, InvalidRecord) else "" for r in found]
    assert reasons == ["field_invalid", "field_invalid", "", "", ""]
    assert [r.reason for r in read(path, {**options, "flux": "z"})][2:] == ["column_type"] * 3


def test_tensor_columns_are_arrays(tmp_path):
    table = columns()
    tensors = {
        name: tensor_array(values, pa.float64()) if np.ndim(values) == 2 else values
        for name, values in table.items()
    }
    path = tmp_path / "dataset.parquet"
    pq.write_table(pa.table(tensors), path)
    for row, spectrum in enumerate(read(path, OPTIONS)):
        np.testing.assert_array_equal(spectrum.flux, table["flux"][row].astype(np.float32))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.parquet", b"PAR1 but not really", "parquet_invalid"),
        ("a.npz", b"PK\x03\x04 cut", "npz_invalid"),
        ("a.csv", b"wave,flux\n1,2,3\n4\n", "csv_invalid"),
        ("a.fits", b"hello", "not_fits"),
        ("a.npz", b"", "file_empty"),
    ],
)
def test_unreadable_files(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidRecord) as refusal:
        read(tmp_path / name, OPTIONS)
    assert refusal.value.reason == reason


def test_pickled_arrays_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, flux=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InvalidRecord, match="npz_invalid"):
        read(path, OPTIONS)


def test_missing_column_refuses_the_file(tmp_path):
    path = write(tmp_path / "spectra.parquet", columns())
    with pytest.raises(InvalidRecord, match=r"column_missing.*'sigma'"):
        read(path, {**OPTIONS, "ivar": None, "error": "sigma"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"medium": None}, "medium"),
        ({"medium": "water"}, "medium"),
        ({"error": "sigma"}, "exactly one of ivar and error"),
        ({"ivar": None}, "exactly one of ivar and error"),
        ({"wavelength": {}}, "either column, or kind"),
        ({"wavelength": {"kind": "log10", "start": 3.5}}, "either column, or kind"),
        ({"fields": {"colour": "g_r"}}, "unknown"),
        ({"arms": ["b"]}, "go together"),
        ({"wavelenght": {}}, "wavelenght"),
    ],
)
def test_options_are_checked_when_the_card_is_read(change, message):
    with pytest.raises(ConfigError, match=message):
        make_reader("spectrum_table", {**OPTIONS, **change})


@pytest.mark.parametrize("medium", [{}, {"medium": "from_file"}])
def test_medium_must_be_said(tmp_path, medium):
    options = {key: value for key, value in OPTIONS.items() if key != "medium"} | medium
    with pytest.raises(InvalidRecord, match="medium_unknown"):
        read(write(tmp_path / "x.fits", columns()), options)


def test_real_packed_sdss_equals_the_survey_files(survey_data):
    card = load_card("sdss_table")
    spectra = read(survey_data / "spectra_sdss" / "spectra.parquet", card.reader_options)
    assert len(spectra) == 180
    trusted = [s for s in spectra if s.zwarning == 0]
    assert len(trusted) == 160
    labels = [card.label_of(s.fields()) for s in trusted]
    assert [labels.count(c) for c in ("STAR", "GALAXY", "QSO")] == [22, 9, 129]
    packed = {s.object_id: s for s in spectra}
    for path in sorted((survey_data / "spectra_sdss" / "raw_fits").glob("spec-*.fits")):
        (raw,) = make_reader("sdss_spec").read(file(path))
        twin = packed[raw.object_id]
        np.testing.assert_array_equal(twin.flux, raw.flux)
        np.testing.assert_array_equal(twin.ivar, raw.ivar)
        np.testing.assert_array_equal(twin.mask, raw.mask)
        np.testing.assert_allclose(twin.wavelength, raw.wavelength, rtol=2e-6)
        assert (twin.spectype, twin.subtype) == (raw.spectype, raw.subtype)
        assert twin.redshift == pytest.approx(raw.redshift, rel=1e-6)


def test_real_packed_desi_arms_are_coadded(survey_data):
    options = {
        "medium": "vacuum",
        "wavelength": {"column": "{arm}_wave"},
        "flux": "{arm}_flux",
        "ivar": "{arm}_ivar",
        "mask": "{arm}_mask",
        "arms": ["b", "r", "z"],
        "coadd_grid": {"kind": "linear", "start": 3600.0, "step": 0.8, "size": 7781},
        "fields": {"object_id": "targetid", "redshift": "z", "spectype": "spectype"},
    }
    spectra = read(survey_data / "spectra_desi" / "coadds.npz", options)
    assert len(spectra) == 32
    raw = survey_data / "spectra_desi" / "raw_fits" / "coadd-5-169-thru20210419.fits"
    twins = {s.object_id: s for s in spectra}
    found = 0
    for spectrum in make_reader("desi_coadd").read(file(raw)):
        if isinstance(spectrum, Spectrum) and spectrum.object_id in twins:
            found += 1
            np.testing.assert_array_equal(twins[spectrum.object_id].ivar, spectrum.ivar)
            np.testing.assert_array_equal(twins[spectrum.object_id].flux, spectrum.flux)
    assert found


PIXEL_OPTIONS = {"medium": "vacuum", "wavelength": {"column": "wave"}, "flux": "flux",
                 "ivar": "ivar", "layout": "pixels", "fields": {"object_id": "name"}}  # fmt: skip


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".fits", ".npz"])
def test_rows_of_pixels_are_one_spectrum_however_they_are_stored(tmp_path, suffix, monkeypatch):
    size = 4000
    table = {"wave": 3600 + np.arange(size), "flux": np.linspace(1, 2, size),
             "ivar": np.full(size, 4.0), "name": ["star"] * size}  # fmt: skip
    path = tmp_path / f"x{suffix}"
    if suffix == ".csv":
        rows = zip(*table.values(), strict=True)
        path.write_text(
            "\n".join(["wave,flux,ivar,name", *(f"{a},{b},{c},{d}" for a, b, c, d in rows)])
        )
    else:
        write(path, table, group=700)
    monkeypatch.setattr(columns_module, "_FITS_BYTES_AT_ONCE", 1000)
    (spectrum,) = read(path, PIXEL_OPTIONS)
    np.testing.assert_array_equal(spectrum.wavelength, table["wave"])
    np.testing.assert_array_equal(spectrum.flux, table["flux"].astype(np.float32))
    assert (spectrum.object_id, spectrum.source) == ("star", str(path))
    mixed = write(tmp_path / "y.parquet", {**table, "name": ["star"] * (size - 1) + ["other"]})
    assert "expected one value in all rows of a spectrum, found 'star' and 'other'" in str(
        read(mixed, PIXEL_OPTIONS)[0]
    )
    monkeypatch.setattr(columns_module, "MAX_PIXELS", size - 1)
    with pytest.raises(InvalidRecord, match=r"at most 3,999 pixels.*found 4,000 rows") as refused:
        read(path, PIXEL_OPTIONS)
    assert refused.value.reason == "spectrum_too_large"


def test_two_tables_that_describe_a_spectrum_are_not_chosen_between(tmp_path):
    def spectrum(name: str) -> fits.BinTableHDU:
        made = [fits.Column(n, "D", unit=u, array=WAVE) for n, u in
                (("WAVE", "Angstrom"), ("FLUX", "Jy"), ("ERR", "Jy"))]  # fmt: skip
        return fits.BinTableHDU.from_columns(made, name=name)

    other = fits.BinTableHDU.from_columns([fits.Column("A", "D", array=WAVE)])
    path = tmp_path / "x.fits"
    fits.HDUList([fits.PrimaryHDU(), other, spectrum("BLUE"), spectrum("RED")]).writeto(path)
    with pytest.raises(InvalidRecord, match=r"found HDUs \['2 BLUE', '3 RED'\]") as refused:
        read(path, {"medium": "vacuum"})
    assert refused.value.reason == "layout_ambiguous"
    assert len(read(path, {"medium": "vacuum", "hdu": "RED"})) == 1


def test_rows_that_are_lists_of_the_heap_are_objects(tmp_path):
    lists = np.empty(2, object)
    lists[:] = [WAVE, WAVE[:200]]
    made = [fits.Column(n, "PD()", unit=u, array=lists) for n, u in
            (("WAVE", "Angstrom"), ("FLUX", "Jy"), ("ERR", "Jy"))]  # fmt: skip
    path = tmp_path / "x.fits"
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(made)]).writeto(path)
    assert [len(found.flux) for found in read(path, {"medium": "vacuum"})] == [300, 200]
