"""The SPENDER autoencoder against the published package spender 0.3: time, memory, precision.

DESI size (7781 pixels, 9780 rest-frame pixels, 6 latents), batch 128, one thread, mock galaxies,
the same weights on both sides: ours, trained for `--steps` steps on other mock galaxies, as random
weights say little about precision. Runs are interleaved; a figure is the ratio of the medians.
Time is the CPU time of the process, which for one thread is what a free processor would take. It
takes four minutes of that, half of it for training.

    python benchmarks/outliers.py [--spectra 1024] [--steps 60] [--rounds 3] [--json FILE]

Without spender installed the benchmark says so and ends with status 0.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "benchmarks")]

from report import Row, finish  # noqa: E402

from skyray.families.outliers.losses import (  # noqa: E402
    rest_median,
    similarity,
    similarity_weight,
)
from skyray.models.fast_spender import fast_encoder  # noqa: E402
from skyray.models.spender import (  # noqa: E402
    Instrument,
    SpectrumAutoencoder,
    SpectrumDecoder,
    SpectrumEncoder,
    from_spender,
)
from skyray.records import Grid  # noqa: E402

OBSERVED = Grid("linear", 3600.0, 0.8, 7781)
REST = Grid("linear", 2000.0, 7824.0 / 9779, 9780)
LATENTS, BATCH, TRAINING_BATCH, TOP = 6, 128, 32, 100
ENCODE, ENCODE_BFLOAT16, TRAIN, SIMILARITY, MEMORY = 1.8, 3.5, 2.0, 15.0, 2.0
SLOPE = 1.0  # k of the similarity loss; the time does not depend on it


def our_model() -> SpectrumAutoencoder:
    return SpectrumAutoencoder(
        SpectrumEncoder(OBSERVED.size, LATENTS),
        SpectrumDecoder(REST, LATENTS),
        Instrument(OBSERVED),
    )


def their_model(ours: SpectrumAutoencoder | None = None):
    """Return spender's autoencoder for DESI, with our weights where given."""
    import spender

    class Spectrograph(spender.Instrument):
        pass

    wavelength, rest = (torch.as_tensor(g.wavelength()).float() for g in (OBSERVED, REST))
    act = [torch.nn.LeakyReLU()] * 4
    model = spender.SpectrumAutoencoder(Spectrograph(wavelength), rest, LATENTS, act=act)
    if ours is not None:
        weights = ours.state_dict()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                (same,) = from_spender({name: parameter})
                parameter.copy_(weights[same].reshape(parameter.shape))
    return model


