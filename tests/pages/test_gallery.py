"""The gallery: every object is there, drawn where its pixels are, and no text breaks the page."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from urllib.parse import parse_qs, urlparse

import numpy as np
import pytest

from skyray.cards import load_card
from skyray.pages import svg
from skyray.pages.gallery import GalleryEntry, Neighbour, write_gallery
from skyray.simulate.spectra import MockSurvey

TITLES = {"neg_log_p": "−log p galaxy"}
VOID = ("meta", "input", "path")


class Page(HTMLParser):
    """Collects tags and text, and checks that tags close in order."""

    def __init__(self, source: str):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def attributes(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def cards(self) -> list[dict[str, str]]:
        return self.attributes("article")


def read(path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def entries() -> list[GalleryEntry]:
    """Six mock BGS galaxies, the noiseless flux as their model."""
    survey = MockSurvey(load_card("desi_bgs"), seed=5)
    made = []
    for index in range(6):
        spectrum = survey.spectrum("GALAXY", index)
        truth = survey.mock_object("GALAXY", index).exposure.truth
        near = Neighbour(f"near-{index}", 0.25 * index, spectrum.wavelength, truth)
        made.append(
            GalleryEntry(
                index + 1, spectrum.object_id, spectrum.ra, spectrum.dec, spectrum.redshift,
                ("GALAXY", "blend")[index % 2], {"neg_log_p": 30.5 - index, "chi2_reduced": 1.5},
                spectrum.wavelength, spectrum.flux, spectrum.ivar,
                np.asarray(spectrum.mask, bool), truth, [near], spectrum.source, "desi",
            )
        )  # fmt: skip
    return made


def test_every_object_is_there_and_nothing_is_loaded(entries, tmp_path):
    path = write_gallery(
        tmp_path / "new" / "gallery.html", entries, "BGS", {"objects": 5000}, TITLES
    )
    page, source = read(path), path.read_text(encoding="utf-8")
    assert [card["data-id"] for card in page.cards()] == [entry.object_id for entry in entries]
    assert [json.loads(c["data-scores"])["neg_log_p"] for c in page.cards()] == [
        30.5, 29.5, 28.5, 27.5, 26.5, 25.5,
    ]  # fmt: skip
    text = " ".join(page.text)
    for expected in ("5,000", "−log p galaxy", "30.5", "near-3", f"z = {entries[2].redshift:.5f}"):
        assert expected in text
    assert not re.search(r"<(img|link|iframe|object|embed)\b|<script[^>]+src|@import|url\(", source)
    for link in page.attributes("a"):
        if not link["href"].startswith("#rank-"):
            assert link["target"] == "_blank"
            assert link["rel"] == "noopener"
    assert path.stat().st_size < 60_000 * len(entries)
    assert [file.name for file in path.parent.iterdir()] == ["gallery.html"]


def test_links_lead_to_the_object(entries, tmp_path):
    made = [
        replace(entries[0], survey="sdss", ra=12.5, dec=-0.75),
        replace(entries[1], survey="mock"),
        replace(entries[2], ra=float("nan")),
    ]
    page = read(write_gallery(tmp_path / "g.html", made, "t", {}))
    links = [a["href"] for a in page.attributes("a") if a["href"].startswith("http")]
    hosts = [urlparse(link).hostname for link in links]
    assert hosts == ["www.legacysurvey.org", "skyserver.sdss.org", "simbad.cds.unistra.fr"]
    query = parse_qs(urlparse(links[0]).query)
    assert (query["ra"], query["dec"]) == (["12.500000"], ["-0.750000"])
    assert (query["layer"], query["zoom"]) == (["ls-dr9"], ["16"])
    assert parse_qs(urlparse(links[2]).query)["Coord"] == ["12.500000d-0.750000d"]


def test_text_cannot_break_the_page(entries, tmp_path):
    evil = "</script><script>alert('x')</script>&\"'<b>"
    bad = replace(
        entries[0], object_id=evil, label=evil, source=evil, scores={evil: 1.0},
        neighbours=[replace(entries[0].neighbours[0], object_id=evil)],
    )  # fmt: skip
    page = read(write_gallery(tmp_path / "g.html", [bad], evil, {evil: evil}))
    assert len(page.attributes("script")) == 1
    assert page.text.count(evil) >= 5
    (card,) = page.cards()
    assert card["data-id"] == evil
    assert json.loads(card["data-scores"]) == {evil: 1.0}


def test_what_is_missing_is_left_out(entries, tmp_path):
    length = 300
    wavelength = np.linspace(3600.0, 3900.0, length)
    nothing, none = np.full(length, np.nan), np.zeros(length)
    empty = GalleryEntry(1, "empty", np.nan, np.nan, np.nan, "", {"neg_log_p": np.nan},
                         wavelength, none, none, none > 0, nothing)  # fmt: skip
    masked = replace(empty, rank=2, object_id="masked", ivar_L=none + 1, masked_L=none == 0)
    broken = replace(entries[0], rank=3, flux_L=np.where(np.arange(7781) % 7, np.nan, 1.0))
    path = write_gallery(tmp_path / "g.html", [empty, masked, broken], "t", {"x": None})
    text = " ".join(read(path).text)
    for expected in ("nothing measured", "not covered", "z not known", "–"):
        assert expected in text
    assert not re.search(r'd="[^"]*nan|:nan%|"NaN"|: NaN', path.read_text(encoding="utf-8"))
    read(write_gallery(tmp_path / "none.html", [], "nothing found", {}))


def test_wrong_entries_are_refused(entries, tmp_path):
    with pytest.raises(ValueError, match=r"model_L: expected shape.*7781.*found \(3,\)"):
        replace(entries[0], model_L=np.zeros(3))
    with pytest.raises(ValueError, match="rank"):
        write_gallery(tmp_path / "g.html", [entries[0], replace(entries[1], rank=1)], "t", {})
    with pytest.raises(ValueError, match="object_id"):
        write_gallery(tmp_path / "g.html", [entries[0], replace(entries[0], rank=9)], "t", {})


def test_script_is_one_that_parses(entries, tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed: nothing else here parses JavaScript")
    source = write_gallery(tmp_path / "g.html", entries[:1], "t", {}).read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", source, re.S)
    (tmp_path / "s.js").write_text(script, encoding="utf-8")
    done = subprocess.run([node, "--check", tmp_path / "s.js"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def points(path: str) -> list[list[tuple[int, int]]]:
    """Read an SVG path back, one list of corners a part."""
    parts = []
    for part in re.findall(r"M(-?\d+ -?\d+)([^M]*)", path):
        x, y = map(int, part[0].split())
        corners = [(x, y)]
        steps = list(map(int, re.findall(r"-?\d+", part[1])))
        for dx, dy in zip(steps[::2], steps[1::2], strict=False):
            x, y = x + dx, y + dy
            corners.append((x, y))
        parts.append(corners)
    return parts


def test_envelope_keeps_a_line_of_one_pixel():
    x, y = np.linspace(4000.0, 8000.0, 7781), np.zeros(7781)
    y[3000] = 1.0
    frame = svg.Frame(4000.0, 8000.0, 0.0, 1.0, 500)
    (corners,) = points(svg.envelope(frame, x, y, y, y == y))
    (at,) = [column for column, height in corners if height == 0]
    assert at == int((x[3000] - 4000) / 8)
    assert min(column for column, _ in corners) == 0
    assert max(column for column, _ in corners) == 500


def test_lines_follow_the_values_and_break_at_gaps():
    x = np.arange(1000.0)
    used = (x < 300) | (x >= 600)
    frame = svg.Frame(-0.5, 999.5, 0.0, 1000.0, 100)
    left, right = points(svg.line(frame, x, np.where(used, x, np.nan), used | (x == 450)))
    assert left[-1][0] == 29
    assert right[0][0] == 60
    for column, height in left + right:
        assert abs((svg.HEIGHT - height) / svg.HEIGHT * 1000 - (10 * column + 4.5)) <= 2.5
    (flat,) = points(svg.line(frame, x, np.full(1000, 100.0), used | ~used, significance=True))
    assert {height for _, height in flat} == {round(svg.HEIGHT * (1 - 100 * np.sqrt(10) / 1000))}
    assert svg.line(frame, x + 5000, x, used) == ""


def test_stripes_cover_exactly_the_masked_pixels():
    x, marked = np.arange(100.0), np.zeros(100, bool)
    marked[[10, 11, 50]] = True
    frame = svg.Frame(-0.5, 99.5, 0.0, 1.0, 400)  # pixels wider than columns
    stripes = re.findall(r"M(\d+) 0h(\d+)", svg.shade(frame, x, marked))
    ends = [(int(a), int(a) + int(b)) for a, b in stripes]
    for (start, end), (left, right) in zip(ends, [(40, 48), (200, 204)], strict=True):
        assert abs(start - left) <= 1
        assert abs(end - right) <= 1


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (3210, 8730, [4000, 5000, 6000, 7000, 8000]),
     (-6, 6, [-6, -4, -2, 0, 2, 4, 6])],
)  # fmt: skip
def test_ticks_are_round_and_inside(low, high, expected):
    assert svg.ticks(low, high) == expected
