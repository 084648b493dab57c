"""DESI coadds: against astropy and a pixel-by-pixel co-addition; bad rows; the redrock join."""

from __future__ import annotations

import io
import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from pyarrow import fs
from tests.desi_files import ARM_PIXELS, HEALPIX, TILE, coadd_file, read

from skyray.readers.base import SurveyFile, make_reader
from skyray.readers.desi import ARMS, DESI_GRID
from skyray.records import InvalidRecord, check_spectrum


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


ARM_SETS = [arms for n in (1, 2, 3) for arms in itertools.combinations("BRZ", n)]


def only(hdus: fits.HDUList, arms) -> fits.HDUList:
    """Leave these arms of a coadd."""
    gone = {arm for arm in "BRZ" if arm not in arms}
    return fits.HDUList([hdu for hdu in hdus if hdu.name[:1] not in gone or hdu.name[1:2] != "_"])


def joined_arms(hdus: fits.HDUList) -> fits.HDUList:
    """Co-add B, R and Z into BRZ, as desi_coadd_spectra --coadd-cameras does."""
    rows = len(hdus["FIBERMAP"].data)
    total, weighted = np.zeros((2, rows, 7781))
    for arm, (start, size) in ARM_PIXELS.items():
        first = round((start - 3600) / 0.8)
        weight = np.where(hdus[f"{arm}_MASK"].data == 0, hdus[f"{arm}_IVAR"].data, 0)
        total[:, first : first + size] += weight
        weighted[:, first : first + size] += weight * hdus[f"{arm}_FLUX"].data
    flux = np.divide(weighted, total, out=np.zeros_like(total), where=total > 0)
    images = {"WAVELENGTH": 3600 + 0.8 * np.arange(7781), "FLUX": flux, "IVAR": total,
              "MASK": (total == 0).astype(np.int32)}  # fmt: skip
    made = [fits.ImageHDU(image, name=f"BRZ_{kind}") for kind, image in images.items()]
    return fits.HDUList([hdus[0], hdus[1], *made])


@pytest.mark.parametrize("arms", ARM_SETS, ids="".join)
@pytest.mark.parametrize("masks", [True, False], ids=["masks", "no masks"])
def test_any_subset_of_arms(tmp_path, arms, masks):
    whole, part = coadd_file(masks=masks), only(coadd_file(masks=masks), arms)
    part.writeto(tmp_path / "coadd-x.fits")
    wavelength = DESI_GRID.wavelength()
    for row, spectrum in enumerate(read(tmp_path / "coadd-x.fits")):
        check_spectrum(spectrum)
        reached = np.zeros(7781, dtype=bool)
        for arm in arms:
            start, size = ARM_PIXELS[arm]
            reached |= (wavelength > start - 0.1) & (wavelength < start + 0.8 * size - 0.7)
        assert not spectrum.ivar[~reached].any()
        assert spectrum.mask[~reached].all()
        alone = arms[0]
        start, size = ARM_PIXELS[alone]
        here = [round((start - 3600) / 0.8) + n for n in range(200, 300)]  # where no other arm is
        good = whole[f"{alone}_MASK"].data[row, 200:300] == 0 if masks else np.ones(100, bool)
        flux = np.where(good, whole[f"{alone}_FLUX"].data[row, 200:300], 0)
        np.testing.assert_allclose(spectrum.flux[here], flux, rtol=1e-6)


