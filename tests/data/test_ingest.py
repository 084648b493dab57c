"""Ingest loses nothing, leaks nothing, does no work twice and survives being killed."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from skyray.cards import Card
from skyray.config import ConfigError
from skyray.data.dataset import Dataset
from skyray.data.ingest import ingest
from skyray.data.outcomes import row_digest
from skyray.data.rows import split_of
from skyray.records import SPLITS, tensor_values

PIXELS = 300
CARD = Card(
    name="tiny_sdss",
    title="Tiny SDSS",
    record="spectrum",
    reader="sdss_spec",
    grid={"kind": "log10", "start": 3.6, "step": 1e-4, "size": PIXELS},
    classes=["STAR", "GALAXY", "QSO"],
    labels=[{"label": c, "where": [{"field": "spectype", "value": c}]} for c in ("STAR", "GALAXY")],
    cuts=[{"field": "zwarning", "value": 0}],
    object_key={"by": "sky"},
    citation="none",
    licence="none",
)


def write_spec(folder: Path, fiber: int, *, seed: int | None = None, zwarning: int = 0,
               plate: int = 1, ra: float | None = None, dec: float = 10.0) -> Path:  # fmt: skip
    """Write a small file in SDSS's format."""
    random = np.random.default_rng(fiber if seed is None else seed)
    coadd = {
        "flux": random.normal(5, 1, PIXELS).astype("f4"),
        "loglam": (3.6 + 1e-4 * np.arange(PIXELS)).astype("f4"),
        "ivar": np.ones(PIXELS, dtype="f4"),
        "and_mask": np.zeros(PIXELS, dtype="i4"),
    }
    kind = ("STAR", "GALAXY", "QSO")[fiber % 3]
    row = {"CLASS": [kind], "SUBCLASS": [""], "Z": np.array([0.1], "f4"),
           "Z_ERR": np.array([1e-4], "f4"), "ZWARNING": np.array([zwarning], "i4")}  # fmt: skip
    primary = fits.PrimaryHDU()
    primary.header.update(PLATEID=plate, MJD=50000, FIBERID=fiber)
    primary.header.update(PLUG_RA=fiber / 10 if ra is None else ra, PLUG_DEC=dec)
    path = folder / f"spec-{plate:04d}-50000-{fiber:04d}.fits"
    folder.mkdir(parents=True, exist_ok=True)
    hdus = [primary, fits.table_to_hdu(Table(coadd)), fits.table_to_hdu(Table(row))]
    hdus[1].name, hdus[2].name = "COADD", "SPECOBJ"
    fits.HDUList(hdus).writeto(path, overwrite=True)
    return path


@pytest.fixture(scope="module")
def survey(tmp_path_factory) -> Path:
    """Forty good files, two the cut refuses, three damaged ones and one of another kind."""
    folder = tmp_path_factory.mktemp("survey")
    for fiber in range(1, 41):
        write_spec(folder / f"{fiber % 4}", fiber)
    for fiber in (50, 51):
        write_spec(folder, fiber, zwarning=4)
    damage(folder)
    (folder / "README.txt").write_text("not a spectrum")
    return folder


