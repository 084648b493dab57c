"""The report page: complete, self-contained, and safe with any text."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure

from skyray.pages.page import readable
from skyray.pages.report import write_report


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that tags close in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def attributes(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def figure(tmp_path):
    path = tmp_path / "redshift_true_class.png"
    canvas = Figure(figsize=(1, 1))
    canvas.add_subplot().plot([0, 1], [0, 1])
    canvas.savefig(path)
    return path


def read(path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_page_holds_everything_and_loads_nothing(tmp_path, figure):
    path = write_report(
        tmp_path / "new" / "report", "redshift: demo", {"objects": 12345, "split": "test"},
        [figure], {"Scores": {"accuracy": 0.92436, "nothing": None},
                   "Classes": [{"class": "QSO", "rows": 5}, {"class": "STAR", "recall": 0.5}]},
        {"Metrics as JSON": "metrics.json"},
    )  # fmt: skip
    page = read(path)
    text = " ".join(page.text)
    for expected in ("redshift: demo", "12,345", "0.9244", "–", "QSO", "redshift true class"):
        assert expected in text
    assert page.attributes("a") == [{"href": "metrics.json"}]
    (image,) = page.attributes("img")
    kind, data = image["src"].split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == figure.read_bytes()
    source = path.read_text(encoding="utf-8")
    assert "<script" not in source
    assert not re.search(r"""(src|href)=["']?https?:""", source)
    assert "prefers-color-scheme: dark" in source


def test_text_cannot_break_the_page(tmp_path):
    evil = "<script>alert('x')</script>&\"quoted\""
    path = write_report(
        tmp_path, evil, {evil: evil}, [], {evil: [{evil: evil}]}, {evil: f'a"{evil}'}
    )
    page = read(path)
    assert page.attributes("script") == []
    assert evil in page.text
    assert page.attributes("a")[0]["href"] == f'a"{evil}'


def test_second_report_replaces_the_first(tmp_path):
    write_report(tmp_path, "one", {})
    path = write_report(tmp_path, "two", {})
    assert "two" in path.read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["index.html"]


def test_figures_must_exist_and_be_images(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        write_report(tmp_path, "t", {}, [tmp_path / "absent.png"])
    with pytest.raises(ValueError, match="expected PNG"):
        write_report(tmp_path, "t", {}, [tmp_path / "table.csv"])


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (float("nan"), "–"), (True, "yes"), (1234567, "1,234,567"), (0.123456, "0.1235"),
     (1.5e-7, "1.5e-07"), (54321.9, "54,322"), ([1, 2.5], "1, 2.5"), (-0.5, "−0.5"), ("x", "x")],
)  # fmt: skip
def test_values_as_a_person_reads_them(value, text):
    assert readable(value) == text
