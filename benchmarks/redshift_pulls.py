"""Are the template fit's redshift errors true? Pulls by class and SNR, on real and mock spectra.

    python benchmarks/redshift_pulls.py [--data DIR] [--mocks N] [--json FILE]

A pull is |redshift − truth| / σ. σ² is what χ² says (statistics) plus the systematic floor of the
class (``fit.galaxy_kms`` …), which real spectra need and mocks, made of the templates' own physics,
do not: both are printed. `floor` is the systematic σ with which 68 % of the chosen half of the real
spectra lie within 1 σ (split conformal); what it covers is measured on the other half. Redshifts
that are wrong altogether are no matter of σ and left out.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "benchmarks")]

import redshift_fit as fits  # noqa: E402
from report import Row, finish  # noqa: E402

from skyray.analysis.calibration import ONE_SIGMA  # noqa: E402
from skyray.families.base import Columns  # noqa: E402
from skyray.families.redshift.density import PDF_STEP  # noqa: E402
from skyray.families.redshift.metrics import WRONG_LIMIT, log_bias  # noqa: E402
from skyray.families.redshift.recipes import FitConfig  # noqa: E402
from skyray.models.template_bases import LIGHT_KMS  # noqa: E402
from skyray.simulate.template_bases import built_in_bases  # noqa: E402

FLOORS = np.arange(0.0, 1001.0, 5.0)  # km/s
FEWEST = 8


def velocities(sample: fits.Sample, found: Columns, rows: np.ndarray, kind: str):
    """Return errors made and statistical σ of some rows, km/s [N] each."""
    z, truth = found["redshift"][rows], sample.redshift[rows]
    made = LIGHT_KMS * np.abs(z - truth) / (1 + truth)
    total = LIGHT_KMS * found["redshift_err"][rows] / (1 + z)
    statistical = np.sqrt(np.maximum(total**2 - FitConfig().systematic_kms(kind) ** 2, 0.0))
    return made, statistical


def floor_of(made: np.ndarray, statistical: np.ndarray) -> float:
    """Return the smallest floor with which ⌈(n + 1) · 0.6827⌉ of n rows lie within 1 σ, km/s."""
    wanted = min(int(np.ceil((len(made) + 1) * ONE_SIGMA)), len(made))
    inside = [(made < np.hypot(statistical, floor)).sum() >= wanted for floor in FLOORS]
    return float(FLOORS[np.argmax(inside)]) if any(inside) else float("nan")


def pulls(name: str, made: np.ndarray, statistical: np.ndarray, floor: float) -> list[Row]:
    """Return the figures of one class."""
    pull, note = made / np.hypot(statistical, floor), f"{len(made)} spectra, floor {floor:g} km/s"
    with np.errstate(divide="ignore"):
        alone = made / statistical
    return [
        Row(f"{name}: within 1 σ", float((pull < 1).mean()), "", reference=0.683, note=note),
        Row(f"{name}: within 2 σ", float((pull < 2).mean()), "", reference=0.954),
        Row(f"{name}: 68 % of pulls below", float(np.quantile(pull, 0.683)), "σ", reference=1.0),
        Row(f"{name}: 95 % of pulls below", float(np.quantile(pull, 0.954)), "σ", reference=2.0),
        Row(f"{name}: within 1 σ of statistics alone", float((alone < 1).mean()), "",
            reference=0.683, note=f"median {np.median(statistical):.0f} km/s"),
    ]  # fmt: skip


def mass_above(pdf: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return what of each density [N, bins] is denser than at the truth, and half of that bin."""
    at = np.clip(np.log1p(truth) / PDF_STEP, 0, pdf.shape[1] - 1).astype(int)
    own = pdf[np.arange(len(pdf)), at][:, None]
    return np.sum(pdf * (pdf > own), axis=1) + 0.5 * own[:, 0]


def of_sample(sample: fits.Sample, real: bool) -> list[Row]:
    """Return the pulls of each class, all and by SNR, and the floor that one half asks for."""
    found, _ = fits.answers(sample, built_in_bases())
    distance = log_bias(found["redshift"], sample.redshift)
    right = (found["label"].astype(str) == sample.spectype) & (distance < WRONG_LIMIT)
    out = []
    for kind in fits.CLASSES:
        rows = np.flatnonzero(right & (sample.spectype == kind))
        if len(rows) < FEWEST:
            continue
        name, floor = f"{sample.name}, {kind}", FitConfig().systematic_kms(kind)
        made, statistical = velocities(sample, found, rows, kind)
        out += pulls(name, made, statistical, floor)
        mass = mass_above(found["redshift_pdf"][rows], sample.redshift[rows])
        for level in (0.683, 0.954):
            out.append(Row(f"{name}: densest {level:.3g} of redshift_pdf hold the truth",
                           float((mass < level).mean()), "", reference=level))  # fmt: skip
        order = np.argsort(sample.snr[rows])
        for title, part in zip(("fainter", "brighter"), np.array_split(order, 2), strict=True):
            inside = made[part] < np.hypot(statistical[part], floor)
            out.append(Row(f"{name}, {title} half: within 1 σ", float(inside.mean()), "",
                           reference=0.683, note=f"{len(part)} spectra"))  # fmt: skip
        chosen = sample.half[rows] == 0
        if real and min(chosen.sum(), (~chosen).sum()) >= FEWEST:
            asked = floor_of(made[chosen], statistical[chosen])
            covered = made[~chosen] < np.hypot(statistical[~chosen], asked)
            out.append(Row(f"{name}: floor the chosen half asks for", asked, "km/s", floor))
            out.append(Row(f"{name}: covered by it in the other half", float(covered.mean()), "",
                           reference=0.683, note=f"{len(covered)} spectra"))  # fmt: skip
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("SKYRAY_TEST_DATA"))
    parser.add_argument("--mocks", type=int, default=40, help="mock spectra of each of 13 classes")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    if options.data is None or (real := fits.sdss(Path(options.data))) is None:
        print("real spectra skipped: give --data DIR or SKYRAY_TEST_DATA")
    else:
        rows += of_sample(real, True)
    rows += of_sample(fits.mocks(options.mocks), False)
    finish("Redshift errors of the template fit", rows, options.json)


if __name__ == "__main__":
    main()
