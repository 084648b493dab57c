"""Nearest latents against brute force, before and after saving, and with the query indexed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skyray.analysis.similarity import NearestLatents


def make(rows: int, seed: int = 0, latents: int = 6):
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(rows, latents)) * rng.uniform(0.01, 50, latents) + 7
    return latent.astype(np.float32), np.array([f"39{i:012d}" for i in range(rows)])


def brute_force(latent, queries, k):
    scale = latent.std(axis=0, dtype=np.float64)
    apart = (queries[:, None].astype(np.float64) - latent) / scale
    distance = np.sqrt((apart**2).sum(axis=-1))
    order = np.argsort(distance, axis=1)[:, :k]
    return order, np.take_along_axis(distance, order, axis=1)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.integers(1, 12), st.integers(1, 7))
def test_neighbours_are_those_of_brute_force(seed, rows, k, latents):
    latent, ids = make(rows + 1, seed, latents)
    queries = make(5, seed, latents)[0] * 1.01
    found_ids, found = NearestLatents.build(latent, ids).query(queries, k)
    order, distance = brute_force(latent, queries, k)
    assert found.shape == found_ids.shape == (5, min(k, rows + 1))
    np.testing.assert_allclose(found, distance, rtol=1e-4, atol=1e-4)
    gaps = np.diff(distance, axis=1).min(axis=1, initial=1) > 1e-3  # rounding may swap ties
    if k <= rows:
        np.testing.assert_array_equal(found_ids[gaps], ids[order][gaps])


def test_query_is_not_its_own_neighbour():
    latent, ids = make(400)
    index = NearestLatents.build(latent, ids)
    plain, zero = index.query(latent[:50], k=1)
    np.testing.assert_array_equal(plain[:, 0], ids[:50])
    assert zero.max() < 1e-6
    others, distance = index.query(latent[:50], k=5, exclude_self=True)
    assert others.shape == (50, 5)
    assert not (others == ids[:50, None]).any()
    assert distance.min() > 1e-3
    expected, _ = index.query(latent[:50], k=6)
    np.testing.assert_array_equal(others, expected[:, 1:])
    away = latent[:3] + 0.5 * latent.std(axis=0)  # not indexed: nothing is taken away
    np.testing.assert_array_equal(
        index.query(away, 4, exclude_self=True)[0], index.query(away, 4)[0]
    )


def test_among_duplicates_the_id_decides():
    latent, ids = make(100)
    latent[1] = latent[0]
    index = NearestLatents.build(latent, ids)
    for own, twin in ((0, 1), (1, 0)):
        found, distance = index.query(latent[own], 3, exclude_self=True, own_ids=[ids[own]])
        assert found[0] == ids[twin]
        assert distance[0] < 1e-6
        assert ids[own] not in found
    assert (index.query(latent[0], 3, exclude_self=True)[1] < 1e-6).sum() == 1


def test_one_query_gives_one_row_and_small_indices_what_they_have():
    latent, ids = make(4)
    found, distance = NearestLatents.build(latent, ids).query(latent[2], k=10)
    assert found.shape == distance.shape == (4,)
    assert found[0] == ids[2]
    assert (np.diff(distance) >= 0).all()
    found, _ = NearestLatents.build(latent, ids).query(latent[2], k=10, exclude_self=True)
    assert sorted(found) == sorted(np.delete(ids, 2))


@pytest.mark.parametrize("kind", ["text", "integers"])
def test_saved_and_loaded_gives_the_same(tmp_path, kind):
    latent, ids = make(1000, seed=3)
    latent[5] = np.nan
    ids = ids.astype(np.int64) if kind == "integers" else ids
    index = NearestLatents.build(latent, ids)
    again = NearestLatents.load(index.save(tmp_path / "index"))
    assert len(again) == len(index) == 999
    assert again.dropped == index.dropped == 1
    queries = make(40, seed=4)[0]
    for one, two in zip(index.query(queries, 7), again.query(queries, 7), strict=True):
        np.testing.assert_array_equal(one, two)
    assert isinstance(again.query(queries[0], 1)[0][0], int if kind == "integers" else str)
    assert {f.name for f in (tmp_path / "index").iterdir()} == {
        "latents.npy", "ids.arrow", "index.json",
    }  # fmt: skip
    assert np.load(tmp_path / "index" / "latents.npy").dtype == np.float32
    again.save(tmp_path / "index")  # over the files it has mapped
    third = NearestLatents.load(tmp_path / "index")
    for one in (again, third):
        np.testing.assert_array_equal(one.query(queries, 7)[0], index.query(queries, 7)[0])


def test_every_latent_counts_alike_and_constants_not_at_all():
    latent = np.array([[0, 0, 5.0], [1e3, 0, 5], [0, 1e-3, 5], [1e3, 1e-3, 5]])
    index = NearestLatents.build(latent, list("abcd"))
    _, distance = index.query([0, 0, 5.0], 4)
    np.testing.assert_allclose(distance, [0, 2, 2, np.sqrt(8)], rtol=1e-6)


def test_incomplete_or_foreign_folders_are_refused(tmp_path):
    latent, ids = make(20)
    with pytest.raises(FileNotFoundError, match="index"):
        NearestLatents.load(tmp_path)
    folder = NearestLatents.build(latent, ids).save(tmp_path / "a")
    np.save(folder / "latents.npy", latent[:10])
    with pytest.raises(ValueError, match="expected 20 rows"):
        NearestLatents.load(folder)
    about = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**about, "format": 99}))
    with pytest.raises(ValueError, match="99"):
        NearestLatents.load(folder)


def test_refusals():
    latent, ids = make(20)
    with pytest.raises(ValueError, match="N ids"):
        NearestLatents.build(latent, ids[:19])
    with pytest.raises(ValueError, match="none in 20 rows"):
        NearestLatents.build(np.full_like(latent, np.nan), ids)
    index = NearestLatents.build(latent, ids)
    with pytest.raises(ValueError, match="1 bad rows"):
        index.query(np.where(np.arange(20)[:, None] == 3, np.nan, latent))
    with pytest.raises(ValueError, match=r"\[Q, 6\]"):
        index.query(latent[:, :5])
    with pytest.raises(ValueError, match="k ≥ 1"):
        index.query(latent, k=0)
