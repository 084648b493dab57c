"""Template bases learned from spectra with known classes and redshifts."""

from __future__ import annotations

import numpy as np

from skyray.analysis.weighted_components import weighted_components
from skyray.config import ConfigError
from skyray.data.dataset import Dataset, table_to_columns
from skyray.models.template_bases import GALAXY, LOG_STEP, QSO, STAR, TemplateBasis
from skyray.records import trusted
from skyray.transforms.log_rebin import LogRebin

_VECTORS = {GALAXY: 6, QSO: 6, STAR: 6}
_FEWEST, _MOST = 12, 4000  # spectra a class
_MARGIN = 0.2  # of 1 + z, beyond the redshifts learned from


def learn_templates(dataset: Dataset, vectors: dict[str, int] | None = None) -> list[TemplateBasis]:
    """Return one basis a class from a dataset's rows whose redshift the survey does not doubt.

    The test split is left out, so that what is learned can be scored there.
    Each class needs 12 spectra at least; of more than 4,000 so many are drawn. Spectra are moved to
    the rest frame by whole pixels of 69 km/s and brought to one scale; see `weighted_components`.

    Raises
    ------
    ConfigError
        If no class has enough spectra.
    """
    count = _VECTORS | (vectors or {})
    names = ["spectype", "label", "redshift", "zwarning", "split"]
    about = table_to_columns(dataset.take(np.arange(dataset.count()), names))
    known = np.isfinite(about["redshift"]) & trusted(about["zwarning"], silent=True)
    known &= about["split"] != "test"
    coarse = [dataset.card.coarse.get(str(name), str(name)) for name in about["label"]]
    kinds = np.array([str(a).upper() or b for a, b in zip(about["spectype"], coarse, strict=True)])
    bases, found = [], {}
    for spectype in (GALAXY, QSO, STAR):
        rows = np.flatnonzero(known & (kinds == spectype))
        found[spectype] = len(rows)
        if len(rows) < _FEWEST:
            continue
        if len(rows) > _MOST:
            rows = np.sort(np.random.default_rng(0).choice(rows, _MOST, replace=False))
        columns = table_to_columns(dataset.take(rows, ["flux", "ivar", "mask"]))
        flux, ivar = LogRebin(dataset.grid, LOG_STEP)(*columns.values())
        first = LogRebin(dataset.grid, LOG_STEP).first
        bases.append(_learn(spectype, flux, ivar, first, about["redshift"][rows], count[spectype]))
    if not bases:
        raise ConfigError(
            f"{dataset.uri}: templates: expected {_FEWEST} spectra of a class with a redshift, "
            f"found {found}"
        )
    return bases


def _learn(spectype: str, flux_NL, ivar_NL, first: int, redshift_N, count: int) -> TemplateBasis:
    shift = np.rint(np.log10(1.0 + redshift_N) / LOG_STEP).astype(int)
    if spectype == STAR:
        shift[:] = np.where(np.abs(redshift_N) < 0.01, shift, 0)
    begin = first - shift.max()
    size = flux_NL.shape[1] + shift.max() - shift.min()
    flux, ivar = np.zeros((2, len(flux_NL), size), np.float32)
    for row, move in enumerate(first - shift - begin):
        here = slice(move, move + flux_NL.shape[1])
        weight = ivar_NL[row].astype(np.float64)
        scale = np.sqrt(max(float(np.sum(weight * flux_NL[row] ** 2) / max(weight.sum(), 1e-300)),
                            1e-300))  # fmt: skip
        flux[row, here], ivar[row, here] = flux_NL[row] / scale, weight * scale**2
    vectors, variance, seen = weighted_components(flux, ivar, count)
    used = np.flatnonzero(seen >= 3)
    limits = (-0.002, 0.002)
    if spectype != STAR:
        low, high = float(redshift_N.min()), float(redshift_N.max())
        limits = (max((1 + low) * (1 - _MARGIN) - 1, 0.002), (1 + high) * (1 + _MARGIN) - 1)
    inside = slice(used[0], used[-1] + 1)
    return TemplateBasis(
        spectype, "", begin + int(used[0]), vectors[:, inside], variance, limits,
        stride=2 if spectype == QSO else 1,
    )  # fmt: skip
