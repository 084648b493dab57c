"""Physics of the mocks: lines at λ(1+z), line ratios by class, stars in sequence, the forest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from skyray.simulate import galaxy_spectra, igm, quasar_spectra, restframe, stellar_spectra
from skyray.simulate.dust import extinction_curve
from skyray.simulate.instruments import instrument
from skyray.simulate.quasar_spectra import draw_traits, quasar_flux
from skyray.simulate.stellar_lines import hydrogen_series


@pytest.fixture(scope="module")
def starlight() -> galaxy_spectra.BuiltInStarlight:
    return galaxy_spectra.BuiltInStarlight(stellar_spectra.star_library())


def centroid(wavelength, flux, center, half_width):
    near = np.abs(wavelength - center) < half_width
    x, y = wavelength[near], flux[near]
    y = y - np.interp(x, [x[0], x[-1]], [y[0], y[-1]])
    return float((x * y).sum() / y.sum())


@pytest.mark.parametrize("name", ["sdss", "desi", "fourmost"])
def test_halpha_of_a_galaxy_is_where_its_redshift_puts_it(starlight, name):
    spectrograph = instrument(name)
    wavelength, redshift = spectrograph.pixels.wavelength, 0.137
    rng = np.random.default_rng(3)
    galaxy = galaxy_spectra.draw_galaxy(rng, "starburst", starlight)
    flux = galaxy_spectra.galaxy_flux(galaxy, wavelength, redshift, spectrograph.lsf_kms)
    stars = restframe.observe(galaxy.template, np.log10(wavelength), redshift)
    center = 5008.24 * (1 + redshift)  # [O III] stands alone; Hα has [N II] at its sides
    pixel = np.diff(wavelength)[np.searchsorted(wavelength, center)]
    assert centroid(wavelength, flux - stars, center, 20) == pytest.approx(center, abs=0.3 * pixel)
    halpha = 6564.61 * (1 + redshift)
    near = np.abs(wavelength - halpha) < 8
    peak = wavelength[near][np.argmax((flux - stars)[near])]
    assert peak == pytest.approx(halpha, abs=1.01 * pixel)


def test_lyman_alpha_of_a_quasar_is_where_its_redshift_puts_it(monkeypatch):
    # alone, before the forest eats its blue half and N V adds to its red one
    line = [entry for entry in quasar_spectra.BROAD_LINES if entry[0] == "Lyalpha"]
    monkeypatch.setattr(quasar_spectra, "BROAD_LINES", line)
    rng, redshift = np.random.default_rng(1), 2.6
    drawn = draw_traits(rng, "broad_lines", redshift)
    traits = replace(drawn, shift_kms=0.0, iron=0.0, balmer=0.0, width_scale=1.0)
    wavelength = instrument("sdss").pixels.wavelength
    rest = wavelength / (1 + redshift)
    light = quasar_spectra.emission(rest, traits, 65.0, rng)
    light = light - quasar_spectra.continuum(rest, traits)
    center = 1215.67 * (1 + redshift)
    pixel = np.diff(wavelength)[np.searchsorted(wavelength, center)]
    assert centroid(wavelength, light, center, 130) == pytest.approx(center, abs=0.3 * pixel)


def test_emission_lines_keep_case_b_and_atomic_ratios(starlight):
    rng = np.random.default_rng(0)
    gas = galaxy_spectra.draw_galaxy(rng, "agn", starlight).gas
    lines = galaxy_spectra.line_fluxes(gas)
    assert lines["[O III] 5008"] / lines["[O III] 4960"] == pytest.approx(2.98)
    assert lines["[N II] 6585"] / lines["[N II] 6550"] == pytest.approx(2.95)
    curve = extinction_curve(np.array([6564.61, 4862.68]))
    decrement = 2.86 * 10 ** (0.4 * gas.a_v * (curve[1] - curve[0]))
    assert lines["Halpha"] / lines["Hbeta"] == pytest.approx(decrement, rel=1e-6)
    assert np.log10(lines["[O III] 5008"] / lines["Hbeta"]) == pytest.approx(gas.log_oiii_hb)


def test_extinction_curve_is_fitzpatrick_1999():
    # A(B)/A(V), A(I_C 8060 Å)/A(V) and the 2175 Å bump of his R_V = 3.1 curve
    curve = extinction_curve(np.array([5470.0, 4400.0, 8060.0, 2175.0]))
    np.testing.assert_allclose(curve, [1.0, 1.33, 0.60, 2.9], rtol=0.06)


@pytest.mark.parametrize("kind", ["starforming", "starburst", "agn"])
def test_line_ratios_lie_where_the_class_is_defined(starlight, kind):
    rng = np.random.default_rng(5)
    gas = [galaxy_spectra.draw_galaxy(rng, kind, starlight).gas for _ in range(200)]
    nii, oiii = np.array([(g.log_nii_ha, g.log_oiii_hb) for g in gas]).T
    ew = np.array([g.halpha_ew for g in gas])
    sdss_line = 0.7 - 1.2 * (nii + 0.4)
    if kind == "agn":
        assert (oiii > sdss_line).all()
        kewley = np.where(nii < 0.47, 0.61 / (np.minimum(nii, 0.46) - 0.47) + 1.19, -9)
        assert (oiii > kewley).all()
    else:
        assert (oiii < sdss_line).all()
        assert (oiii < 0.61 / (nii - 0.05) + 1.3).all()  # Kauffmann et al. (2003)
        assert ((ew >= 50) if kind == "starburst" else (ew < 50)).all()
    assert np.std(nii) > 0.08


def test_old_galaxies_have_the_break_and_young_ones_have_not(starlight):
    grid = restframe.rest_wavelength()
    red, blue = (grid > 4000) & (grid < 4100), (grid > 3850) & (grid < 3950)
    rng = np.random.default_rng(8)

    def dn4000(kind):
        drawn = [galaxy_spectra.draw_galaxy(rng, kind, starlight).template for _ in range(30)]
        nu = [t * grid**2 for t in drawn]  # Balogh et al. (1999): F_ν, narrow bands
        return float(np.median([f[red].mean() / f[blue].mean() for f in nu]))

    assert 1.6 < dn4000("quiescent") < 2.2  # Kauffmann et al. (2003): above 1.6
    assert dn4000("starforming") < 1.55
    assert dn4000("starburst") < 1.35


def test_hydrogen_lines_peak_at_a_stars_and_metals_grow_to_cool_ones():
    grid = restframe.rest_wavelength()

    def depth(teff, center, side):
        star = stellar_spectra.stellar_flux(grid, teff)
        line, wing = np.interp([center, center + side], grid, star)
        return 1 - line / wing

    hbeta = [depth(teff, 4862.68, 60) for teff in (4400, 5800, 9500, 20000, 40000)]
    assert np.argmax(hbeta) == 2
    assert hbeta[2] > 0.5
    calcium = [depth(teff, 3934.78, -18) for teff in (9500, 6500, 5800)]
    assert calcium[0] < calcium[1] < calcium[2]
    titanium = [depth(teff, 7070.0, -30) for teff in (5000, 3800, 3200)]
    assert titanium[0] < 0.05 < titanium[1] < titanium[2]


def test_hydrogen_series_are_the_known_lines():
    np.testing.assert_allclose(hydrogen_series(2, 3), [6564.7, 4862.7, 4341.7], atol=0.15)
    assert hydrogen_series(3, 6)[4] == pytest.approx(9548.6, abs=0.4)


@pytest.mark.parametrize("redshift", [2.3, 2.5, 3.0, 3.5])
def test_forest_transmits_what_is_published(redshift):
    # Becker et al. (2013) is drawn; Faucher-Giguère et al. (2008), their table 5, measured apart
    published = np.exp(-0.0018 * (1 + redshift) ** 3.92)
    assert igm.mean_transmission(np.array(redshift)) == pytest.approx(published, rel=0.04)
    rng = np.random.default_rng(2)
    wavelength = np.arange(igm.LYA * (1 + redshift) - 60, igm.LYA * (1 + redshift) + 60, 1.0)
    sightlines = [igm.forest_transmission(wavelength, redshift + 0.25, rng) for _ in range(150)]
    assert np.mean(sightlines) == pytest.approx(published, abs=0.03)


def test_forest_leaves_the_red_side_alone():
    rng = np.random.default_rng(2)
    wavelength = np.linspace(3600.0, 9000.0, 4000)
    transmission = igm.forest_transmission(wavelength, 3.0, rng)
    assert (transmission[wavelength > igm.LYA * 4.0] == 1.0).all()
    assert (transmission[wavelength < igm.LYA * 3.9] < 1.0).all()


@pytest.mark.filterwarnings("error")
def test_forest_of_a_few_pixels_is_finite():
    rng = np.random.default_rng(2)
    wavelength = np.arange(3600.0, 3700.0, 0.8)
    for pixels in (1, 2, 3, 10):
        redshift = wavelength[pixels] / igm.LYA - 1.0
        transmission = igm.forest_transmission(wavelength, redshift, rng)
        assert ((transmission >= 0) & (transmission <= 1)).all()


def test_quasar_light_is_finite_from_near_to_far():
    wavelength = instrument("sdss").pixels.wavelength
    rng = np.random.default_rng(4)
    for redshift in (0.01, 0.5, 2.0, 4.0, 7.0):
        for kind in ("broad_lines", "weak_lines"):
            flux = quasar_flux(wavelength, redshift, draw_traits(rng, kind, redshift), 65.0, rng)
            assert np.isfinite(flux).all()
            assert (flux >= 0).all()
            assert flux.max() > 0


def test_damped_systems_have_the_width_of_their_column():
    wavelength = np.arange(3000.0, 6000.0, 0.25)
    absorbed = 1 - np.exp(-igm.damping_wing(wavelength, 2.5, 1e20))
    rest_ew = absorbed.sum() * 0.25 / 3.5
    assert rest_ew == pytest.approx(7.3, rel=0.05)  # W = 7.3 Å (N / 1e20 cm⁻²)^½
