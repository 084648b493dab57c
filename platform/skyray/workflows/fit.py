"""``skyray fit``: classes and redshifts of survey files from templates alone, without training.

OUT/bundle/                      templates and settings, as a bundle: serve it, predict with it
OUT/dataset/                     the spectra read, where sources are survey files
OUT/catalogue/, catalogue.fits   one row a spectrum
OUT/spectra.html                 spectra with their best models, to look through
OUT/index.html                   what was found, and links
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from skyray.bundles.bundle import Predictor, write_bundle
from skyray.cards import Card, load_card
from skyray.config import ConfigError
from skyray.data.dataset import Dataset, table_to_columns
from skyray.families.base import Columns, DataInfo
from skyray.families.redshift.family import RedshiftFamily
from skyray.families.redshift.quality import BITS, SURVEY_DISAGREES
from skyray.families.redshift.recipes import RedshiftRecipe, templates
from skyray.inference.catalogue import Catalogue
from skyray.inference.predict import predict
from skyray.models.template_bases import TemplateBasis
from skyray.pages.gallery import GalleryEntry, write_gallery
from skyray.pages.report import write_report
from skyray.readers.base import make_reader
from skyray.readers.template_files import FOREST_SCATTER, read_template_file
from skyray.records import trusted
from skyray.runtime import places, provenance
from skyray.simulate.instruments import instrument
from skyray.simulate.options import mock_options
from skyray.workflows.learned_templates import learn_templates

CARDS = ("sdss_coarse", "desi", "fourmost_mock")  # tried in this order by the names of the files
_SHOWN = 24
_COLUMNS = (
    "observation_id", "ra", "dec", "snr", "label", "redshift", "redshift_err", "quality",
    "quality_words", "class_fit", "subclass_fit", "redshift_fit", "delta_chi2", "delta_chi2_class",
    "chi2_reduced", "class_survey", "redshift_survey", "zwarning_survey", "sigmas_from_survey",
)  # fmt: skip
_SCORES = ("redshift", "redshift_err", "snr", "chi2_reduced", "delta_chi2", "delta_chi2_class",
           "redshift_survey", "quality")  # fmt: skip


def fit(
    sources: Sequence[str],
    out: str,
    *,
    card: str | None = None,
    template_sources: Sequence[str] = (),
    lsf_kms: float | None = None,
    workers: int | None = None,
    use_gpu: bool = False,
    fits: bool | None = None,
    votable: bool = False,
    hats: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Fit templates to survey files or a dataset; Ray must be running. Return a summary.

    Parameters
    ----------
    sources : sequence of str
        One dataset, or files and folders of one survey.
    card : str, optional
        Card of the files; default: the dataset's own, or the first of `CARDS` whose reader knows
        the names of the files.
    template_sources : sequence of str, optional
        Template files (see `skyray.readers.template_files`), or datasets of spectra with known
        classes and redshifts to learn templates from. Default: the built-in ones.
    lsf_kms : float, optional
        σ of the spectrograph's line spread; default: that of the card's instrument.

    Raises
    ------
    ConfigError
        If no card fits the files, or templates hold no class at all.
    """
    chosen = _card_of(sources, card)
    bundle = places.join(out, "bundle")
    write_template_bundle(bundle, chosen, read_templates(template_sources), lsf_kms)
    done = predict(
        bundle, sources, out, card=card or chosen.name, workers=workers, use_gpu=use_gpu, fits=fits,
        votable=votable, hats=hats, progress=progress,
    )  # fmt: skip
    one = len(sources) == 1 and Dataset.exists(sources[0])
    dataset = Dataset.open(sources[0] if one else places.join(out, "dataset"))
    table = Catalogue.open(done.catalogue).columns_of(_COLUMNS)
    found = summary(table)
    found |= {"quarantined": done.quarantined, "catalogue": done.catalogue}
    with places.local_folder(out) as folder:
        entries = _entries(Predictor.without_network(bundle), dataset, table)
        shown = {name: value for name, value in found.items() if not isinstance(value, dict)}
        title = f"Best models: {dataset.card.title}"
        write_gallery(folder / "spectra.html", entries, title, shown)
        tables = {"Classes": found["classes"], "Warnings": warnings_table(table)}
        write_report(
            folder, f"Template fit: {dataset.card.title}", shown, (), tables,
            {"spectra with their best models": "spectra.html"},
        )  # fmt: skip
    return found | {"page": places.join(out, "index.html")}


def write_template_bundle(
    uri: str, card: Card, bases: Sequence[TemplateBasis] | None, lsf_kms: float | None = None
) -> None:
    """Write a bundle that answers with templates alone; `bases` None: the built-in ones."""
    if card.record != "spectrum":
        raise ConfigError(f"card {card.name}: expected a card of spectra, found {card.record!r}")
    width = _instrument_lsf(card) if lsf_kms is None else lsf_kms
    recipe: RedshiftRecipe = templates()
    if width is not None:
        recipe = recipe.override([f"fit.lsf_kms={width:.1f}"])
    if bases is not None:
        recipe = recipe.override([f"fit.forest_scatter={FOREST_SCATTER}"])
    info = DataInfo(
        card=card.name, record=card.record, classes=tuple(card.classes), coarse=dict(card.coarse),
        fingerprint="0" * 64, grid=card.grid.grid(), min_good_pixels=card.min_good_pixels,
    )  # fmt: skip
    family = RedshiftFamily(recipe, info)
    tensors = family.template_tensors(bases)
    about = {
        "version": f"templates-{recipe.digest()[:8]}-{_digest(tensors)}",
        "git_commit": provenance.git_commit(),
        "versions": provenance.versions(),
    }
    write_bundle(uri, family, torch.nn.Module(), {}, tensors, about)


