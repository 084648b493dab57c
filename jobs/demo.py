"""The main job end to end on one machine: survey files in, catalogue and endpoint out.

A mock SDSS survey is written as spec files, ingested, trained on two workers, scored, predicted
into a catalogue, and one of its files is sent to the HTTP endpoint. With --files, your own SDSS or
BOSS spec files go through the same model into a catalogue of their own. Every step is the library's
real one.

    python jobs/demo.py --out demo [--files DIR] [--objects N]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

CARD = "sdss_dr16"
RECIPE = "redshift/sdss_dr16_laptop"


class Steps:
    """Announces each step and remembers how long it took."""

    def __init__(self):
        self.rows: list[tuple[str, str, float]] = []

    def __call__(self, name: str, work, describe=lambda _: ""):
        from skyray.runtime.progress import tell

        tell(f"\n── {len(self.rows) + 1}. {name}")
        started = time.monotonic()
        result = work()
        self.rows.append((name, describe(result), time.monotonic() - started))
        return result


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for all results")
    parser.add_argument("--files", help="folder or file of your own SDSS/BOSS spec-*.fits")
    parser.add_argument("--objects", type=int, default=2600, help="objects of the mock survey")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="training workers")
    parser.add_argument("--port", type=int, default=8000)
    return parser.parse_args()


def ask_endpoint(bundle: Path, survey_file: Path, port: int) -> tuple[int, dict[str, Any]]:
    """Start the service, send it one survey file and return status and answer."""
    from skyray.inference.serving import load_service, running_service

    config = load_service(ROOT / "serve" / "config.yaml", {"bundle": str(bundle)}, port=port)
    with running_service(config) as url:
        request = urllib.request.Request(
            f"{url}/predict?name={survey_file.name}",
            data=survey_file.read_bytes(),
            headers={"Content-Type": "application/fits"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)


def run(options: argparse.Namespace, steps: Steps) -> None:
    from skyray.cards import load_card
    from skyray.data.ingest import ingest
    from skyray.data.simulate import simulate
    from skyray.families.base import load_recipe
    from skyray.inference.evaluate import evaluate
    from skyray.inference.predict import predict
    from skyray.runtime import noise, places
    from skyray.runtime.progress import display
    from skyray.runtime.session import ray_session

    out = options.out
    card = load_card(CARD)
    survey, dataset, bundle = out / "survey", out / "dataset", out / "bundle"
    with display(), noise.kept("demo"), ray_session():
        from skyray.training.train import train

        steps(
            f"simulate {options.objects} objects as {card.name} spec files",
            lambda: simulate(card, options.objects, options.seed, None, as_files=str(survey)),
            lambda _: str(survey),
        )
        steps(
            "ingest the files",
            lambda: ingest(card, [str(survey)], str(dataset)),
            lambda d: f"{d.manifest.rows_written} objects, {d.manifest.rows_quarantined} refused",
        )
        steps(
            f"train classifier and redshift ensembles on {options.workers} workers",
            lambda: train(load_recipe(RECIPE), str(dataset), str(bundle), workers=options.workers),
            lambda r: f"version {r.version}",
        )
        scores = steps(
            "evaluate on objects the model has not seen",
            lambda: evaluate(str(bundle), str(dataset), str(out / "evaluation")),
            summary,
        )
        steps(
            "predict the whole survey into a catalogue",
            lambda: predict(str(bundle), [str(dataset)], str(out)),
            lambda r: f"{r.rows} objects: {places.name(r.files[-1])}",
        )
        if options.files:
            steps(
                f"predict your files in {options.files}",
                lambda: predict(str(bundle), [options.files], str(out / "own")),
                lambda r: f"{r.rows} objects, {r.quarantined} refused (see skyray inspect)",
            )
        first = next(survey.rglob("spec-*.fits"))
        status, answer = steps(
            f"ask the endpoint about {first.name}",
            lambda: ask_endpoint(bundle, first, options.port),
            lambda r: f"HTTP {r[0]}",
        )
    found = answer["predictions"][0]
    print(json.dumps({name: found[name] for name in ANSWER if name in found}, indent=2))
    close(options, steps, scores, status)


ANSWER = (  # of some thirty fields
    "object_id", "label", "probability", "redshift", "redshift_err", "source_of_redshift",
    "quality_words", "class_survey", "redshift_survey", "sigmas_from_survey",
)  # fmt: skip
SUMMARY = {
    "accuracy": "accuracy, 13 classes",
    "coarse_accuracy": "accuracy, star/galaxy/quasar",
    "end_to_end_galaxy_delta_z_median": "galaxies: median Δz/(1+z)",
    "end_to_end_qso_delta_z_median": "quasars: median Δz/(1+z)",
    "end_to_end_coverage_1sigma": "redshifts within 1σ",
}


def summary(scores: dict[str, Any]) -> str:
    """Return the main scores, one a line."""
    return "\n".join(f"{text}: {scores[key]:.3g}" for key, text in SUMMARY.items() if key in scores)


def close(options, steps: Steps, scores: dict[str, Any], status: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("step", "result", "seconds", title="skyray demo")
    for name, result, seconds in steps.rows:
        table.add_row(name, result, f"{seconds:.0f}")
    table.add_row("", "all steps", f"{sum(row[2] for row in steps.rows):.0f}")
    console = Console()
    console.print(table)
    out = options.out
    print(f"Look at   {out}/evaluation/index.html   scores and figures")
    print(f"          {out}/catalogue.fits          one row an object; parts in catalogue/")
    print("Ask it    make serve                    http://127.0.0.1:8000/")
    if status != 200:
        sys.exit(f"endpoint: expected HTTP 200, found {status}")


def main() -> None:
    options = parse()
    options.out = options.out.absolute()
    os.environ.setdefault("SKYRAY_HOME", str(options.out / "home"))
    run(options, Steps())


if __name__ == "__main__":
    main()
