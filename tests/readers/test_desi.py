"""DESI coadds: against astropy and a pixel-by-pixel co-addition; bad rows; the redrock join."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from pyarrow import fs

from skyray.readers.base import SurveyFile, make_reader
from skyray.readers.desi import ARMS, DESI_GRID
from skyray.records import InvalidRecord, check_spectrum

HEALPIX = "coadd-special-dark-27247.fits"
TILE = "coadd-5-169-thru20210419.fits"
ARM_PIXELS = {"B": (3600.0, 2751), "R": (5760.0, 2326), "Z": (7520.0, 2881)}


def read(path: Path) -> list:
    return list(make_reader("desi_coadd").read(SurveyFile(fs.LocalFileSystem(), str(path))))


def coadd_file(rows: int = 3, masks: bool = True) -> fits.HDUList:
    rng = np.random.default_rng(8)
    columns = [
        fits.Column("TARGETID", "K", array=2**55 + np.arange(rows)),
        fits.Column("COADD_FIBERSTATUS", "J", array=np.zeros(rows)),
        fits.Column("TARGET_RA", "D", array=10.0 + np.arange(rows)),
        fits.Column("TARGET_DEC", "D", array=np.full(rows, -5.0)),
        fits.Column("OBJTYPE", "3A", array=["TGT"] * rows),
        fits.Column("SV3_DESI_TARGET", "K", array=np.resize([1 << 60, 1 << 61, 4], rows)),
        fits.Column("DESI_TARGET", "K", array=np.zeros(rows)),
    ]
    hdus = [fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns, name="FIBERMAP")]
    hdus[0].header["SURVEY"] = "sv3"
    for arm, (start, size) in ARM_PIXELS.items():
        hdus.append(fits.ImageHDU(start + 0.8 * np.arange(size), name=f"{arm}_WAVELENGTH"))
        flux = rng.normal(3, 1, (rows, size)).astype(np.float32)
        ivar = rng.uniform(0.5, 2, (rows, size)).astype(np.float32)
        hdus += [fits.ImageHDU(flux, name=f"{arm}_FLUX"), fits.ImageHDU(ivar, name=f"{arm}_IVAR")]
        if masks:
            mask = (rng.random((rows, size)) < 0.02).astype(np.uint32)
            hdus.append(fits.ImageHDU(mask, name=f"{arm}_MASK"))
    return fits.HDUList(hdus)


def redrock_file(targets: list[int]) -> fits.HDUList:
    rows = len(targets)
    columns = [
        fits.Column("TARGETID", "K", array=targets),
        fits.Column("Z", "D", array=0.1 + 0.1 * np.arange(rows)),
        fits.Column("ZERR", "D", array=np.full(rows, 1e-4)),
        fits.Column("ZWARN", "K", array=np.zeros(rows)),
        fits.Column("SPECTYPE", "6A", array=["GALAXY"] * rows),
        fits.Column("SUBTYPE", "20A", array=[""] * rows),
        fits.Column("DELTACHI2", "D", array=np.full(rows, 55.0)),
    ]
    table = fits.BinTableHDU.from_columns(columns, name="REDSHIFTS")
    return fits.HDUList([fits.PrimaryHDU(), table])


def pixel_by_pixel(path: Path, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Co-add with astropy and plain loops."""
    weight: dict[int, float] = {}
    signal: dict[int, float] = {}
    with fits.open(path) as hdus:
        for arm in ARMS:
            names = [f"{arm}_{kind}" for kind in ("FLUX", "IVAR", "MASK")]
            rows = [hdus[name].data[row].tolist() for name in names]
            wavelengths = hdus[f"{arm}_WAVELENGTH"].data.tolist()
            for wavelength, flux, ivar, mask in zip(wavelengths, *rows, strict=True):
                if mask != 0:
                    continue
                pixel = round((wavelength - 3600.0) / 0.8)
                weight[pixel] = weight.get(pixel, 0.0) + ivar
                signal[pixel] = signal.get(pixel, 0.0) + ivar * flux
    flux, ivar = np.zeros((2, 7781))
    for pixel, total in weight.items():
        if total > 1e-6:
            flux[pixel], ivar[pixel] = signal[pixel] / total, total
    return flux, ivar


