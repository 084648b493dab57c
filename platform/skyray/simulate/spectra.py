"""Mock spectroscopic surveys: the classes of a card on the instrument's own wavelengths.

Every spectrum is a pure function of (seed, label, index), so any slice of a mock survey can be made
anywhere and in any order.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from skyray.cards import Card
from skyray.records import Spectrum
from skyray.simulate.base import Simulator, register_simulator
from skyray.simulate.exposure import Exposure, observe
from skyray.simulate.instruments import Instrument, Pixels, instrument
from skyray.simulate.light import LightSources
from skyray.simulate.options import ClassOptions, fields_for, mock_options, snr_floor
from skyray.transforms.spectra import median_snr

_BGS_ANY, _MWS_ANY = 1 << 60, 1 << 61


@dataclass(frozen=True)
class MockObject:
    """A mock object before and after the telescope.

    Attributes
    ----------
    pixels : Pixels
    light : float64 [L]
        F_λ as it arrives, arbitrary units, convolved with the line-spread function.
    exposure : Exposure
        What the pipeline makes of it.
    redshift : float
    type : str
        The drawn type (``starburst``, ``G2`` …), which surveys do not list; in ``extra`` of the
        spectrum it is ``mock_type``.
    dispersion_kms : float, optional
        σ of a galaxy's stars, ``vdisp`` in ``extra`` as surveys name it; None for all others.
    """

    pixels: Pixels
    light: np.ndarray
    exposure: Exposure
    redshift: float
    type: str = ""
    dispersion_kms: float | None = None


@register_simulator
class MockSurvey(Simulator):
    """Mock spectra of every class of a card.

    Parameters
    ----------
    card : Card
        With ``mock: {simulator: spectra, options: ...}``.
    seed : int
    templates : Path, optional
        Folder of external templates (see `skyray.simulate.templates`), mixed with the built-in
        ones. Without it nothing but the built-in ones is needed.

    Raises
    ------
    ConfigError
        If the card's mock options are not valid, or a template file is missing.
    """

    name = "spectra"

    def __init__(self, card: Card, seed: int, templates: Path | None = None):
        super().__init__(card, seed, templates)
        self.options = mock_options(card)
        self.instrument: Instrument = instrument(self.options.instrument)
        self._fields = {label: fields_for(card, label) for label in card.classes}
        self._snr_floor = snr_floor(card)
        self.light = LightSources(self.instrument, templates)

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.card.classes)

    def record(self, label: str, index: int) -> Spectrum:
        return self.spectrum(label, index)

    def spectrum(self, label: str, index: int) -> Spectrum:
        """Return mock spectrum `index` of a class; the same arguments give the same spectrum.

        Raises
        ------
        KeyError
            If the card has no such class.
        """
        rng = self._rng(label, index)
        mock = self._draw(rng, self.options.classes[label])
        number = int(index) * len(self.card.classes) + self.card.classes.index(label)
        source = f"mock:{self.card.name}/{self.seed}/{label}/{index}"
        return self.catalogued(rng, mock, label, self.identity(number), source)

    def catalogued(
        self,
        rng: np.random.Generator,
        mock: MockObject,
        label: str,
        ids: Mapping[str, object],
        source: str,
    ) -> Spectrum:
        """Return a mock object as the survey delivers one of class `label`, with a sky position.

        Parameters
        ----------
        ids : mapping
            ``object_id`` and what else the survey names objects by, as from `identity`.
        source : str
            What to write into ``Spectrum.source``.
        """
        exposure = mock.exposure
        snr = median_snr(exposure.flux, exposure.ivar, exposure.mask)
        ids = dict(ids)
        fields = dict(self._fields[label][int(rng.integers(len(self._fields[label])))])
        vdisp = {} if mock.dispersion_kms is None else {"vdisp": round(mock.dispersion_kms, 1)}
        return Spectrum(
            wavelength=mock.pixels.wavelength,
            flux=exposure.flux,
            ivar=exposure.ivar,
            mask=exposure.mask,
            ra=float(rng.uniform(0.0, 360.0)),
            dec=float(np.degrees(np.arcsin(rng.uniform(-0.35, 0.98)))),
            spectype=str(fields.pop("spectype", "")),
            subtype=str(fields.pop("subtype", "")),
            redshift=mock.redshift,
            redshift_err=_redshift_error(self.options.classes[label].kind, mock.redshift, snr),
            zwarning=0,
            snr=snr,
            survey="mock",
            source=source,
            object_id=str(ids.pop("object_id")),
            extra={**ids, **self._target(snr), **fields, **vdisp, "mock_type": mock.type},
        )

    def observe(
        self,
        rng: np.random.Generator,
        light: np.ndarray,
        pixels: Pixels,
        redshift: float,
        snr: float,
    ) -> MockObject:
        """Point the telescope at light [L] of any kind; `snr` as in `exposure.observe`."""
        light = np.maximum(light, 0.0)
        exposure = observe(light, snr, self.instrument, pixels, rng)
        return MockObject(pixels, light, exposure, redshift)

    def mock_object(self, label: str, index: int) -> MockObject:
        """Return what lies behind `spectrum`: the light, the noiseless and the noisy flux."""
        return self._draw(self._rng(label, index), self.options.classes[label])

    def _rng(self, label: str, index: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, zlib.crc32(label.encode()), int(index)])

    def _draw(self, rng: np.random.Generator, options: ClassOptions) -> MockObject:
        pixels = self.instrument.exposure(rng)
        redshift = options.redshift.draw(rng, options.kind)
        snr = options.snr.draw(rng, self._snr_floor)
        kind = options.types[int(rng.integers(len(options.types)))]
        dispersion = None
        if options.kind == "galaxy":
            galaxy = self.light.galaxy(rng, kind)
            light = self.light.of_galaxy(galaxy, pixels, redshift)
            dispersion = galaxy.dispersion_kms
        else:
            light = self.light.of(rng, options.kind, kind, pixels, redshift, options.metal_poor)
        seen = self.observe(rng, light, pixels, redshift, snr)
        return replace(seen, type=kind, dispersion_kms=dispersion)

    def identity(self, number: int, planted: bool = False) -> dict[str, object]:
        """Return identifiers as the survey writes them, in ranges real ones do not use.

        Planted objects (see `skyray.simulate.planted`) have a range of their own.
        """
        if self.options.instrument == "desi":
            first = (89 if planted else 88) * 10**15
            return {"object_id": str(first + (self.seed % 10000) * 10**11 + number)}
        if self.options.instrument == "fourmost":
            word = "planted" if planted else "mock"
            return {"object_id": f"{word}{self.seed}-{number:08d}"}
        plate = (60000 if planted else 20000) + number // 1000
        fiber, mjd = number % 1000 + 1, 70000 + self.seed % 10000
        return {"object_id": f"{plate:04d}-{mjd:05d}-{fiber:04d}",
                "plate": plate, "mjd": mjd, "fiberid": fiber, "run2d": "mock"}  # fmt: skip

    def _target(self, snr: float) -> dict[str, object]:
        if self.options.instrument != "desi":
            return {}
        bits = {"bgs": _BGS_ANY, "mws": _MWS_ANY}.get(self.options.target, 0)
        return {"desi_target": bits, "fiberstatus": 0, "objtype": "TGT",
                "deltachi2": 60.0 + 25.0 * snr**2, "is_bgs": bool(bits & _BGS_ANY),
                "is_mws": bool(bits & _MWS_ANY)}  # fmt: skip


def _redshift_error(kind: str, redshift: float, snr: float) -> float:
    """Return a typical formal error: 6, 20 and 80 km/s at SNR 10 for stars, galaxies, quasars."""
    at_snr_10 = {"star": 2e-5, "galaxy": 7e-5, "qso": 2.7e-4}[kind]
    return float((1.0 + redshift) * min(at_snr_10 * 10.0 / max(snr, 0.5), 4.5e-4))
