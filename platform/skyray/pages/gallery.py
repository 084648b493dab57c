"""The gallery: one page on which a person goes through spectra of a survey, one by one.

Any number of objects, tens of kilobytes each: rest-frame spectrum with masked regions, model and
residuals, zooms on the main lines, scores, the nearest normal objects, a link to the image in a
public viewer, and marks that can be exported. Only links that a person follows lead out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from skyray.pages.page import document, readable, text, write_whole
from skyray.pages.spectrum_plot import spark, spectrum_panels

MARKS = ("interesting", "artefact", "known")
HELP = (
    "<kbd>j</kbd> next, <kbd>k</kbd> previous, <kbd>i</kbd> interesting, <kbd>a</kbd> artefact, "
    "<kbd>n</kbd> known, <kbd>/</kbd> find. Marks and notes stay in this browser; export them as "
    "CSV. Grey: range of the pixels (zooms: ±1σ); dark line: their mean; orange: the model; "
    "stripes: masked, not used. Below, (flux − model) / σ: grey for pixels, line for bins."
)


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A normal object near an outlier in latent space.

    Attributes
    ----------
    object_id : str
    distance : float
        In standardised latents.
    wavelength_rest, flux_rest : float [any length]
        Its spectrum or reconstruction in the rest frame: Å, and flux in any unit.
    """

    object_id: str
    distance: float
    wavelength_rest: np.ndarray
    flux_rest: np.ndarray


@dataclass(frozen=True, slots=True)
class GalleryEntry:
    """One object of the gallery.

    Attributes
    ----------
    rank : int
        1 is the strangest.
    object_id : str
        Unique in a gallery; a reader's marks are stored under it.
    ra, dec : float
        Degrees (ICRS); NaN where not known.
    redshift : float
        Of the catalogue; NaN draws the spectrum in the observed frame.
    label : str
        Class, or kind of a planted outlier: what one filters by.
    scores : mapping
        Name → value. NaN is shown as –.
    wavelength_L, flux_L, ivar_L : float [L]
        Observed vacuum Å, ascending; flux in any unit and its inverse variance, 0: not measured.
    masked_L : bool [L]
        Sky lines and pixels flagged by the survey.
    model_L : float [L]
        In the unit of the flux; NaN where there is none.
    neighbours : sequence of Neighbour
    source : str
        Where the spectrum came from; searched by the text filter.
    survey : str
        ``sdss`` adds its own viewer; ``mock`` has no image to link to.
    """

    rank: int
    object_id: str
    ra: float
    dec: float
    redshift: float
    label: str
    scores: Mapping[str, float]
    wavelength_L: np.ndarray
    flux_L: np.ndarray
    ivar_L: np.ndarray
    masked_L: np.ndarray
    model_L: np.ndarray
    neighbours: Sequence[Neighbour] = ()
    source: str = ""
    survey: str = ""

    def __post_init__(self):
        length = np.shape(self.wavelength_L)
        for name in ("flux_L", "ivar_L", "masked_L", "model_L"):
            if np.shape(getattr(self, name)) != length or len(length) != 1:
                raise ValueError(
                    f"gallery entry {self.object_id}: {name}: expected shape of wavelength_L "
                    f"{length}, found {np.shape(getattr(self, name))}"
                )


def write_gallery(
    path: str | Path,
    entries: Sequence[GalleryEntry],
    title: str,
    summary: Mapping[str, Any],
    titles: Mapping[str, str] | None = None,
) -> Path:
    """Write the gallery as one HTML file, whole or not at all, and return its path.

    Parameters
    ----------
    path : path
        Of this machine; its folder is made if it is not there.
    entries : sequence of GalleryEntry
        Shown in the given order; about 45 kB each at DESI's 7781 pixels.
    title : str
    summary : mapping
        Name → value, shown at the top.
    titles : mapping, optional
        Score → how a person calls it; else its name without underscores.

    Raises
    ------
    ValueError
        If two entries have the same rank or object_id.
    """
    for name in ("rank", "object_id"):
        values = [getattr(entry, name) for entry in entries]
        if len(set(values)) < len(values):
            raise ValueError(f"gallery: {name}: expected a different one for every entry")
    return write_whole(path, _page(entries, title, summary, titles or {}))


