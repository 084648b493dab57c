"""Data-parallel training of the morphology family on 1, 2, 4 … workers, and what limits it.

Every number of workers trains the same recipe on the same mock galaxies through Ray Train, one
thread (or GPU) each, and keeps the global batch, so that all do the same steps and the final losses
can be compared; ``--scale-batch`` grows batch and learning rate with the workers as the paper does.
On one machine workers are logical: beyond its cores they share them.

Beside the whole, the parts are measured alone: computation of a step, fetching of a batch, an
all-reduce of the gradients among N processes, and what an epoch costs besides its steps. They make
a cost model, which is compared with the measured epochs and with Table III of Khan et al. 2019 and
predicts 64 GPUs. The same steps in N processes without Ray, sharing nothing and exchanging
gradients, tell what a smaller batch, the exchange and Ray's own processes take of a speed-up.

    python benchmarks/scaling.py --out DIR [--workers 1 2 4] [--seeds 0 1 2] [--objects 1500]
        [--epochs 3] [--image-size 64] [--recipe morphology/mock_sdss_laptop] [--use-gpu]
        [--gpu-images-per-second 22.5] [--bandwidth-gbit 56] [--latency-us 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "benchmarks")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from report import Row, finish  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

from skyray.analysis import plots, scaling  # noqa: E402
from skyray.data.dataset import Dataset  # noqa: E402
from skyray.data.prepared import prepare  # noqa: E402
from skyray.data.simulate import simulate  # noqa: E402
from skyray.families.base import load_recipe  # noqa: E402
from skyray.families.morphology.family import MorphologyFamily  # noqa: E402
from skyray.runtime.session import ray_session  # noqa: E402
from skyray.training.loader import Rows, StageRows  # noqa: E402
from skyray.training.loop import StageLoss  # noqa: E402
from skyray.training.optimizers import make_optimizer  # noqa: E402
from skyray.training.train import train  # noqa: E402
from skyray.workflows.des_galaxies import mock_cards  # noqa: E402

_PREDICTED = 64
_TARGET_TWO = 1.7
_TURNS = 3


def recipe_for(options: argparse.Namespace, seed: int):
    """Return the recipe: the last stage alone, so that every epoch computes all gradients."""
    rule = "per_worker" if options.scale_batch else "global"
    return load_recipe(options.recipe).override(
        [f"train.batch_rule={rule}", "train_head=null", "train_middle=null", f"seed={seed}",
         f"train.epochs={options.epochs}", "train.early_stopping=null", *options.set]
    )  # fmt: skip


def run(workers: int, seed: int, data: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train once, unless it was done, and return images/s, seconds and final losses."""
    kept = options.out / f"workers-{workers}-{seed}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    recipe = recipe_for(options, seed)
    history = train(
        recipe, str(data), str(options.out / "bundles" / kept.stem), workers=workers,
        use_gpu=options.use_gpu, threads=1, progress=False,
    ).history  # fmt: skip
    later = history[1:] or history  # the first epoch warms up
    found = {
        "images_s": statistics.median(h["train_rows"] / h["train_seconds"] for h in later),
        "train_seconds": statistics.median(h["train_seconds"] for h in later),
        "other_seconds": statistics.median(
            h["validation_seconds"] + h["between_seconds"] for h in later
        ),
        "loss": history[-1]["train_loss"],
        "validation_loss": history[-1]["validation_loss"],
        "validation_accuracy": history[-1]["validation_accuracy"],
    }
    kept.write_text(json.dumps(found), encoding="utf-8")
    return found


