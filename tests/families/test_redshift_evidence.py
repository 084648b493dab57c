"""What the choice of a candidate rests on: troughs that only absorb, and single narrow features."""

from dataclasses import replace

import numpy as np
import pytest

from skyray.families.redshift.density import PDF_STEP, bin_redshifts
from skyray.families.redshift.evidence import Evidence, another_redshift, competing
from skyray.families.redshift.recipes import FitConfig
from skyray.families.redshift.template_fit import Prior, TemplateFit
from skyray.models.redshift_minima import Minimum
from skyray.models.redshift_scan import RedshiftScan
from skyray.models.template_bases import LOG_STEP, TemplateBasis

FIRST, SIZE, REST = 36000, 1200, 35000
Z = 0.03
TROUGH = (4300.0, 4500.0)


def line(at: float, width: float = 8.0) -> np.ndarray:
    wavelength = 10.0 ** (LOG_STEP * (REST + np.arange(3000)))
    return np.exp(-0.5 * np.square((wavelength - at) / width))


def basis(lines, spectype="QSO", troughs=()) -> TemplateBasis:
    vectors = np.stack([np.ones(3000), sum(lines)])
    return TemplateBasis(spectype, "", REST, vectors, np.array([10.0, 10.0]), (0.0, 0.08),
                         troughs=troughs)  # fmt: skip


def observed(one: TemplateBasis, z: float, strength: float, rng) -> np.ndarray:
    at = FIRST + np.arange(SIZE) - np.log10(1 + z) / LOG_STEP - REST
    continuum, lines = (np.interp(at, np.arange(3000), v) for v in one.vectors)
    return continuum + strength * lines + rng.normal(0.0, 0.1, SIZE)


def evidence(one: TemplateBasis, flux: np.ndarray) -> Evidence:
    weight = np.full(SIZE, 100.0)
    return Evidence(RedshiftScan([one], FIRST, SIZE), [one], flux, weight, np.full(SIZE, 2.0))


def candidate(z=Z, chi2=0.0, spectype="QSO", number=0) -> Minimum:
    return Minimum(chi2, z, 1e-4, number, spectype, "")


@pytest.mark.parametrize(("strength", "possible"), [(-0.9, True), (0.0, True), (0.9, False)])
def test_troughs_absorb_and_never_shine(strength, possible):
    rng = np.random.default_rng(3)
    plain = basis([line(4600.0)], troughs=(TROUGH,))
    hidden = basis([line(4400.0, 20.0)])
    flux = observed(plain, Z, 1.0, rng) + observed(hidden, Z, strength, rng) - 1.0
    excess = evidence(plain, flux).excess(candidate())
    assert (excess < 60.0) == possible
    assert possible or excess > 1000.0


def test_a_basis_without_troughs_has_no_excess():
    rng = np.random.default_rng(3)
    one = basis([line(4600.0)])
    assert evidence(one, observed(one, Z, 1.0, rng)).excess(candidate()) == 0.0


def test_only_troughs_that_compete_are_looked_at():
    bases = [basis([line(4600.0)]), basis([line(4600.0)], troughs=(TROUGH,))]
    near, far = candidate(chi2=50.0, number=1), candidate(chi2=500.0, number=1)
    assert competing([candidate(), near, far], bases) == [near]


def test_stars_and_far_redshifts_are_other_answers():
    assert another_redshift(candidate(), candidate(spectype="STAR"))
    assert another_redshift(candidate(), candidate(z=Z + 0.01))
    assert not another_redshift(candidate(), candidate(z=Z + 1e-4, spectype="GALAXY"))


@pytest.mark.parametrize("lines", [(4600.0,), (3900.0, 4100.0, 4600.0)])
def test_a_single_line_does_not_decide(lines):
    """Two classes fit one line, each at its redshift; what is left of three lines decides."""
    rng = np.random.default_rng(4)
    true = basis([line(at, 3.0) for at in lines])
    other = basis([line(4650.0, 3.0)], "GALAXY")
    flux = observed(true, Z, 3.0, rng)[None]
    fit = TemplateFit([true, other], FIRST, SIZE, FitConfig(lsf_kms=0.0, error_floor=0.0))
    (found,) = fit(flux, np.full((1, SIZE), 100.0))
    assert found.best.redshift == pytest.approx(Z, abs=2e-4)
    if len(lines) == 1:
        assert found.delta_chi2_hidden < 16.0
    else:
        assert found.delta_chi2_hidden > 100.0