def _page(entries, title: str, summary: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    facts = "".join(
        f"<div><dt>{text(name)}</dt><dd>{text(readable(value))}</dd></div>"
        for name, value in {**summary, "written": when}.items()
    )
    names = list(dict.fromkeys(name for entry in entries for name in entry.scores))
    called = {name: titles.get(name, name.replace("_", " ")) for name in names}
    body = [
        f'<div class="top"><h1>{text(title)}</h1><dl class="facts">{facts}</dl>',
        f'<p class="help">{HELP}</p></div>',
        _toolbar(entries, called),
        "<main>",
        *(_card(entry, called) for entry in entries),
        "</main>",
    ]
    return document(title, body, "gallery.css", "gallery.js")


def _toolbar(entries: Sequence[GalleryEntry], called: Mapping[str, str]) -> str:
    sorts = "".join(f'<option value="{text(n)}">{text(t)}</option>' for n, t in called.items())
    labels = "".join(  # the sign in front tells an empty label from "all"
        f'<option value="={text(label)}">{text(label) or "(none)"}</option>'
        for label in sorted({entry.label for entry in entries})
    )
    marks = "".join(f'<option value="{mark}">{mark}</option>' for mark in MARKS)
    return (
        '<div class="bar"><form id="bar">'
        '<label>sort <select id="sort"><option value="rank">rank</option>'
        f"{sorts}</select></label>"
        '<label><input type="checkbox" id="reverse"> reversed</label>'
        '<label>find <input type="search" id="find" placeholder="id, class, note"></label>'
        f'<label>class <select id="label"><option value="">all</option>{labels}</select></label>'
        '<label>mark <select id="mark"><option value="">all</option>'
        f'<option value="none">unmarked</option>{marks}</select></label>'
        '<label>rank <input type="number" id="jump" min="1"></label><button>go</button>'
        '<label><input type="checkbox" id="compact"> compact</label>'
        '<button type="button" id="export">export CSV</button>'
        '<output id="count" aria-live="polite"></output></form></div>'
    )


def _card(entry: GalleryEntry, called: Mapping[str, str]) -> str:
    z = float(entry.redshift)
    numbers = {
        k: float(v) if v is not None and math.isfinite(v) else None for k, v in entry.scores.items()
    }
    data = {
        "rank": entry.rank, "id": entry.object_id, "label": entry.label,
        "ra": _digits(entry.ra, 6), "dec": _digits(entry.dec, 6), "redshift": _digits(z, 6),
        "text": f"{entry.rank} {entry.object_id} {entry.label} {entry.source}",
        "scores": json.dumps(numbers),
    }  # fmt: skip
    attributes = " ".join(f'data-{name}="{text(value)}"' for name, value in data.items())
    scores = "".join(
        f"<dt>{text(called[name])}</dt><dd>{text(readable(value))}</dd>"
        for name, value in numbers.items()
    )
    return (
        f'<article class="card" id="rank-{entry.rank}" tabindex="-1" {attributes}>'
        f"{_header(entry, z)}"
        f'<div class="body"><div>{_spectrum(entry)}</div><div class="side">'
        f"<dl>{scores}</dl>{_neighbours(entry.neighbours)}{_marks(entry)}</div></div></article>"
    )


def _spectrum(entry: GalleryEntry) -> str:
    return spectrum_panels(
        entry.object_id, entry.wavelength_L, entry.flux_L, entry.ivar_L, entry.masked_L,
        entry.model_L, entry.redshift,
    )  # fmt: skip


def _header(entry: GalleryEntry, z: float) -> str:
    facts = [f"z = {z:.5f}" if math.isfinite(z) else "z not known: observed frame"]
    if _has_position(entry):
        facts.append(f"RA {entry.ra:.5f}°, Dec {entry.dec:+.5f}°".replace("-", "−"))
    if entry.source:
        facts.append(entry.source)
    chip = f'<span class="chip">{text(entry.label)}</span>' if entry.label else ""
    spans = "".join(f"<span>{text(fact)}</span>" for fact in facts)
    return (
        f'<header><h2><a href="#rank-{entry.rank}"><b>{entry.rank}</b>{text(entry.object_id)}</a>'
        f"</h2>{chip}{spans}<nav>{_links(entry)}</nav></header>"
    )


def _digits(value: float, places: int) -> str:
    return f"{value:.{places}f}" if math.isfinite(value) else ""


def _has_position(entry: GalleryEntry) -> bool:
    return math.isfinite(entry.ra) and math.isfinite(entry.dec)


def _links(entry: GalleryEntry) -> str:
    """Return links to the sky at the object; a mock has a position but no image."""
    survey = entry.survey.lower()
    if survey == "mock":
        return "<span>mock: no image</span>"
    if not _has_position(entry):
        return ""
    ra, dec = _digits(entry.ra, 6), _digits(entry.dec, 6)
    links = {
        "image": f"https://www.legacysurvey.org/viewer?ra={ra}&dec={dec}&layer=ls-dr9&zoom=16"
        f"&mark={ra},{dec}",
    }
    if "sdss" in survey:
        links["SDSS"] = (
            f"https://skyserver.sdss.org/dr16/en/tools/chart/navi.aspx?ra={ra}&dec={dec}&scale=0.2"
        )
    links["SIMBAD"] = (
        f"https://simbad.cds.unistra.fr/simbad/sim-coo?Coord={ra}d{float(dec):+.6f}d"
        "&Radius=10&Radius.unit=arcsec".replace("+", "%2B")
    )
    return "".join(
        f'<a href="{text(address)}" target="_blank" rel="noopener">{name}</a>'
        for name, address in links.items()
    )


def _marks(entry: GalleryEntry) -> str:
    buttons = "".join(
        f'<button type="button" value="{mark}" aria-pressed="false">{mark}</button>'
        for mark in MARKS
    )
    return (
        f'<fieldset class="marks"><legend>mark</legend>{buttons}'
        f'<input type="text" placeholder="note" aria-label="note on {text(entry.object_id)}">'
        "</fieldset>"
    )


def _neighbours(neighbours: Sequence[Neighbour]) -> str:
    if not neighbours:
        return ""
    items = "".join(
        f"<li>{spark(near.wavelength_rest, near.flux_rest)}{text(near.object_id)}"
        f"<span>{text(readable(float(near.distance)))}</span></li>"
        for near in neighbours
    )
    return f'<div class="near"><h3>nearest normal objects, distance</h3><ol>{items}</ol></div>'