def measure_step(
    family: MorphologyFamily, data: Dataset, batch: int, rounds: int, exchange: bool = False
):
    """Return median seconds of computation and of fetching for one batch, and gradient bytes.

    With `exchange` the gradients are averaged over the process group, as the training loop does.
    """
    torch.set_num_threads(1)
    steps = rounds + 1
    stage = family.stages()[-1]
    rows = Rows(prepare(data, family, progress=False, on_ray=False)).of(stage)["train"]
    model = family.build_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(stage.trains(name))
    model.train()
    optimizer = make_optimizer(stage.train.optimizer, model)
    module: torch.nn.Module = StageLoss(model, stage)
    if exchange:
        module = DistributedDataParallel(module, gradient_as_bucket_view=True)
    fetching, computing = [], []
    started = time.perf_counter()
    for one in _batches(rows, batch, steps):
        fetched = time.perf_counter()
        loss, _metrics = module(one)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        fetching.append(fetched - started)
        computing.append(time.perf_counter() - fetched)
        started = time.perf_counter()
    size = sum(4 * p.numel() for p in model.parameters() if p.requires_grad)
    return statistics.median(computing[1:]), statistics.median(fetching[1:]), size


def _batches(rows: StageRows, batch: int, steps: int):
    """Yield `steps` batches of `batch` rows, over as many epochs as they need."""
    batch = min(batch, len(rows))
    per_epoch = len(rows) // batch
    for step in range(steps):
        epoch, at = divmod(step, per_epoch)
        order = np.random.default_rng(epoch).permutation(len(rows))
        yield rows.read(order[at * batch : (at + 1) * batch])


