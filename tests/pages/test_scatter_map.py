"""The scatter map: every object is in the page as given, and no text breaks it."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from skyray.pages.scatter_map import MAX_POINTS, Points, write_scatter_map

ROWS = 300
VOID = ("meta", "input")


class Page(HTMLParser):
    """Collects tags and scripts, and checks that tags close in order."""

    def __init__(self, source: str):
        super().__init__()
        self.open, self.tags, self.scripts, self.text = [], [], [], []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.scripts if self.open[-1:] == ["script"] else self.text).append(data)

    def data(self) -> dict:
        return json.loads(self.scripts[0])


def read(path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def decode(value: str, dtype: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(value), dtype)


@pytest.fixture
def given():
    rng = np.random.default_rng(0)
    place = rng.normal(size=(ROWS, 2))
    place[7] = np.nan
    score = rng.gamma(3, 2, ROWS)
    score[9] = np.nan
    columns = {
        "object_id": np.array([f"id-{i}" for i in range(ROWS)]), "neg_log_p": score,
        "label": rng.choice(["GALAXY", "GALAXY", "STAR"], ROWS), "real": np.arange(ROWS) < 3,
    }  # fmt: skip
    flux = rng.random((ROWS, 50))
    flux[4, :10] = np.nan
    flux[5], flux[6] = np.nan, 2.0
    near = np.tile(np.arange(5), (ROWS, 1)) + 5
    return place, columns, flux, near


def test_every_object_is_there_as_given(given, tmp_path):
    place, columns, flux, near = given
    points = Points({"UMAP": place}, columns, spectra=flux, neighbours=near, distances=near / 8)
    titles = {"neg_log_p": "−log p"}
    data = read(write_scatter_map(tmp_path / "new" / "m.html", points, "BGS", titles=titles)).data()
    kept = np.delete(np.arange(ROWS), 7)
    assert data["ids"] == [f"id-{i}" for i in kept]
    (only,) = data["maps"]
    assert (only["name"], only["dimensions"]) == ("UMAP", 2)
    shown = decode(only["place"], "<f4").reshape(-1, 2)
    np.testing.assert_array_equal(shown, place[kept].astype("f4"))
    score, label, real = data["columns"]
    assert score["title"] == "−log p"
    np.testing.assert_array_equal(
        decode(score["values"], "<f4"), columns["neg_log_p"][kept].astype("f4")
    )
    assert np.nanmin(columns["neg_log_p"]) < score["low"] < score["high"]
    assert label["kinds"] == ["GALAXY", "STAR"], "a class has its colour in every map"
    shown = np.array(label["kinds"])[decode(label["values"], "<u2")]
    np.testing.assert_array_equal(shown, columns["label"][kept])
    assert real["kinds"] == ["False", "True"]
    level = decode(data["flux"], "u1").reshape(-1, 50)
    assert (level[4, :10] == 255).all()
    assert (level[5] == 255).all()
    assert (level[6] == 0).all(), "a flat spectrum is a line"
    row = flux[0]
    expected = (row - row.min()) / np.ptp(row)
    np.testing.assert_allclose(level[0] / 254, expected, atol=0.003)


def test_neighbours_keep_their_objects_when_rows_are_left_out(given, tmp_path):
    place, columns, _, near = given
    near[0, 0] = -1
    points = Points({"UMAP": place}, columns, neighbours=near, distances=near / 8)
    data = read(write_scatter_map(tmp_path / "m.html", points, "t")).data()
    rows = decode(data["neighbours"], "<i4").reshape(-1, 5)
    assert rows[0, 0] == -1
    assert [data["ids"][i] for i in rows[20, [0, 1, 3, 4]]] == ["id-5", "id-6", "id-8", "id-9"]
    assert rows[20, 2] == -1, "object 7 has no place on the map"
    np.testing.assert_allclose(decode(data["distances"], "<f4")[:5], near[0] / 8)


def test_nothing_is_loaded_and_text_cannot_break_the_page(given, tmp_path):
    place, columns, flux, _ = given
    evil = "</script><script>alert('x')</script>&\"<!--"
    columns = {**columns, "object_id": np.full(ROWS, evil), evil: np.full(ROWS, evil)}
    points = Points({evil: place, "other": place}, columns, spectra=flux)
    path = write_scatter_map(
        tmp_path / "m.html", points, evil, ringed_title=evil, note=evil, titles={"label": evil}
    )
    page, source = read(path), path.read_text(encoding="utf-8")
    assert [name for name, _ in page.tags].count("script") == 2
    data = page.data()
    assert set(data["ids"]) == {evil}
    assert data["columns"][-1]["kinds"] == [evil]
    assert evil in page.text
    assert not re.search(
        r"<(img|link|iframe|object|embed)\b|\bsrc=|@import|https?:|fetch\(", source
    )


def test_odd_columns(tmp_path):
    many = np.array([f"kind-{i // 2 if i > 150 else 0}" for i in range(ROWS)])
    columns = {"nothing": np.full(ROWS, np.nan), "many": many, "count": np.arange(ROWS)}
    points = Points({"": np.zeros((ROWS, 2))}, columns)
    page = read(write_scatter_map(tmp_path / "m.html", points, "t", color_by="many"))
    chosen = [attributes for name, attributes in page.tags if "selected" in attributes]
    assert chosen == [{"value": "1", "selected": None}]
    data = page.data()
    nothing, kinds, count = data["columns"]
    assert (nothing["low"], nothing["high"]) == (0.0, 1.0)
    assert len(kinds["kinds"]) == 40
    assert kinds["kinds"][0] == "kind-0"
    assert kinds["kinds"][-1] == "other"
    assert decode(kinds["values"], "<u2").max() == 39
    assert count["kinds"] is None
    assert data["ids"][5] == "5"
    nobody = Points({"": np.zeros((0, 2))}, {"a": np.zeros(0)})
    empty = read(write_scatter_map(tmp_path / "e.html", nobody, "t")).data()
    assert empty["ids"] == []


def test_pictures_rings_and_several_maps(given, tmp_path):
    place, columns, _, _ = given
    pictures = np.zeros((ROWS, 8, 24), np.uint8)
    pictures[60, :, 8:16] = 255
    ringed = np.arange(ROWS) % 100 == 8
    space = np.column_stack([place, place[:, 0]])
    points = Points({"a": place, "b": space}, columns, pictures=pictures, ringed=ringed)
    page = read(write_scatter_map(tmp_path / "m.html", points, "t", ringed_title="mistakes"))
    data = page.data()
    assert [one["dimensions"] for one in data["maps"]] == [2, 3]
    assert [data["ids"][i] for i in data["ringed"]] == ["id-8", "id-108", "id-208"]
    assert data["ringedTitle"] == "mistakes"
    assert (data["width"], data["height"]) == (24, 8)
    sheet = Image.open(io.BytesIO(base64.b64decode(data["sheet"].partition(",")[2])))
    at, wide = data["ids"].index("id-60"), data["sheetColumns"]
    left, top = 24 * (at % wide), 8 * (at // wide)
    tile = np.asarray(sheet)[top : top + 8, left : left + 24]
    assert tile[:, 10:14].mean() > 240
    assert tile[:, :5].max() < 30
    colour = Points({"a": place}, {}, pictures=np.full((ROWS, 4, 4, 3), [200, 0, 0], np.uint8))
    data = read(write_scatter_map(tmp_path / "c.html", colour, "t")).data()
    sheet = Image.open(io.BytesIO(base64.b64decode(data["sheet"].partition(",")[2])))
    np.testing.assert_allclose(np.asarray(sheet)[1, 1], [200, 0, 0], atol=8)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"places": {"a": np.zeros((ROWS, 4))}}, r"a: expected \[N, 2\] or \[N, 3\]"),
     ({"places": {}}, "found none"),
     ({"places": {"a": np.zeros((MAX_POINTS + 1, 2))}, "columns": {}}, "at most 20,000"),
     ({"columns": {"a": np.zeros(3)}}, "a: expected 300 rows"),
     ({"spectra": np.zeros((ROWS, 900))}, "spectra: expected"),
     ({"pictures": np.zeros((ROWS, 3, 8, 8), np.uint8)}, "pictures: expected"),
     ({"pictures": np.zeros((ROWS, 8, 8))}, "pictures: expected uint8"),
     ({"ringed": np.zeros(2, bool)}, "ringed: expected 300 rows"),
     ({"neighbours": np.full((ROWS, 2), ROWS)}, "rows below 300"),
     ({"neighbours": np.zeros((ROWS, 2))}, "expected int"),
     ({"neighbours": np.zeros((ROWS, 2), int), "distances": np.zeros((ROWS, 3))}, "the shape of")],
)  # fmt: skip
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Points(**{"places": {"a": np.zeros((ROWS, 2))}, "columns": {}} | change)


def test_script_is_one_that_parses(given, tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed: nothing else here parses JavaScript")
    points = Points({"UMAP": given[0]}, given[1], spectra=given[2])
    page = read(write_scatter_map(tmp_path / "m.html", points, "t"))
    (tmp_path / "s.js").write_text(page.scripts[1], encoding="utf-8")
    done = subprocess.run([node, "--check", tmp_path / "s.js"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_full_size_stays_small(tmp_path):
    rng = np.random.default_rng(1)
    rows = MAX_POINTS
    points = Points(
        {"UMAP": rng.normal(size=(rows, 2))}, {"z": rng.random(rows)},
        spectra=rng.random((rows, 100)), neighbours=rng.integers(0, rows, (rows, 5)),
    )  # fmt: skip
    path = write_scatter_map(tmp_path / "m.html", points, "t")
    assert path.stat().st_size < 5e6