def test_arms_that_were_joined_give_the_same_spectra(tmp_path):
    coadd_file().writeto(tmp_path / "arms.fits")
    joined_arms(coadd_file()).writeto(tmp_path / "joined.fits")
    for apart, together in zip(
        read(tmp_path / "arms.fits"), read(tmp_path / "joined.fits"), strict=True
    ):
        np.testing.assert_allclose(apart.flux, together.flux, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(apart.ivar, together.ivar, rtol=1e-5)
        np.testing.assert_array_equal(apart.mask, together.mask)


def test_joined_arms_beside_their_parts_are_two_readings(tmp_path):
    hdus = fits.HDUList([*coadd_file(), *joined_arms(coadd_file())[2:]])
    hdus.writeto(tmp_path / "coadd-x.fits")
    with pytest.raises(InvalidRecord, match=r"layout_ambiguous.*B, R, Z, BRZ"):
        read(tmp_path / "coadd-x.fits")


def test_an_arm_alone_keeps_wavelengths_of_its_own(tmp_path):
    hdus = joined_arms(coadd_file())
    log = 10 ** (3.5563 + 1e-4 * np.arange(4000))
    for hdu in hdus[2:]:
        hdu.data = log if hdu.name == "BRZ_WAVELENGTH" else hdu.data[:, :4000]
    hdus.writeto(tmp_path / "coadd-x.fits")
    spectrum = read(tmp_path / "coadd-x.fits")[0]
    check_spectrum(spectrum)
    np.testing.assert_array_equal(spectrum.wavelength, log)
    np.testing.assert_array_equal(spectrum.flux, hdus["BRZ_FLUX"].data[0].astype(np.float32))


@pytest.mark.parametrize("table", ["FIBERMAP", "COADD_FIBERMAP"])
def test_either_name_of_the_fibermap(tmp_path, table):
    hdus = coadd_file()
    hdus["FIBERMAP"].name = table
    hdus.writeto(tmp_path / "x.fits")
    assert len(read(tmp_path / "x.fits")) == 3


def exposures() -> fits.HDUList:
    hdus = coadd_file(rows=4)
    columns = [fits.Column("TARGETID", "K", array=[7, 8, 7, 8]),
               fits.Column("EXPID", "J", array=[1, 1, 2, 2]),
               fits.Column("FIBER", "J", array=[30, 31, 30, 31]),
               fits.Column("FIBERSTATUS", "J", array=[0, 0, 4, 0])]  # fmt: skip
    hdus["FIBERMAP"] = fits.BinTableHDU.from_columns(columns, name="FIBERMAP")
    hdus[0].header.update(SURVEY="sv3", PROGRAM="dark", HPXPIXEL=5)
    return hdus


def test_exposures_are_refused_unless_wanted(tmp_path):
    exposures().writeto(tmp_path / "spectra-sv3-dark-5.fits")
    with pytest.raises(InvalidRecord, match=r"exposures_not_coadded.*4 exposures of 2 targets"):
        read(tmp_path / "spectra-sv3-dark-5.fits")
    reader = make_reader("desi_coadd", {"exposures": True})
    path = str(tmp_path / "spectra-sv3-dark-5.fits")
    found = list(reader.read(SurveyFile(fs.LocalFileSystem(), path)))
    assert [getattr(r, "observation_id", r.object_id) for r in found] == [
        "sv3-dark-5-7-1-30", "sv3-dark-5-8-1-31", "7", "sv3-dark-5-8-2-31"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ({"SURVEY": "main", "PROGRAM": "dark", "HPXPIXEL": 1}, "main-dark-1-"),
        ({"SURVEY": "main", "PROGRAM": "dark", "SPGRP": "healpix", "SPGRPVAL": 1}, "main-dark-1-"),
        ({"TILEID": 9, "SPGRP": "pernight", "SPGRPVAL": 20210101, "PETAL": 3}, "9-pernight-"),
        ({"TILEID": 9, "SPGRP": "perexp", "SPGRPVAL": 83716, "SPECTRO": 3}, "9-perexp-83716-3-"),
        ({"TILEID": 9, "SPGRP": "cumulative", "SPGRPVAL": 1, "PETAL": 3}, "9-cumulative-1-3-"),
        ({"SURVEY": "sv3", "PROGRAM": "dark"}, "sv3-dark-"),
        ({}, f"desi-{2**55}"[:12]),
    ],
    ids=str,
)
def test_co_additions_are_told_apart_whatever_their_files_are_called(tmp_path, header, name):
    found = []
    for other, folder in enumerate(("a", "b")):
        hdus = coadd_file()
        del hdus[0].header["SURVEY"]
        hdus[0].header.update(header)
        hdus["B_FLUX"].data += other  # another night under the same name
        (tmp_path / folder).mkdir()
        hdus.writeto(tmp_path / folder / "coadd-1.fits")
        shutil.copy(tmp_path / folder / "coadd-1.fits", tmp_path / folder / "renamed.fits")
        here = [s.observation_id for s in read(tmp_path / folder / "coadd-1.fits")]
        assert here == [s.observation_id for s in read(tmp_path / folder / "renamed.fits")]
        found.append(here)
    assert all(name in one for one in found[0])
    whole = "HPXPIXEL" in header or "SPGRP" in header
    assert (found[0] == found[1]) is whole
    assert len(set(found[0])) == 3