def test_real_healpix_coadd_with_redrock(survey_data):
    folder = survey_data / "spectra_desi" / "raw_fits"
    (spectrum,) = read(folder / HEALPIX)
    check_spectrum(spectrum)
    flux, ivar = pixel_by_pixel(folder / HEALPIX, 0)
    np.testing.assert_allclose(spectrum.flux, flux, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(spectrum.ivar, ivar, rtol=1e-5)
    with fits.open(folder / HEALPIX.replace("coadd", "redrock")) as hdus:
        fitted = hdus["REDSHIFTS"].data[0]
        assert spectrum.object_id == str(fitted["TARGETID"])
        assert (spectrum.spectype, spectrum.redshift) == (fitted["SPECTYPE"], fitted["Z"])
        assert (spectrum.redshift_err, spectrum.zwarning) == (fitted["ZERR"], fitted["ZWARN"])
        assert spectrum.extra["deltachi2"] == fitted["DELTACHI2"]
    with fits.open(folder / HEALPIX) as hdus:
        assert spectrum.extra["desi_target"] == hdus["FIBERMAP"].data["DESI_TARGET"][0]


def test_real_tile_coadd_without_redrock(survey_data):
    path = survey_data / "spectra_desi" / "raw_fits" / TILE
    *refused, spectrum = read(path)
    reasons = ["fibre_unassigned", "fibre_broken", "fibre_unassigned", "fibre_unassigned"]
    assert [r.reason for r in refused] == reasons
    bits = [int(re.search(r"FIBERSTATUS (\d+)", r.detail)[1]) for r in refused]
    assert bits == [513, 512, 515, 1]
    assert (spectrum.spectype, spectrum.zwarning, spectrum.extra["fiberstatus"]) == ("", -1, 0)
    check_spectrum(spectrum)
    flux, ivar = pixel_by_pixel(path, 4)
    np.testing.assert_allclose(spectrum.flux, flux, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(spectrum.ivar, ivar, rtol=1e-5)
    assert spectrum.observation_id == f"169-cumulative-20210419-5-{spectrum.object_id}"
    assert spectrum.extra["tileid"] == 169


def test_join_is_by_targetid(tmp_path):
    coadd_file().writeto(tmp_path / "coadd-sv3-bright-1.fits")
    targets = [2**55 + 2, 2**55]  # another order, one missing
    redrock_file(targets).writeto(tmp_path / "redrock-sv3-bright-1.fits")
    spectra = read(tmp_path / "coadd-sv3-bright-1.fits")
    assert [s.spectype for s in spectra] == ["GALAXY", "", "GALAXY"]
    assert [s.redshift for s in spectra] == pytest.approx([0.2, np.nan, 0.1], nan_ok=True)
    assert [s.extra.get("deltachi2") for s in spectra] == [55.0, None, 55.0]
    assert {s.survey for s in spectra} == {"sv3"}


def test_target_bits_of_any_phase(tmp_path):
    coadd_file().writeto(tmp_path / "coadd-x.fits")
    spectra = read(tmp_path / "coadd-x.fits")
    assert [s.extra["is_bgs"] for s in spectra] == [True, False, False]
    assert [s.extra["is_mws"] for s in spectra] == [False, True, False]
    assert spectra[0].extra["sv3_desi_target"] == 1 << 60


def test_bad_row_is_refused_and_the_rest_goes_on(tmp_path):
    hdus = coadd_file()
    hdus["R_MASK"].data[1] = 0
    hdus["R_IVAR"].data[1, 5] = -1.0
    hdus["B_FLUX"].data[2, 7] = np.nan
    hdus["B_MASK"].data[2, 7] = 0
    hdus.writeto(tmp_path / "coadd-x.fits")
    first, second, third = read(tmp_path / "coadd-x.fits")
    check_spectrum(first)
    assert isinstance(second, InvalidRecord)
    assert second.reason == "ivar_negative"
    assert second.object_id == str(2**55 + 1)
    assert second.source.endswith("coadd-x.fits#1")
    with pytest.raises(InvalidRecord, match="flux_not_finite"):
        check_spectrum(third)


def test_masked_rubbish_does_no_harm(tmp_path):
    hdus = coadd_file()
    hdus["R_MASK"].data[0, :10] = 4
    hdus["R_IVAR"].data[0, :10] = np.nan
    hdus["R_FLUX"].data[0, :10] = np.inf
    hdus.writeto(tmp_path / "coadd-x.fits")
    spectrum = read(tmp_path / "coadd-x.fits")[0]
    check_spectrum(spectrum)
    flux, _ = pixel_by_pixel(tmp_path / "coadd-x.fits", 0)
    np.testing.assert_allclose(spectrum.flux, flux, rtol=1e-5)


def test_file_without_masks_is_read(tmp_path):
    coadd_file(masks=False).writeto(tmp_path / "coadd-x.fits")
    assert not any(s.mask.any() for s in read(tmp_path / "coadd-x.fits"))


def test_more_rows_than_one_block(tmp_path):
    path = tmp_path / "coadd-x.fits"
    coadd_file(rows=150).writeto(path)
    spectra = read(path)
    assert [s.object_id for s in spectra] == [str(2**55 + n) for n in range(150)]
    for row in (63, 64, 149):
        flux, ivar = pixel_by_pixel(path, row)
        np.testing.assert_allclose(spectra[row].flux, flux, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(spectra[row].ivar, ivar, rtol=1e-5)


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda hdus: hdus.pop(3), "hdu_missing"),
        (lambda hdus: hdus["R_WAVELENGTH"].data.__iadd__(0.3), "wavelength_off_grid"),
        (lambda hdus: setattr(hdus["Z_IVAR"], "data", hdus["Z_IVAR"].data[:2]), "shape_mismatch"),
    ],
)
def test_broken_file_is_refused(tmp_path, break_it, reason):
    hdus = coadd_file()
    break_it(hdus)
    hdus.writeto(tmp_path / "coadd-x.fits")
    with pytest.raises(InvalidRecord) as refusal:
        read(tmp_path / "coadd-x.fits")
    assert refusal.value.reason == reason