@pytest.mark.parametrize("stride", [1, 2])
def test_neither_chi2_nor_redshift_depends_on_the_phase_of_the_pixels(stride):
    """Lines as narrow as the line spread, drawn where they are and not between neighbours."""
    lines, width = (3900.0, 4100.0, 4600.0), 0.9
    one = replace(basis([line(at, width) for at in lines]), stride=stride)
    fit = TemplateFit([one], FIRST, SIZE, FitConfig(lsf_kms=0.0, error_floor=0.0))
    observed_at = 10.0 ** (LOG_STEP * (FIRST + np.arange(SIZE)))
    shifts = 130 + np.array([0.0, 0.3, 0.5, 0.8, 1.2, 1.6])
    z = 10.0 ** (LOG_STEP * shifts) - 1
    rest = observed_at / (1 + z[:, None])
    flux = 1.0 + 3.0 * sum(np.exp(-0.5 * np.square((rest - at) / width)) for at in lines)
    found = fit(flux, np.full(flux.shape, 1e4))
    power = 1e4 * np.sum(np.square(flux[0] - 1.0))
    assert max(one.best.chi2 for one in found) - min(one.best.chi2 for one in found) < 1e-3 * power
    measured = np.log10([1 + one.best.redshift for one in found]) / LOG_STEP
    np.testing.assert_allclose(measured, shifts, atol=0.02)


def test_differences_of_chi2_are_of_likelihoods_and_the_prior_only_chooses():
    rng = np.random.default_rng(6)
    galaxy, quasar = basis([line(4600.0, 3.0)], "GALAXY"), basis([line(4650.0, 3.0)])
    flux = observed(galaxy, Z, 0.7, rng)[None]
    ivar = np.full((1, SIZE), 100.0)
    fit = TemplateFit([galaxy, quasar], FIRST, SIZE, FitConfig(lsf_kms=0.0, error_floor=0.0))
    (alone,) = fit(flux, ivar)
    others = ("GALAXY", "QSO", "STAR")

    def told(kind: str, z: float) -> Prior:
        chance = np.array([[float(kind == name) for name in others]])
        return Prior(chance, np.array([z]), np.array([0.01]), np.array([True]))

    (same,) = fit(flux, ivar, told(alone.best.spectype, alone.best.redshift))
    for name in ("delta_chi2", "delta_chi2_class", "delta_chi2_hidden", "chi2_reduced"):
        assert getattr(same, name) == pytest.approx(getattr(alone, name))
    rival = "QSO" if alone.best.spectype == "GALAXY" else "GALAXY"
    assert alone.classes == {alone.best.spectype: 0.0, rival: alone.delta_chi2_class}
    assert 0.0 < alone.delta_chi2_class < 10.0  # one line: two classes
    (chosen,) = fit(flux, ivar, told(rival, alone.second.redshift))
    assert chosen.best.spectype == rival
    assert chosen.delta_chi2_class == pytest.approx(-alone.delta_chi2_class)


def test_the_density_is_the_product_of_templates_and_networks():
    rng = np.random.default_rng(5)
    one = basis([line(4600.0, 3.0)], "GALAXY")
    faint = observed(one, Z, 0.0, rng)[None]  # no line: templates leave the redshift open
    fit = TemplateFit([one], FIRST, SIZE, FitConfig(lsf_kms=0.0, prior_share=1e-6))
    prior = Prior(
        np.array([[1.0, 0.0, 0.0]]), np.array([0.05]), np.array([0.004]), np.array([True])
    )
    ivar = np.full((1, SIZE), 100.0)
    alone, both = (fit(faint, ivar, p)[0].pdf for p in (None, prior))
    z = bin_redshifts()
    assert alone.sum() == pytest.approx(1.0, abs=1e-5)
    assert both.sum() == pytest.approx(1.0, abs=1e-5)
    assert np.sum(both * z) == pytest.approx(0.05, abs=0.006)
    assert np.sqrt(np.sum(both * (z - 0.05) ** 2)) < 0.5 * np.sqrt(np.sum(alone * (z - 0.05) ** 2))


@pytest.mark.parametrize(("z", "strength"), [(Z, 1.0), (0.0612, 0.4), (0.0, 1.0)])
def test_the_densitys_mode_is_the_redshift_of_the_fit(z, strength):
    """Also where classes compete, and at z = 0, where the first bin holds what lies below."""
    rng = np.random.default_rng(8)
    bases = [basis([line(4600.0, 3.0)], "GALAXY"), basis([line(4000.0, 3.0), line(4600.0, 9.0)])]
    bases = [replace(one, redshift=(-0.005, 0.08)) for one in bases]
    fit = TemplateFit(bases, FIRST, SIZE, FitConfig(lsf_kms=0.0, quasar_kms=15.0))
    (found,) = fit(observed(bases[0], z, strength, rng)[None], np.full((1, SIZE), 100.0))
    mode = bin_redshifts()[int(np.argmax(found.pdf))]
    assert abs(np.log1p(found.best.redshift) - np.log1p(mode)) < PDF_STEP
    assert found.pdf.sum() == pytest.approx(1.0, abs=1e-5)
