"""Mock lenses against astropy, lenstronomy and the published numbers."""

import numpy as np
import pytest
from astropy import constants, units
from astropy.cosmology import FlatLambdaCDM
from scipy import stats

from skyray.cards import load_card
from skyray.config import ConfigError
from skyray.records import check_cutout
from skyray.simulate.base import make_simulator
from skyray.simulate.deflection import (
    LensGalaxy,
    SmallMasses,
    effective_einstein_radius,
    einstein_radius_of_unit_mass,
    tidal_truncation,
)
from skyray.simulate.lens_cameras import CAMERAS, arc_snr, scale_to_snr
from skyray.simulate.lens_sources import Gallery, Sersic
from skyray.simulate.substructure import MassFunction, draw_subhalos, draw_vortex

COSMOS = (0.5, 1.0, 70.0, 0.3)
MASSES = MassFunction(-1.9, 1e6, 1e10)


def survey(card: str = "lenses_two_domains", seed: int = 3, templates=None, **options):
    found = load_card(card)
    mock = {"simulator": "lenses", "options": {**found.mock.options, **options}}
    return make_simulator(type(found).load({**found.snapshot(), "mock": mock}), seed, templates)


def test_einstein_radius_is_astropys():
    cosmology = FlatLambdaCDM(70, 0.3)
    lens, source = cosmology.angular_diameter_distance([0.5, 1.0])
    between = cosmology.angular_diameter_distance(0.5, 1.0)
    bend = 4 * constants.G * 1e12 * units.Msun / constants.c**2
    expected = (np.sqrt((bend * between / lens / source).to_value("")) * units.rad).to("arcsec")
    found = 1e6 * einstein_radius_of_unit_mass(*COSMOS, "corrected")
    assert found == pytest.approx(expected.value, rel=1e-9)
    assert found == pytest.approx(1.66, abs=0.005)


def test_published_einstein_radius_takes_luminosity_distances():
    found = 1e6 * einstein_radius_of_unit_mass(*COSMOS, "as_published")
    assert found == pytest.approx(1.28, abs=0.005)


def test_deflection_is_lenstronomys():
    from lenstronomy.LensModel.lens_model import LensModel

    rng = np.random.default_rng(0)
    x, y = rng.uniform(-2, 2, (2, 50))
    mx, my, theta = rng.uniform(-1.5, 1.5, 6), rng.uniform(-1.5, 1.5, 6), rng.uniform(0.02, 0.2, 6)
    galaxy = LensGalaxy(1.66, 0.1, -0.05, 0.05, 0.02)
    dx, dy = galaxy.deflection(x, y)
    sx, sy = SmallMasses(mx, my, theta).deflection(x, y)
    model = LensModel(["SIE", "SHEAR", *["POINT_MASS"] * 6])
    named = [
        {"theta_E": 1.66, "e1": 0.1, "e2": -0.05, "center_x": 0, "center_y": 0},
        {"gamma1": 0.05, "gamma2": 0.02},
        *(
            {"theta_E": t, "center_x": a, "center_y": b}
            for t, a, b in zip(theta, mx, my, strict=True)
        ),
    ]
    expected = model.alpha(x, y, named)
    np.testing.assert_allclose(dx + sx, expected[0], atol=1e-7)
    np.testing.assert_allclose(dy + sy, expected[1], atol=1e-7)


def test_truncated_subhalo_is_lenstronomys_pseudo_jaffe_of_the_same_mass():
    from lenstronomy.LensModel.Profiles.pseudo_jaffe import PseudoJaffe

    theta, cut = np.array([0.1]), np.array([0.2])
    x, y = np.array([0.05, 0.3, 2.0, 50.0]), np.array([0.02, -0.4, 1.0, 0.0])
    zero = np.zeros(1)
    found = SmallMasses(zero, zero, theta, cut).deflection(x, y)
    # lenstronomy: surface density sigma0 of a core Ra ≪ Rs; total 2π Ra Rs sigma0 = π θ².
    core = 1e-5
    sigma0 = theta[0] ** 2 / (2 * core * cut[0])
    expected = PseudoJaffe().derivatives(x, y, sigma0, core, cut[0])
    np.testing.assert_allclose(found, expected, rtol=2e-3)
    far = SmallMasses(zero, zero, theta).deflection(x[-1:], y[-1:])
    assert found[0][-1] == pytest.approx(far[0][0], rel=0.01)
    assert tidal_truncation(theta, 1.66)[0] > theta[0]