def test_truncated_file_yields_no_rows(tmp_path):
    stream = io.BytesIO()
    coadd_file().writeto(stream)
    path = tmp_path / "coadd-x.fits"
    path.write_bytes(stream.getvalue()[:-20_000])
    with pytest.raises(InvalidRecord, match="data_truncated"):
        next(iter(make_reader("desi_coadd").read(SurveyFile(fs.LocalFileSystem(), str(path)))))


def test_a_damaged_redrock_is_not_taken_for_a_missing_one(survey_data, tmp_path):
    folder = survey_data / "spectra_desi" / "raw_fits"
    shutil.copy(folder / HEALPIX, tmp_path / HEALPIX)
    (tmp_path / HEALPIX.replace("coadd", "redrock")).write_bytes(b"")
    with pytest.raises(InvalidRecord, match="file_empty"):
        read(tmp_path / HEALPIX)


def test_grid():
    wavelength = DESI_GRID.wavelength()
    assert (wavelength[0], wavelength[-1], wavelength.size) == (3600.0, pytest.approx(9824.0), 7781)


def test_one_target_in_two_programmes_is_two_observations_of_one_object(tmp_path):
    names = {}
    for program in ("dark", "bright"):
        made = coadd_file()
        made[0].header["PROGRAM"], made[0].header["HPXPIXEL"] = program, 1234
        path = tmp_path / f"coadd-{program}.fits"
        made.writeto(path)
        names[program] = [(s.observation_id, s.object_id) for s in read(path)]
    ids = {name for spectra in names.values() for name, _ in spectra}
    assert len(ids) == 6
    assert f"sv3-dark-1234-{2**55}" in ids
    assert [o for _, o in names["dark"]] == [o for _, o in names["bright"]]
