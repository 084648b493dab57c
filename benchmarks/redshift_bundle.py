"""Networks alone, templates alone, and what the rule makes of both, on the same real spectra.

    python benchmarks/redshift_bundle.py --bundle BUNDLE [--data DIR] [--json FILE]

BUNDLE is a trained one of the card ``sdss_coarse``, for example

    skyray simulate sdss_coarse --objects 4000 --seed 5 --out mock
    skyray train redshift/sdss_coarse_laptop --data mock --out bundle

DIR (default: SKYRAY_TEST_DATA) holds ``spectra_sdss/spectra.parquet``; scored are spectra that the
survey trusts (zwarning 0), against its answer. `green` are rows without a quality bit of ours, and
for the networks those inside their domain; catastrophic is another class, or a redshift off by more
than 0.015 in ln (1 + z).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "benchmarks")]

import redshift_fit as fits  # noqa: E402
from report import Row, finish  # noqa: E402

from skyray.bundles.bundle import Predictor  # noqa: E402
from skyray.cards import load_card  # noqa: E402
from skyray.data.rows import columns_of  # noqa: E402
from skyray.families.base import Columns  # noqa: E402
from skyray.families.redshift.quality import SURVEY_DISAGREES  # noqa: E402
from skyray.models.template_bases import QSO, STAR  # noqa: E402
from skyray.records import Spectrum  # noqa: E402


def trusted(folder: Path) -> list[Spectrum]:
    """Return the real spectra that their survey trusts, on the grid of SDSS files."""
    path = folder / "spectra_sdss" / "spectra.parquet"
    records = fits.read(load_card("sdss_table"), [path])
    return [record for record in records if record.zwarning == 0]


def answers(predictor: Predictor, records: list[Spectrum]) -> dict[str, Columns]:
    """Return label, redshift, error and `green` as the networks, the fit and the rule give them."""
    found = predictor.predict(columns_of(records, predictor.info))
    classes = predictor.info.classes
    chance = np.stack([found[f"p_{name}"] for name in classes], axis=1)
    own = (found["quality"] & ~SURVEY_DISAGREES) == 0
    coarse = np.array([predictor.info.coarse.get(name, name) for name in classes])
    return {
        "network only": {
            "label": coarse[chance.argmax(axis=1)], "redshift": found["redshift_network"],
            "error": found["redshift_network_err"], "green": found["in_domain"],
        },
        "fit": {
            "label": found["class_fit"].astype(str), "redshift": found["redshift_fit"],
            "error": found["redshift_fit_err"], "green": own,
        },
        "chosen": {
            "label": np.array([predictor.info.coarse.get(n, n) for n in found["label"]]),
            "redshift": found["redshift"], "error": found["redshift_err"], "green": own,
            "source": found["source_of_redshift"],
        },
    }  # fmt: skip


def scores(name: str, found: Columns, records: list[Spectrum]) -> list[Row]:
    """Return the figures of one way to answer."""
    truth = np.array([record.spectype for record in records])
    z = np.array([record.redshift for record in records])
    with np.errstate(invalid="ignore"):
        distance = np.abs(np.log((1 + found["redshift"]) / (1 + z)))
    good = distance < np.array([fits.GOOD[kind] for kind in truth])
    wrong = ~(distance <= 0.015) | (found["label"] != truth)
    green, out = found["green"], []
    recall = [float((found["label"] == kind)[truth == kind].mean()) for kind in fits.CLASSES]
    out.append(Row(f"{name}: balanced accuracy", float(np.mean(recall)), "", target=0.95))
    for kind in fits.CLASSES:
        rows = truth == kind
        target = {"GALAXY": 0.95, QSO: 0.97, STAR: None}[kind]
        out.append(Row(f"{name}: {kind} good fraction", float(good[rows].mean()), "",
                       target=target, note=f"{good[rows].sum()} of {rows.sum()}"))  # fmt: skip
        inside = np.abs(found["redshift"] - z)[rows] < found["error"][rows]
        out.append(Row(f"{name}: {kind} within 1 σ", float(inside.mean()), "", reference=0.683))
    out.append(Row(f"{name}: green", float(green.mean()), "", note="share of all"))
    out.append(Row(f"{name}: catastrophic in green", float(wrong[green].mean()), "", target=0.01,
                   note=f"{wrong[green].sum()} of {green.sum()}; lower is better"))  # fmt: skip
    out.append(Row(f"{name}: catastrophic of all", float(wrong.mean()), "",
                   note=f"{wrong.sum()} of {len(wrong)}; lower is better"))  # fmt: skip
    if "source" in found:
        share = float((found["source"] == "network").mean())
        out.append(Row(f"{name}: redshift from the network", share, ""))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", required=True, help="trained, with networks")
    parser.add_argument("--data", type=Path, default=os.environ.get("SKYRAY_TEST_DATA"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.data is None:
        print("skipped: needs real spectra, give --data DIR or SKYRAY_TEST_DATA")
        return
    torch.set_num_threads(1)
    predictor = Predictor.from_bundle(options.bundle, "cpu")
    records = trusted(Path(options.data))
    start = time.process_time()
    found = answers(predictor, records)
    seconds = (time.process_time() - start) / len(records)
    rows = [row for name, one in found.items() for row in scores(name, one, records)]
    rows.append(Row("networks and fit: a spectrum", 1e3 * seconds, "ms", 1e3 * fits.REDROCK_SECONDS,
                    fits.REDROCK_SECONDS / seconds, 80, "one thread"))  # fmt: skip
    finish(f"Networks and templates on {len(records)} real spectra", rows, options.json)


if __name__ == "__main__":
    main()
