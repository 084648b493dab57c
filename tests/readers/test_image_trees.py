"""Trees of image folders: names, classes, label tables."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from skyray.cards import Card
from skyray.data.sources import FileSource, Unclaimed
from skyray.records import InvalidRecord

RNG = np.random.default_rng(9)


def encoded(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def reasons(records: list) -> list[str]:
    return [r.reason if isinstance(r, InvalidRecord) else "" for r in records]


def tree(folder: Path) -> Path:
    """A tree of splits and classes whose files are numbered anew in each; two hold one picture."""
    for split in ("train", "val"):
        for kind in ("spiral", "elliptical"):
            (folder / split / kind).mkdir(parents=True)
            for number in (1, 2):
                pixels = RNG.integers(0, 255, (16, 16, 3), dtype=np.uint8)
                (folder / split / kind / f"{number}.PNG").write_bytes(encoded(pixels))
    (folder / "val" / "spiral" / "1.PNG").write_bytes(
        (folder / "train" / "spiral" / "1.PNG").read_bytes()
    )
    return folder


def card(**more) -> Card:
    return Card(
        name="tree", title="t", record="cutout", reader="image_files",
        bands=["red", "green", "blue"],
        image_size=16, classes=["elliptical", "spiral"], label_from="folder", citation="none",
        licence="none", **more,
    )  # fmt: skip


def records_of(card: Card, *sources: Path) -> list:
    source = FileSource(card, sources)
    starts = source.starts()
    units = [u for start in starts for u in source.units(start) if not isinstance(u, Unclaimed)]
    return [record for unit in units for record in source.read(unit)]


def test_objects_of_a_tree_are_named_by_their_folders(tmp_path):
    folder = tree(tmp_path / "images")
    records = records_of(card(), folder)
    assert sorted(r.object_id for r in records) == sorted(
        f"{split}/{kind}/{n}" for split in ("train", "val") for kind in ("spiral", "elliptical")
        for n in (1, 2)
    )  # fmt: skip
    assert len({r.observation_id for r in records}) == 8
    labels = [card().label_of(r.fields()) for r in records]
    assert labels.count("spiral") == labels.count("elliptical") == 4
    assert all(label == r.object_id.split("/")[1] for label, r in zip(labels, records, strict=True))
    cut = card(cuts=[{"field": "folders", "op": "startswith", "value": "train/"}])
    kept = [r for r in records if cut.cuts[0].holds(r.fields())]
    assert len(kept) == 4


def test_files_given_one_by_one_are_named_below_what_they_share(tmp_path):
    folder = tree(tmp_path / "images")
    given = [*folder.glob("train/*/1.PNG")]
    assert {r.object_id for r in records_of(card(), *given)} == {"spiral/1", "elliptical/1"}
    assert [r.object_id for r in records_of(card(), given[0])] == ["1"]


def test_label_table_knows_folders(tmp_path):
    folder = tree(tmp_path / "images")
    (folder / "labels.csv").write_text("name,z\nspiral/1.png,0.5\nelliptical/1,0.25\n")
    options = {"table": "../../labels.csv", "fields": {"redshift": "z"}}
    found = {r.object_id: r for r in records_of(card(reader_options=options), folder / "train")}
    assert found["spiral/1"].redshift == 0.5
    assert found["elliptical/1"].redshift == 0.25
    (folder / "labels.csv").write_text("name,z\n1.png,0.5\n1.png,0.25\n")
    refused = records_of(card(reader_options=options), folder / "train")
    assert set(reasons(refused)) == {"label_row_ambiguous", "label_row_missing"}