def test_rendered_image_is_lenstronomys():
    from lenstronomy.SimulationAPI.sim_api import SimAPI

    camera, size = CAMERAS["euclid"], 48
    galaxy = LensGalaxy(1.4, 0.1, 0.0, 0.05, 0.0)
    source = Sersic(1.0, 0.4, 1.0, 0.0, 0.0, 0.1, 0.05)
    x, y = camera.rays(size, 3)
    dx, dy = galaxy.deflection(x, y)
    ours = camera.detect(source(x - dx, y - dy), 3)
    band = {"pixel_scale": 0.101, "seeing": 0.16, "psf_type": "GAUSSIAN", "exposure_time": 565.0,
            "num_exposures": 4, "sky_brightness": 22.35, "magnitude_zero_point": 24.0,
            "read_noise": 4.2, "ccd_gain": 1.0, "truncation": 6}  # fmt: skip
    names = {"lens_model_list": ["SIE", "SHEAR"], "source_light_model_list": ["SERSIC"]}
    numerics = {"supersampling_factor": 3, "supersampling_convolution": True}
    api = SimAPI(size, band, names)
    lens = [{"theta_E": 1.4, "e1": 0.1, "e2": 0.0, "center_x": 0, "center_y": 0},
            {"gamma1": 0.05, "gamma2": 0.0}]  # fmt: skip
    light = [{"amp": 1.0, "R_sersic": 0.4, "n_sersic": 1.0, "center_x": 0.1, "center_y": 0.05}]
    theirs = api.image_model_class(numerics).image(lens, light)
    ours, theirs = ours / ours.sum(), theirs / theirs.sum()
    assert np.abs(ours - theirs).max() < 0.02 * theirs.max()
    noise = api.background_noise
    assert np.sqrt(camera.background_variance) == pytest.approx(noise, rel=1e-3)


def test_hst_settings_are_lenstronomys():
    from lenstronomy.SimulationAPI.ObservationConfig.HST import HST

    listed = HST(band="WFC3_F160W", psf_type="GAUSSIAN").kwargs_single_band()
    camera = CAMERAS["hst"]
    assert camera.pixel_scale_arcsec == listed["pixel_scale"]
    assert camera.psf_fwhm_arcsec == listed["seeing"]
    assert camera.zero_point == listed["magnitude_zero_point"]
    assert camera.seconds == listed["exposure_time"] * listed["num_exposures"]
    assert camera.sky_magnitude == listed["sky_brightness"]
    assert camera.read_noise == listed["read_noise"]


def test_subhalo_masses_follow_the_slope():
    drawn = MASSES.draw(np.random.default_rng(1), 20_000)
    power = MASSES.slope + 1

    def below(mass):
        low, high = 1e6**power, 1e10**power
        return (mass**power - low) / (high - low)

    assert stats.kstest(drawn, below).pvalue > 0.01
    assert drawn.mean() == pytest.approx(MASSES.mean(), rel=0.3)


@pytest.mark.parametrize(("mode", "total"), [("corrected", 3.4e8), ("as_published", 3.8e10)])
def test_total_subhalo_mass(mode, total):
    rng = np.random.default_rng(2)
    found = [draw_subhalos(rng, MASSES, 25, (0.25, 2.0), mode) for _ in range(1500)]
    assert np.mean([f.mass_solar.sum() for f in found]) == pytest.approx(total, rel=0.25)
    counts = np.array([len(f.x) for f in found])
    if mode == "corrected":
        assert counts.var() == pytest.approx(25, rel=0.2)
    else:
        assert set(counts) == {25}
    assert all(np.hypot(f.x, f.y).min() >= 0.25 for f in found[:50])


def test_vortex_is_a_line_through_the_centre():
    found = draw_vortex(np.random.default_rng(0), 3e10, 1e-23, 100)
    assert found.mass_solar.sum() == pytest.approx(3e10)
    radius = np.hypot(found.x, found.y)
    assert radius.max() == pytest.approx(0.3)
    assert np.linalg.matrix_rank(np.stack([found.x, found.y]), tol=1e-9) == 1


def test_snr_is_what_was_asked():
    camera = CAMERAS["hst"]
    signal = np.zeros((32, 32))
    signal[10:14] = 1.0
    scaled = scale_to_snr(signal, camera, 20.0)
    assert arc_snr(scaled, camera.noise_sigma(scaled)) == pytest.approx(20, rel=1e-6)
    rng = np.random.default_rng(0)
    pixels = np.stack([camera.expose(scaled, rng)[11] for _ in range(400)])
    assert pixels.mean() / pixels.std() == pytest.approx(20, rel=0.03)


