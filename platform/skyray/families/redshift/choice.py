"""The one rule that makes an answer of networks and templates, and the columns that tell of it.

1. The networks' classes and redshift are a prior on the templates' candidates. A share of it is
   uniform (`FitConfig.prior_share`), and outside the networks' domain, or where members disagree,
   all of it: they choose among fits that are about as good, and never against a clear one.
2. ``redshift`` is the best candidate's. Only where the templates leave the question open (another
   redshift fits nearly as well, no model describes the spectrum, or the range ends) and the
   networks are inside their domain and agree, it is the networks'; `source_of_redshift` says so,
   and the bits that left it open stay: no such answer is green.
3. The survey's own answer is never replaced: it stands in columns of its own, and no answer of ours
   is made from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from skyray.families.base import Columns, OutputColumn
from skyray.families.redshift import quality
from skyray.families.redshift.density import PDF_SIZE
from skyray.families.redshift.metrics import SAME_LIMIT
from skyray.families.redshift.recipes import FitConfig
from skyray.families.redshift.template_fit import SPECTYPES, Fit, Prior
from skyray.models.template_bases import QSO
from skyray.records import trusted

AGREE = 0.02  # of ln (1 + z): a spread of members below it is agreement
SURE = 0.9
OPEN = ("small_delta_chi2", "one_feature", "poor_fit", "negative_model", "outside_templates",
        "no_fit")  # fmt: skip


@dataclass(frozen=True)
class NetworkAnswer:
    """What networks alone say of B spectra.

    Attributes
    ----------
    probability : float64 [B, C]
    redshift, sigma : float64 [B]
        Of the most probable class; NaN where it has none.
    in_domain : bool [B]
    """

    probability: np.ndarray
    redshift: np.ndarray
    sigma: np.ndarray
    in_domain: np.ndarray

    @property
    def agree(self) -> np.ndarray:
        """Return where the members agree, or nothing can disagree."""
        with np.errstate(invalid="ignore"):
            spread = self.sigma / (1.0 + self.redshift)
        return ~(spread > AGREE) & np.isfinite(self.redshift)

    def coarse(self, groups: np.ndarray) -> np.ndarray:
        """Return the probabilities of `SPECTYPES`, float64 [B, 3]; `groups` [C] names each's."""
        return np.stack([self.probability[:, groups == t].sum(axis=1) for t in SPECTYPES], axis=1)


def network_prior(network: NetworkAnswer, groups: np.ndarray) -> Prior:
    """Return what the networks' answer is worth to the fit."""
    heard = network.in_domain & network.agree
    return Prior(network.coarse(groups), network.redshift, network.sigma, heard)


def combine(
    fits: Sequence[Fit],
    measured: np.ndarray,
    network: NetworkAnswer | None,
    survey: Mapping[str, np.ndarray],
    classes: Sequence[str],
    coarse: Mapping[str, str],
    settings: FitConfig,
) -> Columns:
    """Return the columns of `described`, and ``redshift_pdf``, for B spectra.

    Parameters
    ----------
    measured : float [B]
        Share of the wavelength range on good pixels.
    survey : mapping
        ``class``, ``redshift``, ``redshift_err``, ``zwarning``: the survey's own, [B] each.
    """
    fit = _fit_columns(fits)
    groups = np.array([coarse.get(name, name) for name in classes])
    flags = _fit_flags(fit, fits, measured, settings)
    use = np.zeros(len(fits), bool)
    spectype, z, sigma = (fit[n] for n in ("class_fit", "redshift_fit", "redshift_fit_err"))
    if network is not None:
        own = network.coarse(groups).argmax(axis=1)
        network_class = np.array(SPECTYPES, dtype=object)[own]
        seen = np.array([one.features_prior for one in fits])
        use = _network_flags(flags, fit, network, network_class, seen)
        spectype = np.where(use, network_class, spectype)
        z, sigma = np.where(use, network.redshift, z), np.where(use, network.sigma, sigma)
    flags["survey_disagrees"] = _against_survey(spectype, z, survey)
    bits = quality.pack(flags)
    source = np.where(use, "network", np.where(fit["class_fit"] == "", "", "fit")).astype(object)
    return {
        **_labels(spectype, network, classes, groups, fit, fits),
        "redshift": z,
        "redshift_err": sigma,
        "source_of_redshift": source,
        "quality": bits,
        "quality_words": quality.words(bits),
        **fit,
        "redshift_network": _or_nan(network and network.redshift, len(fits)),
        "redshift_network_err": _or_nan(network and network.sigma, len(fits)),
        **_survey_columns(z, sigma, survey),
        "redshift_pdf": _densities(fits),
    }


