"""Networks alone, templates alone, and what the rule makes of both, on the same real spectra.

    python benchmarks/redshift_bundle.py --bundle BUNDLE [--data DIR] [--json FILE]

BUNDLE is a trained one of the card ``sdss_coarse``, for example

    skyray simulate sdss_coarse --objects 4000 --seed 5 --out mock
    skyray train redshift/sdss_coarse_laptop --data mock --out bundle

DIR (default: SKYRAY_TEST_DATA) holds ``spectra_sdss/spectra.parquet``; scored are spectra that the
survey trusts (zwarning 0), against its answer. Rows without a quality bit are, for the networks,
those inside their domain; catastrophic is another class, or a redshift off by more than 0.015 in
ln (1 + z).
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
from skyray.families.base import Columns, DataInfo  # noqa: E402
from skyray.families.redshift.quality import SURVEY_DISAGREES  # noqa: E402
from skyray.records import Spectrum, trusted  # noqa: E402


def real_spectra(folder: Path) -> list[Spectrum]:
    """Return the real spectra that their survey trusts, on the grid of SDSS files."""
    path = folder / "spectra_sdss" / "spectra.parquet"
    records = fits.read(load_card("sdss_table"), [path])
    return [record for record in records if trusted(record.zwarning)]


def answers(found: Columns, info: DataInfo) -> dict[str, fits.Answers]:
    """Return what the networks, the fit and the rule answer."""
    coarse = np.array([info.coarse.get(name, name) for name in info.classes])
    chance = np.stack([found[f"p_{name}"] for name in info.classes], axis=1)
    clean = (found["quality"] & ~SURVEY_DISAGREES) == 0
    chosen = np.array([info.coarse.get(name, name) for name in found["label"]])
    return {
        "network only": fits.Answers(
            coarse[chance.argmax(axis=1)], found["redshift_network"],
            found["redshift_network_err"], found["in_domain"],
        ),
        "fit": fits.Answers(
            found["class_fit"].astype(str), found["redshift_fit"], found["redshift_fit_err"], clean
        ),
        "chosen": fits.Answers(chosen, found["redshift"], found["redshift_err"], clean),
    }  # fmt: skip


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
    records = real_spectra(Path(options.data))
    start = time.process_time()
    found = predictor.predict(columns_of(records, predictor.info))
    seconds = (time.process_time() - start) / len(records)
    truth = np.array([record.spectype for record in records])
    z = np.array([record.redshift for record in records])
    rows = [
        row for name, one in answers(found, predictor.info).items()
        for row in fits.scores(name, truth, z, one)
    ]  # fmt: skip
    taken = found["source_of_redshift"] == "network"
    rows.append(Row("redshift from the network", float(taken.mean()), ""))
    rows.append(Row("networks and fit: a spectrum", 1e3 * seconds, "ms", 1e3 * fits.REDROCK_SECONDS,
                    fits.REDROCK_SECONDS / seconds, 80, "one thread"))  # fmt: skip
    finish(f"Networks and templates on {len(records)} real spectra", rows, options.json)


if __name__ == "__main__":
    main()
