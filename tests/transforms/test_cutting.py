"""Cutting, matching and votes against astropy and the published cross-match."""

import numpy as np
import pandas as pd
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.nddata import Cutout2D
from astropy.wcs import WCS

from skyray.records import InvalidRecord
from skyray.transforms.cutting import (
    DES_PIXEL_ARCSEC,
    KRON_ELLIPSES,
    balanced,
    cross_match,
    cut,
    des_half_width,
    first_on_sky,
    sdss_half_width,
    vote_label,
)

RNG = np.random.default_rng(3)
FRAME = RNG.normal(size=(200, 300)).astype(np.float32)


def frame_wcs() -> WCS:
    wcs = WCS(naxis=2)
    wcs.wcs.crpix = [150.5, 100.5]
    wcs.wcs.crval = [42.0, -0.5]
    wcs.wcs.cdelt = [-0.396 / 3600, 0.396 / 3600]
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    return wcs


@pytest.fixture(scope="module")
def catalogue(survey_data) -> pd.DataFrame:
    return pd.read_parquet(survey_data / "catalog_des_sdss" / "crossmatch.parquet")


@pytest.mark.parametrize(("x", "y"), [(150, 100), (31.3, 77.8), (4.2, 195.6)])
@pytest.mark.parametrize("half", [12.0, 15.3])
def test_cut_agrees_with_cutout2d(x, y, half):
    wcs = frame_wcs()
    sky = wcs.pixel_to_world(x, y)
    expected = Cutout2D(FRAME, sky, round(2 * half), wcs, mode="partial", fill_value=np.nan)
    found = cut(FRAME, wcs, sky.ra.deg, sky.dec.deg, half)
    np.testing.assert_array_equal(found, expected.data)


def test_cut_refuses_what_is_not_on_the_frame():
    with pytest.raises(InvalidRecord, match="outside_frame"):
        cut(FRAME, frame_wcs(), 42.5, -0.5, 10)
    with pytest.raises(InvalidRecord, match="outside_frame"):  # behind the tangent plane
        cut(FRAME, frame_wcs(), 222.0, 0.5, 10)
    with pytest.raises(InvalidRecord, match="size_invalid"):
        cut(FRAME, frame_wcs(), 42.0, -0.5, float("nan"))


def test_sdss_size_is_two_petrosian_radii():
    assert sdss_half_width(19.8) == pytest.approx(100.0)


def test_des_sizes_of_both_modes(catalogue):
    kron, a_image = catalogue.KRON_RADIUS.to_numpy(), catalogue.A_IMAGE.to_numpy()
    pairs = list(zip(kron, a_image, strict=True))
    published = np.array([des_half_width(k, a, "as_published") for k, a in pairs])
    corrected = np.array([des_half_width(k, a) for k, a in pairs])
    wanted = 2 * catalogue.petroRad_r.to_numpy()  # what SDSS shows, arcsec
    assert (published == 42.0).mean() > 0.98  # one size for all galaxies
    ratio = corrected * DES_PIXEL_ARCSEC / wanted
    assert np.median(ratio) == pytest.approx(1.0, abs=0.01)
    assert np.std(np.log(ratio)) < 0.5 * np.std(np.log(published * DES_PIXEL_ARCSEC / wanted))
    ratio = wanted / (kron * a_image * DES_PIXEL_ARCSEC)
    assert np.median(ratio) == pytest.approx(KRON_ELLIPSES, abs=0.005)


def test_match_recovers_the_published_pairs(catalogue):
    shuffled = catalogue.sample(frac=1, random_state=1).reset_index(drop=True)
    found = cross_match(
        catalogue.RA_deg.to_numpy(), catalogue.DEC_deg.to_numpy(),
        shuffled.RA_des.to_numpy(), shuffled.DEC_des.to_numpy(),
    )  # fmt: skip
    separation = SkyCoord(catalogue.RA_deg, catalogue.DEC_deg, unit="deg").separation(
        SkyCoord(catalogue.RA_des, catalogue.DEC_des, unit="deg")
    )
    assert len(found.first) == (separation < 1 * u.arcsec).sum() == len(catalogue)
    np.testing.assert_array_equal(
        catalogue.DES_COADD_OBJECT_ID.to_numpy()[found.first],
        shuffled.DES_COADD_OBJECT_ID.to_numpy()[found.second],
    )
    np.testing.assert_allclose(found.distance_arcsec, separation.arcsec[found.first], atol=1e-6)


def test_match_uses_nothing_twice():
    ra, dec = np.array([10.0, 10.0 + 0.8 / 3600]), np.zeros(2)
    found = cross_match(ra, dec, np.array([10.0]), np.array([0.0]))
    assert found.first.tolist() == [0]
    assert not len(cross_match(ra, dec, np.zeros(0), np.zeros(0)).first)


def test_duplicates_keep_the_first_of_each_place():
    arcsec = 1 / 3600
    ra = np.array([359.99999, 50.0, 0.0, 50.0 + 0.7 * arcsec, 50.0 + 1.4 * arcsec, 80.0])
    dec = np.zeros(6)
    ra[0] = 360 - 0.3 * arcsec
    # 50 + 1.4″ is near the refused row only, and stays
    assert first_on_sky(ra, dec).tolist() == [True, True, False, False, True, True]


def test_published_sets_have_no_duplicates(catalogue):
    assert first_on_sky(catalogue.RA_deg.to_numpy(), catalogue.DEC_deg.to_numpy()).all()


def test_votes_give_the_published_flags(catalogue):
    labels = [
        vote_label(spiral, elliptical)
        for spiral, elliptical in zip(catalogue.P_CS_DEBIASED, catalogue.P_EL_DEBIASED, strict=True)
    ]
    flagged = np.where(catalogue.SPIRAL == 1, "spiral", "elliptical")
    sure = (catalogue.SPIRAL + catalogue.ELLIPTICAL) == 1
    # .926 is stored as .9259999…; Galaxy Zoo flags 15 galaxies by other thresholds
    assert (np.array(labels)[sure] == flagged[sure]).mean() > 0.99
    assert vote_label(0.6, 0.4) == ""
    assert vote_label(0.6, 0.4, 0, 0) == "spiral"
    assert vote_label(0.2, 0.4, 0, 0) == "elliptical"


def test_balanced_takes_as_many_of_each():
    labels = np.array(["a"] * 50 + ["b"] * 12)
    kept = balanced(labels, 0)
    assert kept[:50].sum() == 12
    assert kept[50:].all()
    np.testing.assert_array_equal(kept, balanced(labels, 0))
