"""The light of stars, galaxies and quasars as it reaches one spectrograph, before any noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from skyray.simulate import galaxy_spectra, quasar_spectra, restframe
from skyray.simulate.instruments import Instrument, Pixels
from skyray.simulate.stars import BuiltInStars, StarSource, host_starlight
from skyray.simulate.stellar_spectra import star_library
from skyray.simulate.template_sources import TemplateQuasars, TemplateStarlight, TemplateStars
from skyray.simulate.templates import load_templates


class LightSources:
    """Built-in and, where given, external templates, convolved with the line-spread function.

    Every method returns F_λ on the pixels of an exposure, float64 [L], in arbitrary units; the
    types are those of `skyray.simulate.options.TYPES`.

    Parameters
    ----------
    instrument : Instrument
    templates : Path, optional
        Folder of external templates (see `skyray.simulate.templates`).
    """

    def __init__(self, instrument: Instrument, templates: Path | None = None):
        self._lsf_kms = instrument.lsf_kms
        library = restframe.broaden(star_library(), self._lsf_kms)
        self._stars: StarSource = BuiltInStars(library, self._lsf_kms)
        self._starlight: galaxy_spectra.Starlight = galaxy_spectra.BuiltInStarlight(library)
        self._quasars: TemplateQuasars | None = None
        if templates is not None:
            loaded = load_templates(Path(templates))
            self._stars = TemplateStars(loaded, self._stars)
            self._starlight = TemplateStarlight(loaded, self._starlight)
            self._quasars = TemplateQuasars(loaded)

    def of(
        self,
        rng: np.random.Generator,
        kind: str,
        subtype: str,
        pixels: Pixels,
        redshift: float,
        metal_poor: bool = False,
    ) -> np.ndarray:
        """Return the light of a star, galaxy or qso (`kind`) of a type; `metal_poor`: stars."""
        if kind == "star":
            return self._stars.flux(rng, subtype, pixels.wavelength, redshift, metal_poor)
        if kind == "galaxy":
            return self.of_galaxy(self.galaxy(rng, subtype), pixels, redshift)
        traits = quasar_spectra.draw_traits(rng, subtype, redshift)
        return self.quasar(rng, traits, pixels, redshift)

    def galaxy(self, rng: np.random.Generator, subtype: str) -> galaxy_spectra.Galaxy:
        """Draw a galaxy: its starlight in the rest frame and its gas."""
        return galaxy_spectra.draw_galaxy(rng, subtype, self._starlight)

    def of_galaxy(
        self, galaxy: galaxy_spectra.Galaxy, pixels: Pixels, redshift: float
    ) -> np.ndarray:
        """Return the light of a galaxy that `galaxy` drew."""
        return galaxy_spectra.galaxy_flux(galaxy, pixels.wavelength, redshift, self._lsf_kms)

    def double_peaked(
        self,
        galaxy: galaxy_spectra.Galaxy,
        pixels: Pixels,
        redshift: float,
        split_kms: float,
        blue_share: float,
    ) -> np.ndarray:
        """Return a galaxy whose gas moves at two velocities, ± `split_kms` / 2 of the stars.

        `blue_share` of the line flux comes toward the observer.
        """
        flux = restframe.observe(galaxy.template, pixels.log_wavelength, redshift)
        for sign, share in ((-1, blue_share), (1, 1.0 - blue_share)):
            galaxy_spectra.add_gas(
                flux,
                galaxy,
                pixels.wavelength,
                redshift,
                self._lsf_kms,
                sign * split_kms / 2,
                share,
            )
        return flux

    def quasar(
        self,
        rng: np.random.Generator,
        traits: quasar_spectra.QuasarTraits,
        pixels: Pixels,
        redshift: float,
    ) -> np.ndarray:
        """Return a quasar of given traits, below z = 1.2 in a host galaxy."""
        host = None
        if redshift < 1.2:
            host = host_starlight(self.galaxy(rng, "agn").template)
        emitted = self._quasars.emission(rng, redshift, traits) if self._quasars else None
        return quasar_spectra.quasar_flux(
            pixels.wavelength, redshift, traits, self._lsf_kms, rng, host, emitted
        )
