"""Stages that report from workers: side by side, late, and to a board that was lost."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator

import pytest
import ray
from rich.console import Console

from skyray.config import ConfigError
from skyray.runtime.board import ProgressBars
from skyray.runtime.progress import Display
from skyray.runtime.session import require_cluster_gpus, require_devices


@pytest.fixture
def told() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def shown(ray_cluster, told, monkeypatch) -> Iterator[Display]:
    """The process's display, which tells `told` what it would tell stderr."""
    made = Display(console=Console(file=told, width=200))
    monkeypatch.setattr("skyray.runtime.progress._open", [made])
    yield made
    made.close()


def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def states(shown: Display) -> dict[str, tuple[int, str]]:
    """Return epochs done and what is waited for, by the name of the row."""
    return {row.name: (row.done, row.waiting) for row in list(shown.rows)}


def test_stages_side_by_side_have_a_row_each_until_they_end(shown, told):
    with ProgressBars(interval_s=0.05) as bars:
        assert states(shown) == {"workers": (0, "a controller")}
        ray.get(bars.board.group.remote("workers", "nodes with 2 × 1 GPU"))
        until(lambda: states(shown) == {"workers": (0, "nodes with 2 × 1 GPU")})
        bars.board.end.remote("workers")
        bars.board.wait.remote("star", "epoch 4 to end", 3, 9)
        bars.board.update.remote("galaxy", 1, 9, "loss 1.0")
        until(lambda: states(shown) == {"star": (3, "epoch 4 to end"), "galaxy": (1, "")})
        bars.board.update.remote("star", 4, 9, "loss 2.0")
        bars.board.end.remote("star")  # stopped early
        until(lambda: states(shown) == {"galaxy": (1, "")})
    assert states(shown) == {}
    err = told.getvalue()
    assert "star: 4/9 epochs, loss 2.0" in err
    assert "galaxy: 1/9 epochs, loss 1.0" in err
    assert "workers" not in err.replace("workers: waiting", "")


def test_each_group_has_a_row_and_a_failed_stage_says_why(shown, told):
    with ProgressBars(interval_s=0.05) as bars:
        bars.board.group.remote("workers 1", "imports of 1 processes")
        bars.board.group.remote("workers 2", "nodes with 1 × 1 GPU")
        second = {"workers 2": (0, "nodes with 1 × 1 GPU")}
        first = {"workers 1": (0, "imports of 1 processes")}
        until(lambda: states(shown) == first | second)
        bars.board.end.remote("workers 1")
        bars.board.update.remote("star", 2, 9, "loss 1.0")
        until(lambda: states(shown) == second | {"star": (2, "")})
        bars.board.fail.remote("star", "FloatingPointError: NaN")
        bars.board.fail.remote("galaxy", "OSError: full")  # before it had reported
        until(lambda: states(shown) == second)
        bars.board.group.remote("workers 1", "nodes with 1 × 1 GPU")  # for another stage
        until(lambda: len(states(shown)) == 2)
    assert not states(shown)
    assert "star: ended by an error, FloatingPointError: NaN, 2/9 epochs" in told.getvalue()
    assert "galaxy: ended by an error, OSError: full" in told.getvalue()
    assert "workers 2" not in told.getvalue().replace("workers 2: waiting", "")


def test_a_late_board_is_said_to_be_silent_and_heard_again(shown):
    with ProgressBars(interval_s=0.05, silence_s=0.5) as bars:
        ray.get(bars.board.update.remote("star", 1, 9))
        until(lambda: "star" in states(shown))
        bars.board.__ray_call__.remote(lambda _: time.sleep(2.0))
        bars.board.update.remote("star", 2, 9)
        until(lambda: "news" in states(shown).get("workers", (0, ""))[1])
        assert states(shown)["star"] == (1, "")
        until(lambda: states(shown) == {"star": (2, "")})


def test_a_board_that_is_lost_comes_back_and_no_watcher_ends(shown):
    with ProgressBars(interval_s=0.05) as bars:
        ray.get(bars.board.update.remote("star", 1, 9))
        until(lambda: "star" in states(shown))
        ray.kill(bars.board, no_restart=False)

        def reported() -> bool:
            bars.board.update.remote("star", 2, 9)
            return states(shown).get("star") == (2, "")

        until(reported)


def test_gpus_that_are_nowhere_are_refused(ray_cluster, monkeypatch):
    with pytest.raises(ConfigError, match="--gpu: expected 2 GPUs, found 0 on the cluster"):
        require_cluster_gpus(2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match="--gpu: expected 1 GPU, found 0 on this machine"):
        require_devices(None, 1)
    with pytest.raises(ConfigError, match="999 CPUs at once: expected at most"):
        require_devices(None, 0, 999)
    require_devices("head:6379", 8, 999)  # the cluster says what it has
