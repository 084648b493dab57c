"""Nearest vectors from the table on disk are those of a search in memory."""

from __future__ import annotations

import numpy as np
import pytest

from skyray.families.base import OutputColumn
from skyray.inference.catalogue import Catalogue
from skyray.inference.catalogue_parts import part_uri, publish, write_part
from skyray.inference.nearest import NearestVectors

COLUMNS = [
    OutputColumn("object_id", "str", "", "object"),
    OutputColumn("observation_id", "str", "", "observation"),
    OutputColumn("in_domain", "bool", "", "ordinary"),
    *(OutputColumn(f"latent_{i}", "float32", "", "latent") for i in range(3)),
]
LATENTS = ["latent_0", "latent_1", "latent_2"]


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    found = np.random.default_rng(2).normal(size=(500, 3)).astype(np.float32)
    found = found * np.float32([1.0, 100.0, 1.0]) + np.float32([0.0, 5000.0, 0.0])
    found[7, 1] = np.nan
    return found


@pytest.fixture(scope="module")
def catalogue(ray_cluster, vectors, tmp_path_factory) -> Catalogue:
    uri, made = str(tmp_path_factory.mktemp("catalogue")), []
    for number, rows in enumerate(np.array_split(np.arange(len(vectors)), 3)):
        table = {
            "object_id": np.array([f"it's {row // 2}" for row in rows], object),
            "observation_id": np.array([f"o{row}" for row in rows], object),
            "in_domain": rows % 2 == 0,
            **{name: vectors[rows, i] for i, name in enumerate(LATENTS)},
        }
        count, widths = write_part(part_uri(uri, number), iter([table]), COLUMNS)
        told = {f"width/{name}": width for name, width in widths.items()}
        made.append({"part": number, "rows": count, **told})
    return publish(uri, COLUMNS, made)


@pytest.fixture(scope="module")
def index(catalogue, tmp_path_factory) -> NearestVectors:
    return NearestVectors.build(
        catalogue, LATENTS, str(tmp_path_factory.mktemp("index")), ["in_domain"]
    )


def distances(vectors: np.ndarray, vector: np.ndarray) -> np.ndarray:
    good = vectors[np.isfinite(vectors).all(axis=1)].astype(np.float64)
    return np.linalg.norm((vectors - vector) / good.std(axis=0), axis=1)


def test_moments_are_those_of_all_parts(index, vectors):
    good = vectors[np.isfinite(vectors).all(axis=1)].astype(np.float64)
    np.testing.assert_allclose(index.mean_S, good.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(index.scale_S, good.std(axis=0), rtol=1e-10)
    assert (index.rows, index.dropped) == (499, 1)


def test_neighbours_are_exact(index, vectors):
    for row in (0, 33, 499):
        found = index.query(vectors[row], 6)
        expected = distances(vectors, vectors[row])
        order = np.argsort(np.where(np.isnan(expected), np.inf, expected))[:6]
        assert found["observation_id"].to_pylist() == [f"o{at}" for at in order]
        np.testing.assert_allclose(found["distance"], expected[order], atol=1e-4)


def test_neighbours_may_have_to_be_ordinary(index, vectors):
    found = index.query(vectors[1], 5, only="in_domain AND observation_id != 'o1'")
    expected = distances(vectors, vectors[1])
    expected[1::2] = np.inf
    assert found["observation_id"].to_pylist() == [f"o{at}" for at in np.argsort(expected)[:5]]


def test_vectors_are_found_by_either_name(index, vectors):
    name, vector = index.vector("o42")
    assert name == "o42"
    np.testing.assert_allclose(vector, vectors[42], rtol=1e-5, atol=1e-5)
    assert index.vector("it's 21")[0] in ("o42", "o43")
    with pytest.raises(KeyError, match="not among the 499 indexed"):
        index.vector("o7")  # its vector is not finite


def test_what_does_not_fit_is_refused(index, catalogue, tmp_path):
    with pytest.raises(ValueError, match="expected 3 finite numbers"):
        index.query(np.array([1.0, np.nan, 0.0]))
    with pytest.raises(FileNotFoundError, match="no index of vectors"):
        NearestVectors.open(str(tmp_path))