def _network_flags(
    flags: dict, fit: Columns, network: NetworkAnswer, spectype: np.ndarray, features: np.ndarray
) -> np.ndarray:
    """Add what the networks change in word → bool [B]; return where their answer is taken, [B].

    Nothing that a warning says of the spectrum is taken back where the networks answer: templates
    do leave it open. What depends on class and redshift is said of theirs, and where templates fit
    another answer better than theirs, that is an answer that fits as well. `features` int [B] of
    their class are measured at their redshift.
    """
    doubtful = np.any([flags[word] for word in OPEN], axis=0)
    sound = network.in_domain & network.agree
    use, fitted = doubtful & sound, fit["class_fit"] != ""
    sure = sound & (network.probability.max(axis=1) > SURE)
    far = fitted & _differ(network.redshift, fit["redshift_fit"], spectype, network.sigma)
    other_class = fitted & (spectype != fit["class_fit"])
    flags["small_delta_chi2"] |= use & far
    flags["class_unsure"] |= use & other_class
    flags["lines_not_covered"] = np.where(use, features < 2, flags["lines_not_covered"])
    flags["members_disagree"] = doubtful & ~network.agree
    flags["out_of_domain"] = doubtful & ~network.in_domain
    flags["network_disagrees"] = sure & (other_class | far) & ~use
    return use


def _survey_columns(z, sigma, survey: Mapping[str, np.ndarray]) -> Columns:
    return {
        "class_survey": np.asarray(survey["class"], dtype=object),
        "redshift_survey": np.asarray(survey["redshift"], np.float64),
        "zwarning_survey": np.asarray(survey["zwarning"], np.int64),
        "sigmas_from_survey": _sigmas(z, sigma, survey),
    }


def _densities(fits: Sequence[Fit]) -> np.ndarray:
    rows = np.zeros((len(fits), PDF_SIZE), np.float32)
    for row, one in zip(rows, fits, strict=True):
        if one.pdf is not None:
            row[:] = one.pdf
    return rows


def nothing_fitted(network: Columns) -> Columns:
    """Return the columns of `combine` where only networks answered (calibration, old requests)."""
    rows = len(network["redshift"])
    columns = {}
    for name, dtype in ((column.name, column.dtype) for column in described()):
        fill = "" if dtype == "str" else -1 if dtype.startswith("int") else np.nan
        columns[name] = np.full(rows, fill, dtype=object if dtype == "str" else dtype)
    bits = np.full(rows, quality.VALUE["no_fit"], np.int32)
    columns |= {"quality": bits, "quality_words": quality.words(bits)}
    columns["source_of_redshift"] = np.full(rows, "network", dtype=object)
    columns["redshift_network"] = network["redshift"]
    columns["redshift_network_err"] = network["redshift_err"]
    return {**columns, "redshift_pdf": np.zeros((rows, PDF_SIZE), np.float32)}


def _or_nan(values, rows: int) -> np.ndarray:
    return np.full(rows, np.nan) if values is None else np.asarray(values, np.float64)


def _fit_columns(fits: Sequence[Fit]) -> Columns:
    def text(read) -> np.ndarray:
        column = np.empty(len(fits), dtype=object)
        column[:] = [read(one) for one in fits]
        return column

    def number(read, dtype=np.float64) -> np.ndarray:
        return np.array([read(one) for one in fits], dtype=dtype)

    return {
        "class_fit": text(lambda one: one.best.spectype if one.best else ""),
        "subclass_fit": text(lambda one: one.best.subtype if one.best else ""),
        "redshift_fit": number(lambda one: one.best.redshift if one.best else np.nan),
        "redshift_fit_err": number(lambda one: one.sigma),
        "chi2_reduced": number(lambda one: one.chi2_reduced, np.float32),
        "delta_chi2": number(lambda one: one.delta_chi2, np.float32),
        "delta_chi2_class": number(lambda one: one.delta_chi2_class, np.float32),
        "delta_chi2_hidden": number(lambda one: one.delta_chi2_hidden, np.float32),
        "class_second": text(lambda one: one.second.spectype if one.second else ""),
        "redshift_second": number(lambda one: one.second.redshift if one.second else np.nan),
    }


def _fit_flags(fit: Columns, fits, measured: np.ndarray, settings: FitConfig) -> dict:
    """Return word → bool [B]. χ² differences count in units of the best fit's χ² a pixel."""
    spread = np.fmax(fit["chi2_reduced"], 1.0)
    missing = fit["class_fit"] == ""
    quasar = fit["class_fit"] == QSO
    least = np.where(quasar, settings.min_delta_chi2_quasar, settings.min_delta_chi2)
    with np.errstate(invalid="ignore"):
        return {
            "no_fit": missing,
            "few_good_pixels": np.asarray(measured) < 0.5,
            "small_delta_chi2": ~missing & ~(fit["delta_chi2"] / spread >= least),
            "one_feature": ~missing
            & ~(fit["delta_chi2_hidden"] / spread >= settings.min_delta_chi2),
            "class_unsure": ~missing
            & (
                ~(fit["delta_chi2_class"] / spread >= settings.min_delta_chi2)
                | np.array([one.untried for one in fits], bool)
            ),
            "poor_fit": fit["chi2_reduced"] > settings.max_chi2,
            "outside_templates": np.array(
                [bool(one.best and (one.best.at_edge or one.covered < 0.9)) for one in fits], bool
            ),
            "lines_not_covered": np.array(
                [bool(one.best and one.features < 2) for one in fits], bool
            ),
            "negative_model": np.array([one.negative for one in fits], bool),
        }


