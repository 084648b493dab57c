"""A model trained on mock spectra only, scored on real ones: with and without external templates.

    python benchmarks/mock_to_real.py --spectra TABLE [--templates DIR] [--objects N] [--json FILE]

TABLE holds real SDSS/BOSS spectra under the survey's own column names (card ``sdss_table``), for
example the output of a selection from the SDSS archive; only spectra the survey trusts (zwarning 0)
are scored. Without --templates only the built-in ones are tried.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "benchmarks")]

from report import Row, finish  # noqa: E402

from skyray.cards import load_card  # noqa: E402
from skyray.data.ingest import ingest  # noqa: E402
from skyray.data.simulate import simulate  # noqa: E402
from skyray.families.base import load_recipe  # noqa: E402
from skyray.runtime.session import ray_session  # noqa: E402

RECIPE = "redshift/sdss_coarse_laptop"
MOST_DELTA_Z = 0.01


def trained_on_mocks(
    templates: str | None, folder: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Simulate, train and score on the real spectra; return the metrics."""
    from skyray.inference.evaluate import evaluate
    from skyray.training.train import train

    name = "external" if templates else "built-in"
    mock, bundle = folder / f"mock-{name}", folder / f"bundle-{name}"
    card = load_card("sdss_coarse")
    simulate(card, options.objects, options.seed, str(mock), templates=templates)
    recipe = load_recipe(RECIPE).override([f"seed={options.seed}", *options.set])
    train(recipe, str(mock), str(bundle), workers=options.workers, threads=options.threads)
    evaluate(str(bundle), str(mock), str(folder / f"scores-mock-{name}"))
    real = folder / "real"
    return evaluate(str(bundle), str(real), str(folder / f"scores-real-{name}"), split=None)


def rows_of(name: str, metrics: dict[str, Any]) -> list[Row]:
    """Return the figures of one model."""
    coarse = metrics["coarse"]
    routed = metrics["redshift"]["true_class"]
    rows = [
        Row(f"{name}: accuracy, 3 classes", coarse["accuracy"], "", target=0.90,
            note=f"{coarse['rows']} spectra"),
        Row(f"{name}: balanced accuracy", coarse["balanced_accuracy"], "", target=0.85),
    ]  # fmt: skip
    for group in ("all", "GALAXY", "QSO"):
        scores = routed[group]
        rows.append(
            Row(f"{name}: median Δz/(1+z), true-class routing, {group}",
                scores["delta_z_median"], "", target=MOST_DELTA_Z if group == "all" else None,
                note=f"{scores['rows']} spectra; lower is better")
        )  # fmt: skip
    end_to_end = metrics["redshift"]["end_to_end"]["all"]["delta_z_median"]
    rows.append(Row(f"{name}: median Δz/(1+z), end to end", end_to_end, ""))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spectra", help="table of real SDSS spectra")
    parser.add_argument("--templates", help="folder of external templates")
    parser.add_argument("--objects", type=int, default=12000, help="mock spectra to train on")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, help="CPU threads a worker; default: all cores")
    parser.add_argument("--set", action="append", default=[], help="change the recipe: key=value")
    parser.add_argument("--out", type=Path, help="keep datasets, bundles and figures here")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not options.spectra:
        print("skipped: needs real spectra, give --spectra TABLE")
        return
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.out or Path(temporary)).absolute()
        os.environ.setdefault("SKYRAY_HOME", str(folder / "home"))
        with ray_session():
            ingest(load_card("sdss_table"), [options.spectra], str(folder / "real"))
            for templates in [options.templates, None] if options.templates else [None]:
                name = "external templates" if templates else "built-in templates"
                rows += rows_of(name, trained_on_mocks(templates, folder, options))
    finish("Trained on mocks, scored on real SDSS spectra", rows, options.json)


if __name__ == "__main__":
    main()
