"""Template files of the BOSS pipeline and of redrock, as their projects lay them out."""

import os
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from skyray.readers.template_files import read_template_file
from skyray.records import InvalidRecord

DATA = os.environ.get("SKYRAY_TEST_DATA")
needs_data = pytest.mark.skipif(
    DATA is None, reason="SKYRAY_TEST_DATA names no folder of real data"
)


def write(path: Path, vectors: np.ndarray, redshifts=None, **header) -> Path:
    hdu = fits.PrimaryHDU(vectors.astype(np.float32))
    hdu.header.update(header)
    more = [] if redshifts is None else [fits.ImageHDU(np.asarray(redshifts), name="REDSHIFTS")]
    fits.HDUList([hdu, *more]).writeto(path)
    return path


def test_pipeline_galaxies_reach_as_far_as_their_wavelengths(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(4, 8000))
    path = write(tmp_path / "spEigenGal-55740.fits", vectors, COEFF0=3.25, COEFF1=1e-4)
    [basis] = read_template_file(path)
    assert (basis.spectype, basis.first, len(basis.vectors)) == ("GALAXY", 32500, 4)
    np.testing.assert_allclose(basis.vectors, vectors, atol=1e-5)
    assert basis.redshift[1] == pytest.approx(3600 / 10**3.25 - 1)
    assert np.isinf(basis.variance).all()


def test_single_stars_become_a_basis_a_letter(tmp_path):
    vectors = np.random.default_rng(1).normal(1.0, 0.1, size=(9, 500))
    names = {f"NAME{n}": name for n, name in enumerate(
        ["G2V", "G8III", "G5", "G0", "G1", "G9", "WD hot", "Carbon_lines", "M2V"])}  # fmt: skip
    path = write(tmp_path / "spEigenStar-1.fits", vectors, COEFF0=3.6, COEFF1=1e-4, **names)
    bases = {basis.subtype: basis for basis in read_template_file(path)}
    assert set(bases) == {"G", "WD", "carbon", "M"}
    assert len(bases["G"].vectors) == 5
    assert len(bases["M"].vectors) == 1


def test_redrock_quasars_come_without_the_forest(tmp_path):
    path = write(
        tmp_path / "any.fits", np.ones((2, 15000)), np.linspace(1.4, 6.0, 9),
        RRTYPE="QSO", RRSUBTYP="HIZ", CRVAL1=2.6, CDELT1=1e-4, LOGLAM=True,
    )  # fmt: skip
    [basis] = read_template_file(path)
    assert (basis.name, basis.forest, basis.redshift) == ("QSO/HIZ", True, (1.4, 6.0))


def test_others_are_refused_by_name(tmp_path):
    unknown = write(tmp_path / "a.fits", np.ones((2, 10)))
    with pytest.raises(InvalidRecord, match="spEigen") as error:
        read_template_file(unknown)
    assert error.value.reason == "template_unknown"
    no_axis = write(tmp_path / "spEigenGal-2.fits", np.ones((2, 10)))
    with pytest.raises(InvalidRecord, match="COEFF0") as error:
        read_template_file(no_axis)
    assert error.value.reason == "template_shape"


@needs_data
@pytest.mark.parametrize(
    ("name", "spectype", "count"),
    [("boss_pipeline/spEigenGal-55740.fits.gz", "GALAXY", 1),
     ("boss_pipeline/spEigenQSO-58596.fits.gz", "QSO", 1),
     ("boss_pipeline/spEigenStar-55734.fits.gz", "STAR", 8),
     ("redrock/rrtemplate-QSO-LOZ-v1.1.fits.gz", "QSO", 1)],
)  # fmt: skip
def test_published_files(name, spectype, count):
    bases = read_template_file(Path(DATA) / "templates" / name)
    assert {basis.spectype for basis in bases} == {spectype}
    assert len(bases) >= count
    assert all(np.isfinite(basis.vectors).all() for basis in bases)
