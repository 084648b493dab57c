"""No two rows within the radius are in two splits, whoever ingests what, when and beside whom."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.test_ingest import CARD as SDSS_LIKE
from tests.data.test_settle import _write
from tests.data.test_sky_groups import clumps, pairs
from tests.processes import together

from skyray.data.dataset import RECORDS, Dataset
from skyray.data.outcomes import Job
from skyray.data.publish import publish
from skyray.data.rows import split_of
from skyray.data.settle import settle
from skyray.data.sky_keys import BETWEEN_SPLITS, write_keys
from skyray.data.sources import Unit
from skyray.data.tables import open_table
from skyray.records import Spectrum
from skyray.runtime import places

CARD = SDSS_LIKE.override(
    ["object_key.radius_arcsec=2.0", "grid.size=120", "min_good_pixels=10", "cuts=[]"]
)
_WAVELENGTH = CARD.grid.grid().wavelength()
ARCSEC = 1 / 3600


class Positions:
    """A source of spectra at given positions; a unit is one of them."""

    def __init__(self, ra: Sequence[float], dec: Sequence[float], chosen: Sequence[int]):
        self.ra, self.dec, self.chosen = ra, dec, chosen

    def starts(self) -> list[str]:
        return ["positions"]

    def only(self, files: Sequence[str]) -> Positions:
        return Positions(self.ra, self.dec, [n for n in self.chosen if f"p{n}" in files])

    def units(self, start: str) -> Iterator[Unit]:
        for number in self.chosen:
            yield Unit(f"p{number}", 0, "", 1)

    def read(self, unit: Unit) -> Iterator[Spectrum]:
        number = int(unit.uri[1:])
        flux = np.full(120, 1.0 + number, np.float32)
        yield Spectrum(
            object_id=f"o{number}", wavelength=_WAVELENGTH, flux=flux, ivar=np.ones_like(flux),
            mask=np.zeros(120, bool), ra=self.ra[number], dec=self.dec[number], source=unit.uri,
        )  # fmt: skip


def add(out: str | Path, ra, dec, chosen) -> Dataset:
    """Write these of all positions and publish."""
    job = Job(CARD, Positions(ra, dec, chosen), str(out), True)
    _write(job)
    return publish(job)


def keys(dataset: Dataset) -> dict[int, tuple[str, str]]:
    rows = dataset.to_table(["object_id", "object_key", "split"]).to_pylist()
    return {int(r["object_id"][1:]): (r["object_key"], r["split"]) for r in rows}


def check(dataset: Dataset, ra, dec) -> dict[int, tuple[str, str]]:
    """Check that no pair is in two splits, that nothing is lost; return the keys."""
    found = keys(dataset)
    there = sorted(found)
    for one, two in zip(*pairs(ra[there], dec[there]), strict=True):
        assert found[there[one]][1] == found[there[two]][1]
    assert all(split == split_of(key, CARD.split) for key, split in found.values())
    manifest = dataset.manifest
    assert manifest.rows_read == manifest.rows_written + manifest.rows_quarantined
    assert set(manifest.quarantine_reasons) <= {BETWEEN_SPLITS}
    return found


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.integers(1, 4))
def test_appends_never_move_a_row_nor_tear_a_pair(seed, count, appends):
    ra, dec = clumps(seed, count)
    order = np.random.default_rng(seed).permutation(count)
    before: dict[int, tuple[str, str]] = {}
    with TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        for part in np.array_split(order, appends):
            if len(part):
                after = check(add(out, ra, dec, part.tolist()), ra, dec)
                assert {number: after[number] for number in before} == before
                before = after
        assert Dataset.open(out).manifest.rows_read == count
        whole = add(Path(folder) / "whole", ra, dec, range(count))
        assert whole.manifest.rows_quarantined == 0
        if not Dataset.open(out).manifest.rows_quarantined:
            assert Dataset.open(out).manifest.fingerprint == whole.manifest.fingerprint


def test_a_pair_at_a_cell_edge_is_one_object(tmp_path):
    ra = np.array([213.350505, 213.350485, 213.350495, 0.2 * ARCSEC, 360 - 0.2 * ARCSEC, 10, 190])
    dec = np.array([53.090825, 53.090825, 53.0905, 0, 0, 90 - 0.4 * ARCSEC, 90 - 0.4 * ARCSEC])
    found = keys(add(tmp_path / "out", ra, dec, range(7)))
    assert len({found[n] for n in (0, 1, 2)}) == 1
    assert found[3] == found[4]
    assert found[5] == found[6]
    assert len(set(found.values())) == 3


def _apart(far: float) -> tuple[np.ndarray, np.ndarray]:
    """Return positions 0 and 1 of two splits, `far` arcsec apart, and 2 between them."""
    for start in range(1000):
        ra = np.array([start, start + far * ARCSEC, start + far / 2 * ARCSEC]) / 10 + 0.01
        ra[1:] = ra[0] + np.array([far, far / 2]) * ARCSEC
        one, two = (split_of(CARD.object_key.at(r, 0.0), CARD.split) for r in ra[:2])
        if one != two:
            return ra, np.zeros(3)
    raise AssertionError("no such pair")


def test_what_lies_between_two_splits_is_refused_by_name(tmp_path):
    ra, dec = _apart(3.0)
    first = keys(add(tmp_path / "out", ra, dec, [0, 1]))
    grown = add(tmp_path / "out", ra, dec, [2])
    assert keys(grown) == first
    refused = grown.quarantine().to_pylist()
    assert [(row["object_id"], row["reason"]) for row in refused] == [("o2", BETWEEN_SPLITS)]
    assert first[0][0] in refused[0]["detail"]
    assert first[1][0] in refused[0]["detail"]
    again = add(tmp_path / "out", ra, dec, [2])  # as an ingest that was killed does
    assert (again.manifest.rows_read, keys(again)) == (3, first)
    at_once = add(tmp_path / "at_once", ra, dec, range(3))
    assert len(set(keys(at_once).values())) == 1


def test_the_fingerprint_is_of_what_was_seen_and_the_splits_have_their_own(tmp_path):
    ra, dec = _apart(1.5)
    grown = [tmp_path / name for name in ("a", "b")]
    for out, order in zip(grown, ([0, 1], [1, 0]), strict=True):
        for number in order:
            add(out, ra, dec, [number])
    a, b = (Dataset.open(out).manifest for out in grown)
    assert a.fingerprint == b.fingerprint
    assert a.splits_digest != b.splits_digest


def test_keys_are_a_column_of_their_own_and_rows_keep_their_addresses(tmp_path):
    ra, dec = np.array([10.0, 10.0 + 1.5 * ARCSEC, 50.0]), np.zeros(3)
    dataset = add(tmp_path / "out", ra, dec, range(3))
    files = dataset.table.get_fragments()[0].metadata.files
    assert len(files) == 2  # pixels as they were written, and the keys
    assert files[1].file_size_bytes < files[0].file_size_bytes
    table = dataset.table.to_table(columns=["object_id", "flux"], with_row_address=True)
    assert table["_rowaddr"].to_pylist() == [0, 1, 2]
    found = dataset.take([2, 0], ["object_key"])["object_key"].to_pylist()
    assert found == ["50.0000+0.0000", "10.0000+0.0000"]


def test_who_comes_too_late_with_former_keys_is_corrected(tmp_path):
    ra, dec = np.array([10.0, 10.0 + 1.5 * ARCSEC, 50.0]), np.zeros(3)
    first = add(tmp_path / "out", ra, dec, range(2))
    place = places.join(first.uri, RECORDS)
    write_keys(CARD, place, {0: "elsewhere", 1: "elsewhere"})  # of published rows
    assert keys(Dataset.open(first.uri)) == keys(first)  # a version is a snapshot
    grown = add(tmp_path / "out", ra, dec, [2])
    assert {n: k for n, k in keys(grown).items() if n < 2} == keys(first)


def test_a_key_that_has_no_neighbour_any_more_is_of_its_own_position_again(tmp_path):
    ra, dec = np.array([10.0, 10.0 + 1.5 * ARCSEC]), np.zeros(2)
    job = Job(CARD, Positions(ra, dec, [0, 1]), str(tmp_path / "out"), True)
    _write(job)
    tables, _ = settle(job)
    open_table(tables.records_place).delete("object_id = 'o0'")
    assert keys(publish(job))[1][0] == CARD.object_key.at(ra[1], 0.0) != "10.0000+0.0000"


def _add_third(out: str, number: int) -> int:
    ra, dec = clumps(int(Path(out).name), 36)
    return add(out, ra, dec, range(36)[number::3]).version


@pytest.mark.slow
def test_three_that_publish_at_once_tear_no_pair(tmp_path):
    outs = [str(tmp_path / str(seed)) for seed in range(3)]
    for out in together(_add_third, outs, 3) and outs:
        ra, dec = clumps(int(Path(out).name), 36)
        dataset = Dataset.open(out)
        before: dict[int, tuple[str, str]] = {}
        for manifest in dataset.versions():
            after = check(Dataset.open(out, manifest.version), ra, dec)
            assert {number: after[number] for number in before} == before
            before = after
        assert dataset.manifest.rows_read == 36