@pytest.mark.parametrize("label", ["NO_SUBSTRUCTURE", "CDM", "AXION"])
def test_a_record_is_a_function_of_seed_label_and_index(label):
    first, again = survey().record(label, 4), survey().record(label, 4)
    np.testing.assert_array_equal(first.image, again.image)
    assert first.extra == again.extra
    assert not np.array_equal(first.image, survey(seed=4).record(label, 4).image)
    check_cutout(first, ["light"])
    assert first.extra["snr"] == pytest.approx(20, rel=1e-6)
    assert first.extra["theta_e_arcsec"] == pytest.approx(1.66, abs=0.005)
    extra = 0.0 if label == "NO_SUBSTRUCTURE" else 0.045  # substructure adds 3–4 % of mass
    assert first.extra["theta_e_found_arcsec"] == pytest.approx(1.66 + extra, abs=0.04)
    assert load_card("lenses_two_domains").label_of(first.fields()) == label


def test_two_cameras_take_turns_and_may_share_their_lenses():
    apart, paired = survey(), survey(paired=True)
    assert [apart.record("CDM", i).survey for i in range(3)] == ["hst", "euclid", "hst"]
    one, two = paired.record("CDM", 6), paired.record("CDM", 7)
    assert (one.survey, two.survey) == ("hst", "euclid")
    assert one.extra["subhalo_mass_solar"] == two.extra["subhalo_mass_solar"]
    assert (one.ra, one.dec) == (two.ra, two.dec)  # one object key: never in two splits
    assert one.object_id != two.object_id
    lone = survey("lenses_hst").record("CDM", 3)
    np.testing.assert_array_equal(lone.image, one.image)
    assert apart.record("CDM", 0).ra != apart.record("CDM", 1).ra


def test_published_noise():
    quiet = survey("lenses_euclid", noise="as_published")
    lens = quiet.lens("CDM", 0)
    seen = quiet.expose(lens, CAMERAS["euclid"], "CDM", 0)
    np.testing.assert_array_equal(seen.image, 2 * seen.signal)
    camera = CAMERAS["hst"]

    def spread(mode):
        made = survey("lenses_hst", noise=mode)
        seen = made.expose(made.lens("AXION", 1), camera, "AXION", 1)
        bright = seen.signal > 0.3 * seen.signal.max()
        return np.std((seen.image - seen.signal)[bright] / np.sqrt(seen.signal[bright]))

    assert spread("as_published") > 1.2 * spread("corrected")


def test_effective_radius_of_a_point_mass():
    axis = (np.arange(200) - 99.5) * 0.02
    x, y = np.meshgrid(axis, axis)
    mass = SmallMasses(np.zeros(1), np.zeros(1), np.array([1.2]))
    assert effective_einstein_radius(*mass.deflection(x, y), 0.02) == pytest.approx(1.2, abs=0.01)


def test_pictures_of_real_galaxies(survey_data):
    table = survey_data / "galaxies_gz1" / "galaxies_69px.parquet"
    gallery = Gallery(table)
    light = gallery.prepared(0)
    assert light.shape == (69, 69)
    assert light.sum() == pytest.approx(1, abs=1e-4)
    assert light[0].max() < 0.02 * light.max()  # masked towards the edge
    record = survey(templates=table).record("CDM", 1)
    assert record.extra["snr"] == pytest.approx(20, rel=1e-6)
    check_cutout(record, ["light"])


def test_a_folder_of_arrays_serves_as_sources(tmp_path):
    axis = np.linspace(-2, 2, 40)
    np.save(tmp_path / "one.npy", np.exp(-(axis[:, None] ** 2) - axis**2))
    made = survey("lenses_hst", templates=tmp_path).record("NO_SUBSTRUCTURE", 0)
    assert made.image.max() > 5 * np.std(made.image[0, :4])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="expected pictures"):
        Gallery(tmp_path / "empty")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"snr": -1}, "snr"),
        ({"lens_redshift": 2.0}, "source_redshift"),
        ({"cameras": []}, "cameras"),
    ],
)
def test_refuses_bad_options(options, message):
    with pytest.raises(ConfigError, match=message):
        survey(**options)