def _digest(tensors) -> str:
    import hashlib

    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].numpy().tobytes())
    return digest.hexdigest()[:8]


def _instrument_lsf(card: Card) -> float | None:
    if card.mock is None or card.mock.simulator != "spectra":
        return None
    return instrument(mock_options(card).instrument).lsf_kms


def _card_of(sources: Sequence[str], card: str | None) -> Card:
    if card is not None:
        return load_card(card)
    if len(sources) == 1 and Dataset.exists(sources[0]):
        return Dataset.open(sources[0]).card
    names = [posixpath.basename(str(path)) for source in sources for path in _names(source)]
    for name in CARDS:
        reader = make_reader(load_card(name).reader)
        if any(reader.claims(path) for path in names):
            return load_card(name)
    raise ConfigError(
        f"fit: no card of {CARDS} knows files of names such as {names[:3]}; say which: --card"
    )


def _names(source: str) -> list[str]:
    found = [info.uri for info, _ in zip(places.walk(source), range(1000), strict=False)]
    return found or [source]


def read_templates(sources: Sequence[str]) -> list[TemplateBasis] | None:
    """Return the bases of template files and those learned from datasets; None for no source."""
    if not sources:
        return None
    bases: list[TemplateBasis] = []
    for source in sources:
        if Dataset.exists(source):
            bases += learn_templates(Dataset.open(source))
            continue
        for path in _names(source):
            with places.local_copy(path) as local:
                bases += read_template_file(local)
    if not bases:
        raise ConfigError(f"templates: nothing in {list(sources)}")
    return bases


def summary(table: Columns) -> dict[str, Any]:
    """Return what a reader of the terminal wants to know of a catalogue."""
    own = table["quality"] & ~SURVEY_DISAGREES
    labels, counts = np.unique(table["label"].astype(str), return_counts=True)
    known = trusted(table["zwarning_survey"]) & np.isfinite(table["redshift_survey"])
    found: dict[str, Any] = {
        "objects": len(own),
        "classes": {str(a) or "none": int(n) for a, n in zip(labels, counts, strict=True)},
        "without warning": f"{(own == 0).mean():.1%}" if len(own) else "–",
        "warnings": {
            bit.word: int((table["quality"] & bit.value != 0).sum())
            for bit in BITS
            if (table["quality"] & bit.value).any()
        },
    }
    if known.any():
        agree = (table["quality"][known] & SURVEY_DISAGREES) == 0
        clean = own[known] == 0
        found["survey's trusted answers"] = int(known.sum())
        found["agree with them"] = f"{agree.mean():.1%}"
        if clean.any():
            found["agree, without warning of ours"] = f"{agree[clean].mean():.1%}"
    return found


def warnings_table(table: Columns) -> list[dict[str, Any]]:
    """Return one row a quality bit: word, what it says, how many."""
    return [
        {
            "bit": bit.value,
            "word": bit.word,
            "objects": int((table["quality"] & bit.value != 0).sum()),
            "meaning": bit.sentence,
        }
        for bit in BITS
    ]


def _chosen(table: Columns) -> np.ndarray:
    """Return rows to show: of each class and warning the first few, as many as fit on a page."""
    rows: list[int] = []
    groups = [np.flatnonzero(table["label"] == name) for name in np.unique(table["label"])]
    groups += [np.flatnonzero(table["quality"] & bit.value) for bit in BITS]
    groups = [list(group) for group in groups if len(group)]
    while groups and len(rows) < _SHOWN:
        for group in groups:
            row = group.pop(0)
            if row not in rows and len(rows) < _SHOWN:
                rows.append(int(row))
        groups = [group for group in groups if group]
    return np.sort(np.array(rows, np.int64))


def _entries(predictor: Predictor, dataset: Dataset, table: Columns) -> list[GalleryEntry]:
    family, rows = predictor.family, _chosen(table)
    names = list(dict.fromkeys([*family.columns(False), "survey", "source"]))
    columns = table_to_columns(dataset.take(rows, names))
    inputs = family.answer_inputs(columns)
    fitted = family.template_fit(predictor.tensors)
    kinds = [(basis.spectype, basis.subtype) for basis in fitted.bases]
    wavelength = fitted.wavelength()
    entries = []
    for place, row in enumerate(rows):
        flux, ivar = inputs["fit_flux"][place], inputs["fit_ivar"][place]
        kind = (str(table["class_fit"][row]), str(table["subclass_fit"][row]))
        model, z = np.full(len(flux), np.nan), float(table["redshift_fit"][row])
        if kind in kinds:
            model = fitted.model(flux, ivar, kinds.index(kind), z)
        label = " · ".join(
            filter(None, (str(table["label"][row]), str(table["quality_words"][row])))
        )
        entries.append(
            GalleryEntry(
                rank=place + 1, object_id=str(table["observation_id"][row]),
                ra=float(table["ra"][row]), dec=float(table["dec"][row]), redshift=z, label=label,
                scores={name: float(table[name][row]) for name in _SCORES},
                wavelength_L=wavelength, flux_L=flux, ivar_L=ivar, masked_L=ivar <= 0,
                model_L=model, source=str(columns["source"][place]),
                survey=str(columns["survey"][place]),
            )
        )  # fmt: skip
    return entries
