"""The numbers of a mock alert packet, consistent with its images.

Distributions after the public ZTF stream; see `candidate_fields` for what follows from what.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from skyray.simulate.alert_images import Visit
from skyray.simulate.alert_sources import BOGUS, PIXEL_SCALE_ARCSEC, SourceModel, StaticObject

_DETECTION_SIGMA = 5.0
_NOT_FOUND = -999.0


def measured(model: SourceModel, visit: Visit, rng: np.random.Generator) -> tuple[float, float]:
    """Return the true flux of the change and the measured one, with the exposure's noise."""
    flux = model.curve.difference(visit.jd, visit.band)
    calibration = 1 + rng.normal(0, 0.02)
    return flux, flux * calibration + float(rng.normal(0, visit.flux_error))


def visit_entry(visit: Visit, true_flux: float, flux: float) -> dict[str, Any]:
    """Return a visit as an entry of a history: a detection, or an upper limit (magpsf None)."""
    error = visit.flux_error
    seen = abs(flux) > _DETECTION_SIGMA * error
    return {
        "jd": visit.jd, "fid": visit.band, "diffmaglim": visit.limit,
        "magpsf": float(-2.5 * np.log10(abs(flux))) if seen else None,
        "sigmapsf": float(np.hypot(1.0857 * error / abs(flux), 0.02)) if seen else None,
        "isdiffpos": ("t" if flux > 0 else "f") if seen else None,
        "true_flux": true_flux,
    }  # fmt: skip


def candidate_fields(
    model: SourceModel, visit: Visit, entry: dict[str, Any], rng: np.random.Generator
) -> dict[str, Any]:
    """Return the fields of a detection under ZTF's names.

    ``sgscore``, ``distpsnr`` are those of the scene's nearest objects that Pan-STARRS would list
    (r < 22), ``magnr``, ``distnr``, ``chinr``, ``sharpnr`` of the nearest of the reference image.
    Real/bogus scores err: a tenth of the real ones lie below .9.
    """
    bogus = model.kind in BOGUS
    signal = 1.0857 / entry["sigmapsf"]
    place = rng.normal(0, 0.3 * visit.fwhm / max(signal, 5) + 0.08, 2) * PIXEL_SCALE_ARCSEC / 3600
    elongation = 1 + rng.gamma(2, 0.15 if bogus else 0.05)
    score = float(rng.beta(1, 6) * 0.29) if bogus else 1 - 0.49 * float(rng.beta(0.35, 4))
    wide = float(rng.normal(0, 0.03))
    return {
        "jd": visit.jd, "fid": visit.band, "programid": 1, "exptime": 30.0,
        "ra": model.ra + float(place[0] / np.cos(np.radians(model.dec))),
        "dec": model.dec + float(place[1]),
        "magpsf": entry["magpsf"], "sigmapsf": entry["sigmapsf"],
        "diffmaglim": visit.limit, "isdiffpos": entry["isdiffpos"],
        "magzpsci": visit.zero_point, "fwhm": visit.fwhm * float(rng.normal(1, 0.03)),
        "magap": entry["magpsf"] + wide, "magdiff": wide,
        "chipsf": float(rng.lognormal(1.8 if bogus else 0.9, 0.9)),
        "scorr": float(signal * rng.uniform(0.8, 1.2)), "sky": float(rng.standard_t(3) * 0.6),
        "classtar": float(1 - rng.gamma(1.2, 0.05 if bogus else 0.02)),
        "elong": float(elongation), "nneg": int(rng.poisson(4.0 if bogus else 1.0)), "nbad": 0,
        "mindtoedge": float(rng.uniform(40, 1500)), "seeratio": float(rng.normal(1, 0.15)),
        "rb": float(np.clip(score + rng.normal(0, 0.15), 0, 1)), "drb": score,
        "rbversion": "mock", "drbversion": "mock",
        "ssdistnr": float(rng.uniform(0, 3)) if model.kind == "moving" else _NOT_FOUND,
        **_nearest_fields(model.scene, visit.band, rng),
    }  # fmt: skip


def _nearest_fields(
    scene: tuple[StaticObject, ...], band: int, rng: np.random.Generator
) -> dict[str, Any]:
    known = [item for item in scene if item.mag[1] < 22][:3]
    found: dict[str, Any] = {"nmtchps": len(known) + int(rng.poisson(6))}
    for rank in (1, 2, 3):
        item = known[rank - 1] if rank <= len(known) else None
        found[f"sgscore{rank}"] = _star_score(item, rng) if item else _NOT_FOUND
        found[f"distpsnr{rank}"] = item.distance_arcsec if item else _NOT_FOUND
        for name, magnitude in zip("gr", item.mag if item else (_NOT_FOUND,) * 2, strict=False):
            found[f"s{name}mag{rank}"] = magnitude
    nearest = scene[0]
    galaxy = nearest.shape is not None
    found |= {
        "distnr": nearest.distance_arcsec / PIXEL_SCALE_ARCSEC, "magnr": nearest.mag[band - 1],
        "chinr": float(rng.lognormal(1.1 if galaxy else -0.4, 0.5)),
        "sharpnr": float(rng.normal(0.35 if galaxy else 0.0, 0.12 if galaxy else 0.04)),
    }  # fmt: skip
    return found


def _star_score(item: StaticObject, rng: np.random.Generator) -> float:
    """Return a Pan-STARRS star/galaxy score (Tachibana & Miller 2018); poor for faint objects."""
    doubt = float(np.clip((item.mag[1] - 18.5) / 6, 0.02, 0.5))
    away = float(rng.beta(1, 1 / doubt))
    return 1 - away if item.shape is None else away
