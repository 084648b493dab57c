"""Score a bundle on a dataset: metrics, figures and a page to look at."""

from __future__ import annotations

from typing import Any

import numpy as np

from skyray.bundles.bundle import Predictor, add_metrics, history_rows, read_bundle
from skyray.bundles.named import located
from skyray.bundles.registry import describe
from skyray.data.dataset import Dataset
from skyray.families.base import Columns
from skyray.inference.predict import KEY, VERSION, predict_dataset
from skyray.inference.results import Results, row_bytes
from skyray.pages.report import write_report
from skyray.runtime import outbox, places, tracking

# Of larger tables the figures, and scores of arrays, are made from a random part.
_DRAWN_ROWS, _DRAWN_BYTES = 20_000, 64 << 20
_NAMES = ("object_id", KEY, VERSION.name)


def evaluate(
    bundle: str,
    data: str,
    out: str,
    *,
    split: str | None = "test",
    workers: int | None = None,
    use_gpu: bool = False,
    figures: bool = True,
    progress: bool = False,
) -> dict[str, Any]:
    """Return the family's metrics of `bundle` on a dataset; write them with figures to `out`.

    Predictions joined with the truth are written by the workers to ``OUT/_predictions`` and deleted
    at the end; an interrupted evaluation goes on with them. Scores are computed from columns of one
    value a row, some 100 bytes an object; what needs arrays (features, thumbnails) and the figures
    come from at most 20,000 objects, chosen at random with a fixed seed.

    Parameters
    ----------
    split : str or None
        ``test`` by default; None scores every row (data the model has never seen).
    """
    bundle, dataset = located(bundle), Dataset.open(data)
    if not dataset.count(split):
        raise ValueError(f"{data}: split {split!r} holds no rows; nothing to score")
    predictor = Predictor.without_network(bundle)
    family = predictor.family
    results = predict_dataset(
        bundle, dataset, places.join(out, "_predictions"), split=split, training=True,
        keep=["object_id", *family.truth_columns()], workers=workers, use_gpu=use_gpu, replace=True,
        progress="evaluate" if progress else None,
    )  # fmt: skip
    drawn = drawn_rows(results)
    metrics = family.evaluate(drawn, predictor.calibration)
    if (shown := len(drawn["object_id"])) < results.rows:
        names = [name for name in results.narrow() if name not in _NAMES]
        metrics |= family.evaluate(results.columns(names), predictor.calibration)
    places.remove(results.uri)
    places.write_json(places.join(out, "metrics.json"), metrics)
    name = split or "all"
    content = read_bundle(bundle)
    own = dataset.manifest.fingerprint == content["data"]["fingerprint"]
    if own:
        add_metrics(bundle, name, metrics)
    if figures:
        drawn["history"] = history_rows(bundle)
        summary = {
            "bundle": bundle, "data": f"{data}, version {dataset.version}", "split": name,
            "objects": results.rows, "model version": predictor.version,
        }  # fmt: skip
        if shown < results.rows:
            summary["figures drawn from"] = f"{shown:,} objects, chosen at random"
        title = f"{family.name}: {content['recipe']['name']} on {dataset.card.name}"
        with places.local_folder(out) as folder:
            paths = family.figures(drawn, metrics, folder / "figures")
            write_report(folder, title, summary, paths, {"Scores": _numbers(metrics)}, {})
    _tell(bundle, content.get("run_id"), f"{dataset.card.name}/{name}", own, metrics, out, figures)
    return metrics


def drawn_rows(results: Results) -> Columns:
    """Return all columns of all rows, or of a random part of a large table, in order."""
    most = max(1, min(_DRAWN_ROWS, _DRAWN_BYTES // row_bytes(results.schema())))
    rows = np.arange(results.rows)
    if results.rows > most:
        rows = np.sort(np.random.default_rng(0).choice(results.rows, most, replace=False))
    return results.take(rows)


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    return {k: v for k, v in metrics.items() if isinstance(v, int | float)}


def _tell(bundle, run_id: str | None, where: str, own: bool, metrics, out, figures: bool) -> None:
    """Tell the bundle's run its scores and pages; those on its own test split have no prefix."""
    if run_id is None or not tracking.knows(run_id):
        return
    prefix = "" if own and where.endswith("/test") else f"{where}/"
    values = {f"{prefix}{k}": float(v) for k, v in _numbers(metrics).items()}
    tracking.log_metrics(tracking.tracking_uri(), run_id, values, step=0)
    names = ["metrics.json", *(["index.html", "figures"] if figures else [])]
    tracking.log_files(run_id, out, names, f"evaluation/{where}")
    if own:
        describe(bundle, run_id)
    outbox.send_or_say(tracking.tracking_uri(), run_id)
