"""Mock galaxies: one object in both surveys; light, noise and stars against GalSim and numpy."""

import galsim
import numpy as np
import pytest

from skyray.cards import load_card
from skyray.config import ConfigError
from skyray.records import check_cutout
from skyray.simulate import galaxy_images
from skyray.simulate.base import make_simulator
from skyray.simulate.galaxies import DES, SDSS, GalaxySurvey, transform

SDSS_CARD, DES_CARD = load_card("sdss_galaxies"), load_card("des_galaxies")


@pytest.fixture(scope="module")
def sdss() -> GalaxySurvey:
    return make_simulator(SDSS_CARD.override(["mock.options.min_vote=0"]), 3)


@pytest.fixture(scope="module")
def des() -> GalaxySurvey:
    return make_simulator(DES_CARD, 3)


def galaxy_of(kind: str, seed: int = 0, **changes) -> galaxy_images.Galaxy:
    made = galaxy_images.draw_galaxy(np.random.default_rng(seed), kind)
    values = {name: getattr(made, name) for name in made.__dataclass_fields__}
    return galaxy_images.Galaxy(**{**values, "stars": (), **changes})


class NoNoise:
    """A random generator that draws nothing but zeros."""

    def uniform(self, *_):
        return np.zeros(2)

    def normal(self, size):
        return np.zeros(size)


def test_records_depend_on_seed_label_and_index_alone(sdss):
    later = sdss.record("spiral", 5)
    again = make_simulator(sdss.card, 3).record("spiral", 5)
    np.testing.assert_array_equal(later.image, again.image)
    assert later.extra == again.extra
    assert not np.array_equal(later.image, make_simulator(sdss.card, 4).record("spiral", 5).image)


def test_both_surveys_see_the_same_galaxy(sdss, des):
    for label in ("spiral", "elliptical"):
        one, other = sdss.record(label, 7), des.record(label, 7)
        assert one.extra == other.extra
        assert one.object_id == other.object_id
        separation = np.hypot(
            (one.ra - other.ra) * np.cos(np.radians(one.dec)), one.dec - other.dec
        )
        assert 0 < separation * 3600 < 1.0
        side = [len(r.image[0]) * r.pixel_scale_arcsec for r in (one, other)]
        assert side[0] == pytest.approx(side[1], rel=0.03)  # the same sky
        assert len(other.image[0]) > len(one.image[0])  # in finer pixels
        for record in (one, other):
            check_cutout(record, ("g", "r", "i", "z"))


@pytest.mark.filterwarnings("ignore:Doing convolution of 2 objects")
@pytest.mark.parametrize("kind", galaxy_images.KINDS)
def test_image_agrees_with_galsims_own_convolution(sdss, kind):
    galaxy = galaxy_of(kind, 4, half_light_arcsec=3.0, petro_rad_arcsec=6.0)
    found = sdss.image(galaxy, NoNoise())[1]
    parts = galaxy_images.profiles(galaxy)
    magnitudes = galaxy_images.band_magnitudes(galaxy, "r")
    light = galsim.Sum([parts[n] * SDSS.flux(m) for n, m in magnitudes.items()])
    psf = galsim.Moffat(beta=3.0, fwhm=1.32, trunc=5 * 1.32)
    side = len(found)
    odd = side + 1 - side % 2  # its centre is a pixel, number side // 2
    expected = galsim.Convolve(light, psf, real_space=False).drawImage(
        nx=odd, ny=odd, scale=0.396, method="no_pixel"
    )
    whole = expected.array[:side, :side]
    assert np.abs(found - whole).max() < 0.01 * whole.max()
    assert found.sum() == pytest.approx(whole.sum(), rel=0.01)


@pytest.mark.parametrize("kind", galaxy_images.KINDS)
def test_total_light_is_the_drawn_magnitude(kind):
    galaxy = galaxy_of(kind, 1)
    magnitudes = galaxy_images.band_magnitudes(galaxy, "r").values()
    assert -2.5 * np.log10(sum(10 ** (-0.4 * m) for m in magnitudes)) == pytest.approx(galaxy.r_mag)
    for light in galaxy_images.profiles(galaxy).values():
        assert light.flux == pytest.approx(1.0, abs=1e-6)


def test_arms_turn_as_told():
    """Mirrored arms are the mirror image."""
    one = galaxy_images.disc_images(galaxy_of("spiral", 2, clockwise=True))[1]
    other = galaxy_images.disc_images(galaxy_of("spiral", 2, clockwise=False))[1]
    np.testing.assert_allclose(one, other[::-1], atol=1e-12)
    assert not np.allclose(one, other)


def test_ellipticals_are_redder_and_smoother_than_spirals():
    def colour(kind):
        galaxy = galaxy_of(kind, 3, reddening=0.0)
        total = {
            b: sum(10 ** (-0.4 * m) for m in galaxy_images.band_magnitudes(galaxy, b).values())
            for b in "gr"
        }
        return -2.5 * np.log10(total["g"] / total["r"])

    assert colour("elliptical") == pytest.approx(0.78)
    assert colour("spiral") < 0.72