def _all_reduce(rank: int, workers: int, place: str, elements: int, rounds: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{place}/meeting", rank=rank, world_size=workers)
    values = torch.ones(elements)
    took = []
    for _ in range(rounds + 1):
        dist.barrier()
        started = time.perf_counter()
        dist.all_reduce(values)
        took.append(time.perf_counter() - started)
    if rank == 0:
        Path(place, "seconds").write_text(repr(statistics.median(took[1:])))
    dist.destroy_process_group()


def all_reduce_seconds(workers: int, elements: int, rounds: int = 5) -> float:
    """Return the median seconds of one all-reduce of float32 among processes of this machine."""
    if workers == 1:
        return 0.0
    with tempfile.TemporaryDirectory() as place:
        torch.multiprocessing.spawn(_all_reduce, (workers, place, elements, rounds), nprocs=workers)
        return float(Path(place, "seconds").read_text())


def _step_beside_others(
    rank: int, workers: int, place: str, recipe, data: str, batch: int, rounds: int, exchange: bool
) -> None:
    dist.init_process_group("gloo", f"file://{place}/meeting", rank=rank, world_size=workers)
    dataset = Dataset.open(data)
    family = MorphologyFamily(MorphologyFamily.recipe_type.load(recipe), dataset.info())
    dist.barrier()
    compute, _, _ = measure_step(family, dataset, batch, rounds, exchange)
    Path(place, f"{rank}.seconds").write_text(repr(compute))
    dist.destroy_process_group()


def speed_ups_without_ray(
    workers: int, recipe, data: Path, scaled: bool, rounds: int
) -> dict[str, float]:
    """Return how many times the images/s of one process N processes reach, Ray apart.

    First with nothing shared, which no data-parallel training on this machine can beat; then with
    gradients exchanged. The three take turns and medians of their ratios count, since a shared
    machine's speed changes from one minute to the next.
    """
    whole = recipe.train.batch_size
    each = whole if scaled else max(2, whole // workers)
    ratios = []
    for _ in range(_TURNS):
        seconds = []
        for count, size, exchange in (
            (1, whole, False), (workers, each, False), (workers, each, True)
        ):  # fmt: skip
            with tempfile.TemporaryDirectory() as place:
                torch.multiprocessing.spawn(
                    _step_beside_others,
                    (count, place, recipe.snapshot(), str(data), size, rounds, exchange),
                    nprocs=count,
                )  # fmt: skip
                found = [float(path.read_text()) for path in Path(place).glob("*.seconds")]
            seconds.append(statistics.mean(found) / (count * size))
        ratios.append((seconds[0] / seconds[1], seconds[0] / seconds[2]))
    nothing, gradients = (statistics.median(turns) for turns in zip(*ratios, strict=True))
    return {"sharing nothing": nothing, "exchanging gradients": gradients}


def cost_model(options, family, data: Dataset, batch: int, other_s: float):
    """Return the model of this machine and the measured all-reduce of every number of workers."""
    compute, fetch, size = measure_step(family, data, batch, options.rounds)
    reduce = {n: all_reduce_seconds(n, size // 4, options.rounds) for n in options.workers}
    small = {n: all_reduce_seconds(n, 16, options.rounds) for n in options.workers}
    most = max(options.workers)
    share = 2 * (most - 1) / most
    bandwidth = share * size / max(reduce[most] - small[most], 1e-9) if most > 1 else 1e9
    latency = small[most] / (2 * (most - 1)) if most > 1 else 0.0
    model = scaling.CostModel(
        rows=data.count("train"), batch=batch, compute_s=compute, gradient_bytes=size,
        bandwidth_bytes_s=bandwidth, latency_s=latency, input_s=fetch, per_epoch_s=other_s,
    )  # fmt: skip
    return model, reduce


def prediction(model: scaling.CostModel, options) -> scaling.CostModel:
    """Return the cost model of a cluster of GPUs for the paper's data and network."""
    xception_bytes = 4 * 24e6  # 20.8 M of the base and 3.1 M of the head
    batch = scaling.PUBLISHED_BATCH
    return scaling.CostModel(
        rows=scaling.PUBLISHED_ROWS, batch=batch, compute_s=batch / options.gpu_images_per_second,
        gradient_bytes=xception_bytes, bandwidth_bytes_s=options.bandwidth_gbit * 1e9 / 8,
        latency_s=options.latency_us * 1e-6,
        # a batch comes from the worker's memory; a GPU fetches it as fast as this machine does
        input_s=model.input_s * batch / model.batch,
        per_epoch_s=model.per_epoch_s,
    )  # fmt: skip


def table(found, model, reduce, cluster, apart: dict[int, dict[str, float]], options) -> list[Row]:
    """Return measured and modelled figures."""
    cores = len(os.sched_getaffinity(0))
    rate = {n: statistics.median(r["images_s"] for r in runs) for n, runs in found.items()}
    first = min(rate)
    rows = []
    for workers, runs in found.items():
        losses = [r["validation_loss"] for r in runs]
        step = model.compute_s + model.input_s
        note = f"final loss {statistics.mean(losses):.4f} ({min(losses):.4f} to {max(losses):.4f})"
        if workers > cores and not options.use_gpu:
            note += f"; logical workers on {cores} cores"
        rows.append(Row(
            _count(workers), rate[workers], "images/s", rate[first],
            rate[workers] / rate[first], _TARGET_TWO if workers == 2 else None, note,
        ))  # fmt: skip
        for name, gain in apart.get(workers, {}).items():
            rows.append(
                Row(
                    f"{workers} processes without Ray, {name}",
                    gain,
                    "×",
                    note="steps alone, against one process with the recipe's batch",
                )
            )
        seconds = {"compute": model.compute_s, "input": model.input_s,
                   "communication": reduce[workers]}  # fmt: skip
        whole = step + reduce[workers]
        rows += [
            Row(
                f"{_count(workers)}: {name} of a step",
                value,
                "s",
                None,
                value / whole,
                None,
                f"{model.batch} images, measured alone; ratio: share of the step",
            )
            for name, value in seconds.items()
        ]
    rows.append(Row("an epoch besides its steps", model.per_epoch_s, "s",
                    note="validation, checkpoint, log"))  # fmt: skip
    rows.append(Row(
        f"predicted speed-up, {_PREDICTED} GPUs", cluster.speed_up(_PREDICTED), "×",
        1626 / 27, cluster.speed_up(_PREDICTED) / (1626 / 27), None,
        f"Xception, {options.gpu_images_per_second:g} images/s a GPU, "
        f"{options.bandwidth_gbit:g} Gbit/s; reference: Table III, all layers from 2 on",
    ))  # fmt: skip
    rows.append(Row(
        f"predicted epoch, {_PREDICTED} GPUs", cluster.epoch_s(_PREDICTED), "s", 27.0,
        cluster.epoch_s(_PREDICTED) / 27.0, None,
        f"exposed communication {1e3 * cluster.exposed_s(_PREDICTED):.1f} ms of a step; efficiency "
        f"falls below one half beyond {cluster.limit()} workers",
    ))  # fmt: skip
    return rows


def _count(workers: int) -> str:
    return f"{workers} worker{'s' if workers > 1 else ''}"


def draw(found, cluster, path: Path) -> Path:
    """Draw speed-ups: measured here, published (Fig. 4, Table III), modelled."""
    from matplotlib import rc_context

    ours = {n: 1 / statistics.median(r["images_s"] for r in runs) for n, runs in found.items()}
    published = {n: times[2] for n, times in scaling.PUBLISHED_EPOCHS.items()}
    counts = sorted(published)
    fitted = scaling.fit_published()
    with rc_context(plots.STYLE):
        figure, axes = plots.panels(1, 2)
        for axis, efficiency in zip(axes[0], (False, True), strict=True):
            lines = (
                ("published, 64 K80", scaling.speed_ups(published), plots.RED, "o", ""),
                ("its cost model", {n: fitted.speed_up(n) for n in counts}, plots.RED, "", "-"),
                ("predicted GPUs", {n: cluster.speed_up(n) for n in counts}, plots.GREEN, "", "-"),
                ("measured here", scaling.speed_ups(ours), plots.BLUE, "s", "-"),
            )
            for name, values, color, marker, line in lines:
                y = [v / n if efficiency else v for n, v in values.items()]
                axis.plot(list(values), y, color=color, marker=marker, linestyle=line, label=name)
            axis.set(xscale="log", xlabel="workers",
                     title="efficiency" if efficiency else "speed-up")  # fmt: skip
            axis.set_xticks(counts, [str(n) for n in counts])
        axes[0, 0].plot(counts, counts, color=plots.SOFT, linestyle="--", linewidth=1)
        axes[0, 0].set(yscale="log")
        axes[0, 1].set(ylim=(0, 1.1))
        axes[0, 0].legend(fontsize=8)
        return plots.save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/scaling"))
    parser.add_argument("--workers", nargs="*", type=int, default=[1, 2, 4])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--objects", type=int, default=1500)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5, help="of each part measured alone")
    parser.add_argument("--recipe", default="morphology/mock_sdss_laptop")
    parser.add_argument("--set", action="append", default=[], help="change the recipe: key=value")
    parser.add_argument("--scale-batch", action="store_true", help="batch and rate × workers")
    parser.add_argument("--use-gpu", action="store_true")
    parser.add_argument("--gpu-images-per-second", type=float, default=36_620 / 1626,
                        help="of one GPU in training; default: the paper's K80")  # fmt: skip
    parser.add_argument("--bandwidth-gbit", type=float, default=56.0, help="between nodes")
    parser.add_argument("--latency-us", type=float, default=5.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.out = options.out.absolute()
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("SKYRAY_HOME", str(options.out / "home"))
    data = options.out / "dataset"
    with ray_session(num_cpus=max(4, 2 * max(options.workers) + 1)):
        if not Dataset.exists(data):
            simulate(mock_cards(options.image_size)["sdss"], options.objects, 1, str(data))
        found: dict[int, list[dict[str, Any]]] = {n: [] for n in options.workers}
        for seed in options.seeds:  # turns, so that a busy machine slows all alike
            for workers in options.workers:
                found[workers].append(run(workers, seed, data, options))
    dataset = Dataset.open(data)
    recipe = recipe_for(options, 0)
    family = MorphologyFamily(recipe, dataset.info())
    first = min(options.workers)
    batch = recipe.train.batch_size // (1 if options.scale_batch else max(options.workers))
    other = statistics.median(r["other_seconds"] for r in found[first])
    model, reduce = cost_model(options, family, dataset, max(batch, 2), other)
    cluster = prediction(model, options)
    draw(found, cluster, options.out / "scaling.png")
    rounds = 2 * options.rounds
    apart = {
        n: speed_ups_without_ray(n, recipe, data, options.scale_batch, rounds)
        for n in options.workers
        if n > 1 and not options.use_gpu
    }
    rows = table(found, model, reduce, cluster, apart, options)
    finish("Data-parallel training of the morphology family", rows, options.json)


if __name__ == "__main__":
    main()