def _differ(a, b, spectype, sigma=0.0) -> np.ndarray:
    """Return where two redshifts are not the same within a class's limit (and 5 σ), bool [B]."""
    limit = np.array([SAME_LIMIT.get(str(name), SAME_LIMIT["GALAXY"]) for name in spectype])
    with np.errstate(invalid="ignore"):
        distance = np.abs(np.log((1.0 + a) / (1.0 + b)))
        return distance > np.fmax(limit, 5.0 * sigma / (1.0 + np.abs(a)))


def _against_survey(spectype, z, survey: Mapping[str, np.ndarray]) -> np.ndarray:
    theirs = np.array([str(name).upper() for name in survey["class"]], dtype=object)
    known = np.isin(theirs, SPECTYPES)
    compared = trusted(survey["zwarning"]) & np.isfinite(survey["redshift"])
    return compared & ((known & (theirs != spectype)) | _differ(survey["redshift"], z, spectype))


def _sigmas(z, sigma, survey: Mapping[str, np.ndarray]) -> np.ndarray:
    error = np.nan_to_num(np.asarray(survey["redshift_err"], np.float64), nan=0.0)
    both = np.hypot(sigma, np.maximum(error, 0.0))
    difference = z - np.asarray(survey["redshift"], np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(both > 0, difference / both, np.nan).astype(np.float32)


def _labels(
    spectype, network: NetworkAnswer | None, classes, groups, fit: Columns, fits: Sequence[Fit]
) -> Columns:
    """Return label, probability and ``p_…``: the networks' most probable class of that spectype.

    Without networks the label is the spectype, and the probabilities are the likelihoods of the
    classes' best candidates; NaN where nothing was fitted.
    """
    rows = len(spectype)
    if network is None:
        label = np.array([str(name) for name in spectype], dtype=object)
        spread = np.fmax(fit["chi2_reduced"], 1.0)
        cost = np.array([[one.classes.get(name, np.inf) for name in classes] for one in fits])
        likelihood = np.exp(-0.5 * cost / spread[:, None])
        total = likelihood.sum(axis=1, keepdims=True)
        share = np.full(likelihood.shape, np.nan)
        np.divide(likelihood, total, out=share, where=total > 0)
        own = np.where(label[:, None] == np.array(classes), share, np.nan)
        chance = np.fmax.reduce(own, axis=1)
        table = {f"p_{name}": share[:, i] for i, name in enumerate(classes)}
    else:
        allowed = groups[None, :] == spectype[:, None].astype(str)
        none = ~allowed.any(axis=1)
        best = np.where(allowed | none[:, None], network.probability, -1.0).argmax(axis=1)
        label = np.array(classes, dtype=object)[best]
        chance = network.probability[np.arange(rows), best]
        table = {f"p_{name}": network.probability[:, i] for i, name in enumerate(classes)}
    table = {name: values.astype(np.float32) for name, values in table.items()}
    return {"label": label, "probability": chance.astype(np.float32), **table}


def described() -> list[OutputColumn]:
    """Describe the columns of `combine` beside label, probabilities and the redshift itself."""
    entries = [
        ("source_of_redshift", "str", "", "fit (templates) or network, which redshift comes from"),
        ("quality", "int32", "", "bits of warnings (docs/redshift_fit.md); 0: use it"),
        ("quality_words", "str", "", "the bits in words"),
        ("class_fit", "str", "", "class of the best template: GALAXY, QSO or STAR"),
        ("subclass_fit", "str", "", "which templates of the class"),
        ("redshift_fit", "float64", "", "redshift of the best template"),
        ("redshift_fit_err", "float64", "", "1 sigma, from the curvature of chi2 and systematics"),
        ("chi2_reduced", "float32", "", "chi2 a pixel of the best model, model errors included"),
        (
            "delta_chi2",
            "float32",
            "",
            "chi2 of the best other redshift minus that of the fit's; "
            "below 0 where the networks chose",
        ),
        ("delta_chi2_class", "float32", "", "the same of the best other class"),
        ("delta_chi2_hidden", "float32", "", "delta_chi2 without the strongest narrow feature"),
        ("class_second", "str", "", "class of the second-best candidate"),
        ("redshift_second", "float64", "", "redshift of the second-best candidate"),
        ("redshift_network", "float64", "", "the networks' own redshift"),
        ("redshift_network_err", "float64", "", "1 sigma of the networks' redshift"),
        ("class_survey", "str", "", "the survey's own class"),
        ("redshift_survey", "float64", "", "the survey's own redshift"),
        ("zwarning_survey", "int64", "", "the survey's own warning; 0: trusted, -1: none given"),
        ("sigmas_from_survey", "float32", "", "redshift minus the survey's, over both errors"),
    ]
    return [OutputColumn(*entry) for entry in entries]