def test_units_of_an_arm_are_honoured(tmp_path):
    hdus = coadd_file()
    hdus.writeto(tmp_path / "plain.fits")
    hdus["B_WAVELENGTH"].data /= 10
    hdus["B_WAVELENGTH"].header["BUNIT"] = "nm"
    hdus["B_FLUX"].data = hdus["B_FLUX"].data.astype("f8") * 1e-17
    hdus["B_IVAR"].data = hdus["B_IVAR"].data.astype("f8") * 1e34
    hdus["B_FLUX"].header["BUNIT"] = "erg/(s cm2 Angstrom)"
    hdus["R_FLUX"].header["BUNIT"] = "10**-17 erg/(s cm2 Angstrom)"
    hdus.writeto(tmp_path / "units.fits")
    for plain, other in zip(
        read(tmp_path / "plain.fits"), read(tmp_path / "units.fits"), strict=True
    ):
        np.testing.assert_allclose(other.flux, plain.flux, rtol=1e-5)
        np.testing.assert_allclose(other.ivar, plain.ivar, rtol=1e-5)
    hdus["B_IVAR"].data[:] = 3.0
    hdus["B_IVAR"].header["BUNIT"] = "10**+32 (s2 cm4 Angstrom2) / erg2"
    hdus.writeto(tmp_path / "ivar.fits")
    for other in read(tmp_path / "ivar.fits"):
        assert other.ivar[500] == pytest.approx(0.03)  # of (1e-16 …)⁻² in (1e-17 …)⁻²
        units = "erg/(s cm2 Angstrom): BUNIT; 10**-17 erg/(s cm2 Angstrom): BUNIT"
        assert units in other.statements["flux_unit"]  # of every arm
    hdus["Z_FLUX"].header["BUNIT"] = "electron"
    hdus.writeto(tmp_path / "bad.fits")
    with pytest.raises(InvalidRecord, match=r"unit_unknown: Z_FLUX.*electron"):
        read(tmp_path / "bad.fits")


@pytest.mark.parametrize("program", ["03", "04", "05", "20"])
def test_public_cases(survey_data, program):
    folder = next((survey_data.parent / "cases" / "spectra").glob(f"{program}-*"), None)
    if folder is None:
        pytest.skip("no cases beside the data of SKYRAY_TEST_DATA")
    expected = json.loads((folder / "expected.json").read_text())
    reader = make_reader("desi_coadd")
    found = [record for path in sorted((folder / "input").iterdir())
             if reader.claims(str(path)) for record in read(path)]  # fmt: skip
    spectra = [record for record in found if not isinstance(record, InvalidRecord)]
    for name in ("rows_written", "rows_read", "rows_kept"):
        assert len(spectra) == expected.get(name, len(spectra))
    assert len({s.observation_id for s in spectra}) == len(spectra)
    if "redshift" in expected:
        assert [s.redshift for s in spectra] == expected["redshift"]
        assert all(s.mask[s.wavelength > 7621].all() for s in spectra)
    if "labelled" in expected:
        assert [s.object_id for s in spectra] == expected["labelled"]
    if "zwarning" in expected:
        assert [s.zwarning for s in spectra] == [expected["zwarning"]]
