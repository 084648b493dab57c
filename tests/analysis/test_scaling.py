"""The cost model of data-parallel training against the paper's Table III and by hand."""

import pytest

from skyray.analysis.scaling import (
    PUBLISHED_EPOCHS,
    CostModel,
    fit_published,
    speed_ups,
)

MODEL = CostModel(
    rows=1600, batch=16, compute_s=0.5, gradient_bytes=80e6, bandwidth_bytes_s=1e9, latency_s=1e-4,
    overlap=0.0,
)  # fmt: skip


def test_one_worker_communicates_nothing():
    assert MODEL.communication_s(1) == 0
    assert MODEL.epoch_s(1) == pytest.approx(100 * 0.5)
    assert MODEL.speed_up(1) == 1


def test_ring_all_reduce_by_hand():
    assert MODEL.communication_s(4) == pytest.approx(2 * 0.75 * 0.08 + 6e-4)
    assert MODEL.epoch_s(4) == pytest.approx(25 * (0.5 + 0.1206))


def test_hidden_communication_costs_nothing():
    hidden = MODEL.on(overlap=0.5)
    assert hidden.exposed_s(4) == 0
    assert hidden.speed_up(4) == pytest.approx(4)
    assert MODEL.speed_up(4) < 4


def test_what_does_not_shrink_bounds_the_speed_up():
    bound = MODEL.on(per_epoch_s=5.0, overlap=1.0)
    assert bound.speed_up(100) == pytest.approx(55 / 5.5)
    assert bound.limit() == 8  # 55 / (50/16 + 5) = 6.8 of 16


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_two_parameters_explain_the_published_epochs(stage):
    model = fit_published(stage)
    assert model.epoch_s(1) == pytest.approx(PUBLISHED_EPOCHS[1][stage])
    assert model.epoch_s(64) == pytest.approx(PUBLISHED_EPOCHS[64][stage])
    for workers in (2, 4, 8, 16, 32):
        expected = PUBLISHED_EPOCHS[workers][stage]
        assert model.epoch_s(workers) == pytest.approx(expected, rel=(0.16, 0.12, 0.06)[stage])


def test_speed_ups_start_from_the_smallest():
    assert speed_ups({2: 10.0, 4: 5.5}) == pytest.approx({2: 2.0, 4: 20 / 5.5})
    published = speed_ups({n: times[2] for n, times in PUBLISHED_EPOCHS.items()})
    assert published[64] == pytest.approx(60.2, abs=0.1)
