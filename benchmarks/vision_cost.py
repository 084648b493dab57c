"""What each image network costs: parameters, images per second and peak memory of every back end.

The form of the alert paper's Table 2 (batch 32, float32, one GPU or 12 CPU cores). A back end runs
in a process of its own: eager float32, as timm gives it; optimised float32; optimised bf16, where
the device has it; all of them on CUDA too, where there is one. On the CPU, memory is the process's
peak above what it held before the first batch; on CUDA, what torch allocated. With one thread, time
is CPU time, which other work on the machine disturbs least.

    python benchmarks/vision_cost.py [--models NAME ...] [--batch 32] [--batches 3] [--threads 1]
                                     [--markdown FILE] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "benchmarks")]

from report import Row, finish  # noqa: E402

from skyray.models.vision import VisionConfig, VisionNetwork  # noqa: E402
from skyray.models.vision_inference import bf16_support, optimised  # noqa: E402

# Image size, size the network sees, largest batch.
NETWORKS: dict[str, tuple[int, int | None, int]] = {
    "alert_cnn": (63, None, 1024),
    "convnext_pico": (63, None, 1024),
    "maxvit_tiny_rw_224": (63, 224, 8),
    "legacy_xception": (299, None, 8),
    "efficientnet_b0": (150, None, 32),
}
BACK_ENDS = ("eager float32", "optimised float32", "optimised bf16")


def make_network(name: str) -> VisionNetwork:
    size, input_size, _ = NETWORKS[name]
    torch.manual_seed(0)
    config = VisionConfig(architecture=name, input_size=input_size)
    network = VisionNetwork(config, bands=3, outputs=1, image_size=size).eval()
    return network.to(memory_format=torch.contiguous_format)  # as timm makes it


def peak_bytes(device: str) -> int:
    """Return the peak memory so far: allocated by torch, or resident in the process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@torch.no_grad()
def measure(name: str, back_end: str, device: str, batch: int, batches: int, threads: int) -> dict:
    """Return images/s (median), peak memory in MB and the parameters, of this process."""
    torch.set_num_threads(threads)
    network = make_network(name).to(device)
    parameters = sum(p.numel() for p in network.parameters())
    form, _, precision = back_end.partition(" ")
    model = network if form == "eager" else optimised(network, precision)
    image = torch.rand(batch, 3, network.image_size, network.image_size, device=device)
    before = peak_bytes(device)

    clock = time.process_time if device == "cpu" and threads == 1 else time.perf_counter

    def once() -> float:
        started = clock()
        model(image)
        if device == "cuda":
            torch.cuda.synchronize()
        return clock() - started

    once()
    seconds = statistics.median(once() for _ in range(batches))
    memory = (peak_bytes(device) - (0 if device == "cuda" else before)) / 1e6
    return {"rate": batch / seconds, "memory": memory, "parameters": parameters}


def in_new_process(arguments: list[str], threads: int) -> dict:
    command = [sys.executable, __file__, "--one", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def cost_rows(name: str, batch: int, batches: int, threads: int) -> list[Row]:
    """Measure the back ends of one network; those the machine lacks are left out."""
    batch = min(batch, NETWORKS[name][2])
    places = [("cpu", b) for b in BACK_ENDS if b != BACK_ENDS[2] or bf16_support()[0]]
    if torch.cuda.is_available():
        places += [("cuda", b) for b in BACK_ENDS if b != BACK_ENDS[2] or bf16_support("cuda")[0]]
    rows: list[Row] = []
    eager: dict[str, float] = {}
    for device, back_end in places:
        arguments = [name, back_end, device, *map(str, (batch, batches, threads))]
        found = in_new_process(arguments, threads)
        reference = eager.setdefault(device, found["rate"])
        note = f"{found['parameters']:,} parameters, peak {found['memory']:.0f} MB, batch {batch}"
        rows.append(
            Row(f"{name}, {back_end}, {device}", found["rate"], "images/s", reference,
                found["rate"] / reference, note=note)
        )  # fmt: skip
    return rows


def markdown(rows: list[Row]) -> str:
    lines = ["| network, back end | images/s | × eager | cost |", "| --- | ---: | ---: | --- |"]
    lines += [f"| {row.name} | {row.value:.1f} | {row.ratio:.2f} | {row.note} |" for row in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--batches", type=int, default=3, help="timed batches of each back end")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--markdown", type=Path, help="also write the table here")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, back_end, device, *numbers = options.one
        print(json.dumps(measure(name, back_end, device, *map(int, numbers))))
        return
    rows = [
        row
        for name in options.models
        for row in cost_rows(name, options.batch, options.batches, options.threads)
    ]
    if options.markdown:
        options.markdown.write_text(markdown(rows), encoding="utf-8")
    finish(f"Cost of image networks ({options.threads} threads)", rows, options.json)


if __name__ == "__main__":
    main()