def damage(folder: Path) -> None:
    """Add a truncated file, an empty one and one that is no FITS file."""
    whole = write_spec(folder, 60).read_bytes()
    (folder / "spec-0001-50000-0060.fits").write_bytes(whole[: len(whole) // 2])
    (folder / "spec-0001-50000-0061.fits").write_bytes(b"")
    (folder / "spec-0001-50000-0062.fits").write_bytes(b"PK\x03\x04" + bytes(4000))


@pytest.fixture(scope="module")
def dataset(survey, tmp_path_factory, ray_cluster) -> Dataset:
    return ingest(CARD, [survey], tmp_path_factory.mktemp("out") / "data", progress=False)


def splits(dataset: Dataset) -> dict[str, str]:
    table = dataset.to_table(["object_key", "split"]).to_pydict()
    return dict(zip(table["object_key"], table["split"], strict=True))


def test_every_row_is_written_or_quarantined(dataset):
    manifest = dataset.manifest
    assert manifest.rows_read == 45
    assert manifest.rows_written == dataset.to_table(["object_id"]).num_rows == 40
    assert manifest.rows_quarantined == dataset.quarantine().num_rows == 5
    assert manifest.files_unclaimed == 1


def test_the_quarantine_says_which_file_and_why(dataset):
    rows = {Path(row["source"]).name[-9:-5]: row for row in dataset.quarantine().to_pylist()}
    assert sorted(rows) == ["0050", "0051", "0060", "0061", "0062"]
    assert rows["0050"]["reason"] == "cut:zwarning"
    assert rows["0050"]["object_id"] == "0001-50000-0050"
    assert len({rows[name]["reason"] for name in ("0060", "0061", "0062")}) == 3


def test_pixels_and_labels_are_those_of_the_files(dataset, survey):
    table = dataset.to_table()
    names = table["object_id"].to_pylist()
    row = names.index("0001-50000-0007")
    with fits.open(survey / "3" / "spec-0001-50000-0007.fits") as hdus:
        expected = hdus[1].data["flux"]
    np.testing.assert_array_equal(tensor_values(table["flux"])[row], expected)
    assert table["label"][row].as_py() == "GALAXY"
    assert table["label"][names.index("0001-50000-0008")].as_py() == ""  # no rule for QSO


def test_counts_are_those_of_the_rows(dataset):
    table = dataset.to_table(["split", "label"])
    found = Counter(zip(table["split"].to_pylist(), table["label"].to_pylist(), strict=True))
    stated = {(s, c): n for s, counts in dataset.manifest.counts.items() for c, n in counts.items()}
    assert found == stated


def test_the_same_ingest_again_does_nothing(dataset, survey):
    before = sorted(Path(dataset.uri).rglob("*"))
    again = ingest(CARD, [survey], dataset.uri, progress=False)
    assert again.manifest == dataset.manifest
    assert again.version == 1
    assert sorted(Path(dataset.uri).rglob("*")) == before


def test_fingerprint_does_not_depend_on_parts_or_order(dataset, survey, tmp_path):
    folders = [survey / "2", survey / "0", survey]
    other = ingest(CARD, folders, tmp_path / "o", progress=False, rows_per_file=3)
    assert max(part.count_rows() for part in other.table.get_fragments()) == 3
    assert min(part.count_rows() for part in dataset.table.get_fragments()) > 3
    assert other.manifest.fingerprint == dataset.manifest.fingerprint
    names = [d.take(d.rows(), ["observation_id"])["observation_id"] for d in (other, dataset)]
    assert names[0].to_pylist() == names[1].to_pylist() == sorted(names[0].to_pylist())


def test_appending_keeps_splits_and_ends_as_one_ingest(dataset, survey, tmp_path):
    first = ingest(CARD, [survey / "0", survey / "1"], tmp_path / "grown", progress=False)
    before = splits(first)
    grown = ingest(CARD, [survey], tmp_path / "grown", progress=False)
    assert (first.version, grown.version) == (1, 2)
    assert splits(first) == splits(Dataset.open(first.uri, version=1)) == before
    assert [manifest.rows_written for manifest in grown.versions()] == [len(before), 40]
    after = splits(grown)
    assert {key: after[key] for key in before} == before
    assert grown.manifest.fingerprint == dataset.manifest.fingerprint


def test_a_changed_file_is_read_again(tmp_path, ray_cluster):
    files = [write_spec(tmp_path / "in", fiber) for fiber in (1, 2, 3)]
    first = ingest(CARD, [tmp_path / "in"], tmp_path / "out", progress=False)
    write_spec(tmp_path / "in", 2, seed=99)
    changed = ingest(CARD, [files[1]], tmp_path / "out", progress=False)
    assert changed.manifest.fingerprint != first.manifest.fingerprint
    assert changed.manifest.rows_written == 3
    fresh = ingest(CARD, [tmp_path / "in"], tmp_path / "fresh", progress=False)
    assert fresh.manifest.fingerprint == changed.manifest.fingerprint


def test_one_object_twice_is_kept_once(tmp_path, ray_cluster):
    write_spec(tmp_path / "a", 1)
    write_spec(tmp_path / "a", 2)
    write_spec(tmp_path / "b", 1, seed=5)
    both = ingest(CARD, [tmp_path], tmp_path / "o1", progress=False, rows_per_file=1)
    assert both.manifest.quarantine_reasons == {"conflicting_observation": 1}
    assert both.manifest.rows_written == both.to_table(["object_id"]).num_rows == 2
    refused = both.quarantine().to_pylist()[0]
    assert "/b/" in refused["source"]
    assert "/a/" in refused["detail"]
    alone = ingest(CARD, [tmp_path / "a"], tmp_path / "o2", progress=False)
    assert alone.manifest.fingerprint == both.manifest.fingerprint


def test_a_published_row_stays_when_its_duplicate_comes(tmp_path, ray_cluster):
    write_spec(tmp_path / "b", 1)
    first = ingest(CARD, [tmp_path / "b"], tmp_path / "out", progress=False)
    write_spec(tmp_path / "a", 1, seed=5)
    write_spec(tmp_path / "a", 2)
    second = ingest(CARD, [tmp_path / "a"], tmp_path / "out", progress=False)
    kept = second.to_table(["object_id", "source"]).to_pylist()
    assert {row["object_id"]: "/b/" in row["source"] for row in kept} == {
        "0001-50000-0001": True,
        "0001-50000-0002": False,
    }
    assert first.manifest.rows_written == 1
    assert ingest(CARD, [tmp_path / "a", tmp_path / "b"], tmp_path / "out",
                  progress=False).manifest == second.manifest  # fmt: skip


def test_two_spectra_of_one_object_share_a_split(tmp_path, ray_cluster):
    for fiber in range(1, 31):
        write_spec(tmp_path / "in", fiber, plate=1, ra=fiber / 10)
        write_spec(tmp_path / "in", fiber, plate=2, ra=fiber / 10 + 1e-4, seed=fiber + 100)
    table = ingest(CARD, [tmp_path / "in"], tmp_path / "out", progress=False).to_table(
        ["object_key", "split"]
    )
    pairs = set(zip(table["object_key"].to_pylist(), table["split"].to_pylist(), strict=True))
    assert len(pairs) == 30
    assert len({split for _, split in pairs}) > 1


def test_another_card_is_refused(dataset, survey):
    other = CARD.override(["min_good_pixels=50"])
    with pytest.raises(ConfigError, match="another dataset"):
        ingest(other, [survey], dataset.uri, progress=False)


def test_nothing_to_read_is_an_error(tmp_path, ray_cluster):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match="1 files of other names"):
        ingest(CARD, [tmp_path], tmp_path / "out", progress=False)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ingest(CARD, [tmp_path / "nowhere"], tmp_path / "out", progress=False)


def test_a_named_file_is_taken_whatever_its_name(tmp_path, ray_cluster):
    odd = write_spec(tmp_path, 4).rename(tmp_path / "my_star.fits")
    assert ingest(CARD, [odd], tmp_path / "out", progress=False).manifest.rows_written == 1


def test_splits_follow_their_fractions():
    fractions = {"train": 0.7, "validation": 0.15, "test": 0.15}
    counts = Counter(split_of(f"object {i}", fractions) for i in range(20_000))
    for split in SPLITS:
        assert counts[split] / 20_000 == pytest.approx(fractions[split], abs=0.01)


def test_split_of_known_keys_never_changes():
    fractions = {"train": 0.7, "validation": 0.15, "test": 0.15}
    # sha256("a") = ca97…, sha256("b") = 3e23…, sha256("2") = d473…: .791, .243, .830 of the range
    assert [split_of(key, fractions) for key in ("a", "b", "2")] == [
        "validation", "train", "validation",
    ]  # fmt: skip


def test_a_copy_is_a_duplicate_and_named_so(tmp_path, ray_cluster):
    file = write_spec(tmp_path / "a", 1)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / file.name).write_bytes(file.read_bytes())
    both = ingest(CARD, [tmp_path], tmp_path / "out", progress=False)
    assert both.manifest.quarantine_reasons == {"duplicate_observation": 1}
    assert both.manifest.rows_read == 2