def mock_galaxies(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return flux over its median, weights [N, L] and redshifts [N] of mock BGS galaxies."""
    # Imported here: the processes whose memory is measured need no simulator.
    from skyray.cards import load_card
    from skyray.simulate.spectra import MockSurvey
    from skyray.transforms.spectra import place_on_grid

    survey = MockSurvey(load_card("desi_bgs"), seed)
    flux, weight = np.zeros((2, count, OBSERVED.size), dtype=np.float32)
    redshift = np.zeros(count, dtype=np.float32)
    for i in range(count):
        spectrum = survey.spectrum("GALAXY", i)
        flux[i], weight[i], _ = place_on_grid(spectrum, OBSERVED)
        norm = max(float(np.median(flux[i][weight[i] > 0])), 1e-3)
        flux[i] /= norm
        weight[i] *= norm**2
        redshift[i] = spectrum.redshift
    return torch.as_tensor(flux), torch.as_tensor(weight), torch.as_tensor(redshift)


def half_precision() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16)


def has_bfloat16() -> bool:
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(supported and supported())


def our_loss(model: SpectrumAutoencoder, flux, weight, redshift) -> torch.Tensor:
    made = model(flux, redshift)
    chi2 = 0.5 * weight * made.valid * (flux - made.model).square()
    return chi2.sum(dim=1).div(flux.shape[1]).sum()


def their_loss(model, flux, weight, redshift) -> torch.Tensor:
    return model.loss(flux, weight, z=redshift)


def training_step(model, loss_of: Callable, optimizer, batch, precision) -> float:
    optimizer.zero_grad(set_to_none=True)
    with precision():
        loss = loss_of(model, *batch)
    loss.backward()
    optimizer.step()
    return loss.item()


def adam(model) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-4)


def train_briefly(steps: int, precision) -> SpectrumAutoencoder:
    model = our_model()
    optimizer = adam(model)
    data = mock_galaxies(16 * TRAINING_BATCH, seed=2)
    generator = np.random.default_rng(0)
    for _ in range(steps):
        rows = torch.as_tensor(generator.choice(len(data[0]), TRAINING_BATCH, replace=False))
        training_step(model, our_loss, optimizer, [x[rows] for x in data], precision)
    return model


def paired(rounds: int, **runs: Callable[[], object]) -> dict[str, float]:
    """Return the median CPU seconds of each run; the runs take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.process_time()
            run()
            seconds[name].append(time.process_time() - started)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def speed_row(name: str, ours: float, theirs: float, target: float | None, note: str = "") -> Row:
    return Row(name, BATCH / ours, "spectra/s", BATCH / theirs, theirs / ours, target, note)


def encode_rows(model, reference, flux: torch.Tensor, rounds: int, bfloat16: bool) -> list[Row]:
    fast = fast_encoder(model.encoder)
    batch = flux[:BATCH]

    def run(encoder, precision) -> torch.Tensor:
        with torch.no_grad(), precision():
            return encoder(batch).float()

    runs = {
        "theirs": lambda: run(reference.encoder, contextlib.nullcontext),
        "ours": lambda: run(fast, contextlib.nullcontext),
    }
    if bfloat16:
        runs["theirs_half"] = lambda: run(reference.encoder, half_precision)
        runs["ours_half"] = lambda: run(fast, half_precision)
    seconds = paired(rounds, **runs)
    rows = [speed_row("encode, float32", seconds["ours"], seconds["theirs"], ENCODE)]
    if not bfloat16:
        return [*rows, skipped("encode, bfloat16", "the processor has no bfloat16 instructions")]
    ours, theirs = seconds["ours_half"], seconds["theirs"]
    rows += [
        speed_row("encode, bfloat16", ours, theirs, ENCODE_BFLOAT16, "against spender in float32"),
        speed_row("encode, bfloat16", ours, seconds["theirs_half"], None, "against its autocast"),
    ]
    return rows + precision_rows(fast, reference, flux)


def precision_rows(fast, reference, flux: torch.Tensor) -> list[Row]:
    """Latents of bfloat16 and of spender against ours in float32, and the ranking of outliers."""
    exact = fast(flux)
    with half_precision():
        rounded = fast(flux).float()
    with torch.no_grad():
        theirs = reference.encoder(flux[:BATCH])
    spread = exact.std(dim=0)
    error = ((rounded - exact).square().mean(dim=0).sqrt() / spread).max().item()
    largest = ((rounded - exact).abs() / spread).max().item()
    published = ((theirs - exact[:BATCH]).abs() / spread).max().item()

    def strangest(latent: torch.Tensor) -> set[int]:
        distance = ((latent - latent.mean(dim=0)) / latent.std(dim=0)).square().sum(dim=1)
        return set(distance.topk(min(TOP, len(latent) // 10)).indices.tolist())

    first, second = strangest(exact), strangest(rounded)
    overlap = len(first & second) / len(first)
    note = f"of {len(flux)} spectra, by distance in standardised latents"
    return [
        Row("float32 latents against spender's", published, "std", note="largest difference"),
        Row("bfloat16 latents against float32", error, "std",
            note=f"rms, worst latent, ≤ .05 wanted; largest single {largest:.3g}"),
        Row(f"same in the top {len(first)}", overlap, "fraction", ratio=overlap, target=0.95,
            note=note),
    ]  # fmt: skip


def training_row(model, reference, batch, rounds: int, bfloat16: bool) -> Row:
    precision = half_precision if bfloat16 else contextlib.nullcontext
    ours, theirs = adam(model), adam(reference)
    seconds = paired(
        rounds,
        theirs=lambda: training_step(reference, their_loss, theirs, batch, precision),
        ours=lambda: training_step(model, our_loss, ours, batch, precision),
    )
    name = f"training step, {'bfloat16' if bfloat16 else 'float32'}"
    note = "fidelity: forward, backward, Adam"
    return speed_row(name, seconds["ours"], seconds["theirs"], TRAIN, note)


def similarity_row(rounds: int) -> Row:
    """Forward and backward of the similarity loss alone, on spectra that are decoded already."""
    from spender.loss import LossConfig, similarity_restframe_loss

    torch.manual_seed(0)
    wavelength = torch.as_tensor(REST.wavelength()).float()
    latent = torch.randn(BATCH, LATENTS, requires_grad=True)
    rest = (1 + 0.1 * torch.randn(BATCH, REST.size)).requires_grad_()
    decoded = SimpleNamespace(decode=lambda s: rest, decoder=SimpleNamespace(wave_rest=wavelength))
    config = LossConfig(similarity_slope=SLOPE)
    weight = similarity_weight(wavelength)

    def theirs() -> torch.Tensor:
        loss = similarity_restframe_loss(decoded, latent, config=config)
        return torch.autograd.grad(loss, (latent, rest))[1]

    def ours() -> torch.Tensor:
        normalised = rest / rest_median(rest, wavelength)
        loss = similarity(latent, normalised, weight, SLOPE, "relative")
        return torch.autograd.grad(loss, (latent, rest))[1]

    difference = (ours() - theirs()).abs().max() / theirs().abs().max()
    seconds = paired(rounds, theirs=theirs, ours=ours)
    return Row(
        "similarity loss", 1e3 * seconds["ours"], "ms", 1e3 * seconds["theirs"],
        seconds["theirs"] / seconds["ours"], SIMILARITY,
        note=f"forward and backward; gradients differ by {difference:.1g}",
    )  # fmt: skip


def skipped(name: str, reason: str) -> Row:
    return Row(name, float("nan"), "", note=f"skipped: {reason}")


def peak_memory(side: str, task: str) -> float:
    """Return the peak resident memory, MB, of a fresh process that does `task` once."""
    command = [sys.executable, __file__, "--memory", side, task]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def use_memory(side: str, task: str) -> None:
    """What the fresh process does: one batch of noise, then print the peak, MB."""
    torch.manual_seed(0)
    model = our_model() if side == "ours" else their_model()
    batch = 1 + torch.randn(BATCH, OBSERVED.size), torch.ones(BATCH, OBSERVED.size)
    redshift = torch.linspace(0.01, 0.7, BATCH)
    if task == "encode":
        encoder = fast_encoder(model.encoder) if side == "ours" else model.encoder
        with torch.no_grad():
            encoder(batch[0])
    else:
        loss_of = our_loss if side == "ours" else their_loss
        precision = half_precision if has_bfloat16() else contextlib.nullcontext
        training_step(model, loss_of, adam(model), (*batch, redshift), precision)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10))


def memory_rows() -> list[Row]:
    rows = []
    for task, name in (("encode", "encode, float32"), ("train", "training step")):
        ours, theirs = (peak_memory(side, task) for side in ("ours", "theirs"))
        note = "whole process, torch included"
        rows.append(Row(f"peak memory, {name}", ours, "MB", theirs, theirs / ours, MEMORY, note))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spectra", type=int, default=1024, help="spectra of the precision check")
    parser.add_argument("--steps", type=int, default=60, help="training steps before measuring")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        import spender  # noqa: F401
    except ImportError as missing:
        print(f"skipped: the reference package spender cannot be imported ({missing})")
        return
    torch.set_num_threads(1)
    if options.memory:
        use_memory(*options.memory)
        return
    torch.manual_seed(0)
    bfloat16 = has_bfloat16()
    memory = memory_rows()
    model = train_briefly(options.steps, half_precision if bfloat16 else contextlib.nullcontext)
    reference = their_model(model)
    flux, weight, redshift = mock_galaxies(max(options.spectra, BATCH), seed=1)
    rows = encode_rows(model, reference, flux, options.rounds, bfloat16)
    batch = flux[:BATCH], weight[:BATCH], redshift[:BATCH]
    rows.append(training_row(model, reference, batch, options.rounds, bfloat16))
    rows.append(similarity_row(options.rounds))
    finish(
        "SPENDER against spender 0.3 (DESI size, batch 128, 1 thread)", rows + memory, options.json
    )


if __name__ == "__main__":
    main()
