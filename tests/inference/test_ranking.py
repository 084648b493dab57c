"""Ranks of a distributed sort are those of a sort in memory, ties and unknown values included."""

import numpy as np

from skyray.inference.ranking import ranks
from skyray.inference.results import Results


def test_ranks_of_many_pieces(ray_cluster, tmp_path):
    random = np.random.default_rng(1)
    rows, size = 997, 100
    first = random.integers(0, 30, rows).astype(np.float32)  # many ties
    second = random.normal(size=rows).astype(np.float32)
    first[random.random(rows) < 0.1] = np.nan
    second[random.random(rows) < 0.1] = np.nan
    results = Results.claim(str(tmp_path), {}, rows, size)
    for number in range(results.count):
        at = slice(number * size, (number + 1) * size)
        results.write(number, {"first": first[at], "second": second[at]})
    found = ranks(results, ["first", "second"]).to_pandas().sort_values("row")
    keys = [np.where(np.isnan(v), -np.inf, v) for v in (first, second)]
    order = np.lexsort((np.arange(rows), -keys[1], -keys[0]))
    expected = np.empty(rows, np.int64)
    expected[order] = np.arange(1, rows + 1)
    np.testing.assert_array_equal(found["rank"], expected)