def test_a_duplicate_is_taken_up_when_the_one_that_was_kept_changes(tmp_path, ray_cluster):
    kept = write_spec(tmp_path / "a", 1)
    write_spec(tmp_path / "b", 1, seed=5)
    first = ingest(CARD, [tmp_path], tmp_path / "out", progress=False)
    assert first.manifest.quarantine_reasons == {"conflicting_observation": 1}
    kept.write_bytes(b"no longer a spectrum")
    second = ingest(CARD, [tmp_path / "a"], tmp_path / "out", progress=False)
    row = second.to_table(["source"]).to_pylist()
    assert len(row) == 1
    assert "/b/" in row[0]["source"]
    assert "conflicting_observation" not in second.manifest.quarantine_reasons
    assert second.manifest.rows_quarantined == 1
    fresh = ingest(CARD, [tmp_path], tmp_path / "fresh", progress=False)
    assert fresh.manifest.fingerprint == second.manifest.fingerprint


def test_the_digest_of_a_row_sees_every_value_but_not_where_the_file_lies():
    row = {"label": "STAR", "redshift": 0.1, "source": "a/b.fits", "flux": np.arange(4, dtype="f4")}
    digest = row_digest(row)
    assert row_digest({**row, "source": "c.fits"}) == digest
    assert row_digest({**row, "redshift": np.float64(0.1)}) == digest
    assert row_digest({**row, "redshift": 0.2}) != digest
    assert row_digest({**row, "flux": row["flux"] + np.float32(1e-6)}) != digest


def test_the_fingerprint_is_the_sum_of_the_rows_digests(dataset):
    digests = dataset.table.to_table(columns=["digest"])["digest"].to_pylist()
    total = sum(int.from_bytes(digest, "big") for digest in digests) % (1 << 256)
    text = f"{dataset.manifest.schema_version}:{CARD.digest()}:{total:064x}"
    assert dataset.manifest.fingerprint == hashlib.sha256(text.encode()).hexdigest()