@pytest.mark.parametrize(("camera", "limit", "sigmas"), [(SDSS, 22.2, 5.0), (DES, 24.08, 10.0)])
def test_depth_is_the_published_one(camera, limit, sigmas):
    """A star at the limiting magnitude has the published significance in the published area."""
    pixels = 2.27 * (1.32 / 0.396) ** 2 if camera is SDSS else np.pi * (0.975 / 0.263) ** 2
    noise = camera.sky_sigma["r"] * np.sqrt(pixels)
    assert camera.flux(limit) / noise == pytest.approx(sigmas)


def test_noise_is_the_skys_and_the_sources(sdss):
    galaxy = galaxy_of("elliptical", 5, r_mag=15.0, half_light_arcsec=4.0)
    quiet = sdss.image(galaxy, NoNoise())[1]
    rng = np.random.default_rng(0)

    class Noise(NoNoise):
        def normal(self, size):
            return rng.normal(size=size)

    noise = np.stack([sdss.image(galaxy, Noise())[1] - quiet for _ in range(40)]).std(axis=0)
    expected = np.sqrt(SDSS.sky_sigma["r"] ** 2 + quiet / SDSS.electrons["r"])
    assert np.median(noise / expected) == pytest.approx(1.0, abs=0.04)
    assert expected.max() > 1.5 * SDSS.sky_sigma["r"]


def test_star_has_its_flux_and_place(sdss):
    empty = galaxy_of("elliptical", 5)
    star = galaxy_of("elliptical", 5, stars=((4.0, -3.0, 16.0, 0.5),))
    difference = sdss.image(star, NoNoise())[1] - sdss.image(empty, NoNoise())[1]
    assert difference.sum() == pytest.approx(SDSS.flux(16.0), rel=0.05)
    y, x = np.unravel_index(difference.argmax(), difference.shape)
    centre = len(difference) // 2
    assert (x - centre, y - centre) == (round(4.0 / 0.396), round(-3.0 / 0.396))


def test_transform_holds_the_flux():
    light = galsim.Sersic(2.0, half_light_radius=2.0, flux=7.0)
    assert transform(light, 128, 0.4)[0, 0].real == pytest.approx(7.0, rel=1e-3)


def test_votes_follow_how_plainly_the_type_is_seen(sdss):
    far = galaxy_of("spiral", 6, petro_rad_arcsec=3.0, r_mag=17.7)
    near = galaxy_of("spiral", 6, petro_rad_arcsec=20.0, r_mag=15.0)
    assert galaxy_images.visibility(near, 1.3, 500) > galaxy_images.visibility(far, 1.3, 50) + 2
    votes = np.array([sdss.galaxy("spiral", i)[1] for i in range(150)])
    assert 0.03 < (votes > 0.985).mean() < 0.3  # few are beyond doubt, as in the FO sets
    assert np.median(votes) < 0.95


def test_min_vote_and_label_rules():
    survey = make_simulator(SDSS_CARD, 1)
    record = survey.record("spiral", 2)
    assert record.extra["P_CS_DEBIASED"] >= 0.926
    assert DES_CARD.label_of(record.fields()) == "spiral"
    sure = {**record.fields(), "P_CS_DEBIASED": 0.99}
    assert SDSS_CARD.label_of(sure) == "spiral"
    assert SDSS_CARD.label_of({**sure, "P_CS_DEBIASED": 0.95, "P_EL_DEBIASED": 0.05}) == ""


def test_options_are_checked():
    with pytest.raises(ConfigError, match="survey"):
        make_simulator(SDSS_CARD.override(["mock.options.survey=hsc"]), 0)
    with pytest.raises(ConfigError, match="bands: the simulator knows"):
        make_simulator(SDSS_CARD.override(["bands=[u, g, r]"]), 0)
    with pytest.raises(ConfigError, match="expected \\['elliptical', 'spiral'\\]"):
        make_simulator(SDSS_CARD.override(["mock.options.classes={spiral: {kinds: [barred]}}"]), 0)


def test_real_galaxies_card_reads_its_table(survey_data):
    from pyarrow import fs

    from skyray.readers.base import SurveyFile, make_reader

    card = load_card("galaxies_gz1")
    reader = make_reader(card.reader, card.reader_options)
    path = survey_data / "galaxies_gz1" / "galaxies_69px.parquet"
    records = list(reader.read(SurveyFile(fs.LocalFileSystem(), str(path))))
    labels = [card.label_of(record.fields()) for record in records]
    assert (labels.count("elliptical"), labels.count("spiral"), labels.count("")) == (
        1000,
        567,
        779,
    )


@pytest.mark.parametrize("colours", ["corrected", "as_published"])
def test_figure_of_both_surveys(sdss, des, tmp_path, colours):
    from PIL import Image

    from skyray.simulate.galaxy_gallery import survey_figure

    path = survey_figure({"SDSS": sdss, "DES": des}, tmp_path / "g.png", 2, colours)
    picture = np.asarray(Image.open(path).convert("RGB"))
    assert picture.shape[0] > picture.shape[1]  # four rows of two
    assert picture.std() > 20
