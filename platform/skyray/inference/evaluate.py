"""Score a bundle on a dataset: metrics, figures and a page to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from skyray.bundles.bundle import Predictor, add_metrics, history_rows, read_bundle
from skyray.data.dataset import Dataset
from skyray.inference.predict import collect, predict_dataset
from skyray.pages.report import write_report
from skyray.runtime import places, tracking


def evaluate(
    bundle: str,
    data: str,
    out: str,
    *,
    split: str | None = "test",
    workers: int | None = None,
    figures: bool = True,
) -> dict[str, Any]:
    """Return the family's metrics of `bundle` on a dataset; write them with figures to `out`.

    Parameters
    ----------
    split : str or None
        ``test`` by default; None scores every row (data the model has never seen).
    """
    dataset = Dataset.open(data)
    predictor = Predictor.from_bundle(bundle, device="cpu")
    family = predictor.family
    keep = list(dict.fromkeys(["object_id", *family.truth_columns()]))
    rows = predict_dataset(bundle, dataset, keep=keep, split=split, training=True, workers=workers)
    table = collect(rows)
    if not table:
        raise ValueError(f"{data}: split {split!r} holds no rows; nothing to score")
    metrics = family.evaluate(table, predictor.calibration)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    places.write_json(places.join(out, "metrics.json"), metrics)
    name = split or "all"
    content = read_bundle(bundle)
    if dataset.manifest.fingerprint == content["data"]["fingerprint"]:
        add_metrics(bundle, name, metrics)
    _log(content.get("run_id"), f"{dataset.card.name}/{name}", metrics)
    if figures:
        table["history"] = history_rows(bundle)
        paths = family.figures(table, metrics, folder / "figures")
        summary = {
            "bundle": bundle, "data": data, "split": name, "objects": len(table["object_id"]),
            "model version": predictor.version,
        }  # fmt: skip
        title = f"{family.name}: {content['recipe']['name']} on {dataset.card.name}"
        write_report(folder, title, summary, paths, {"Scores": _numbers(metrics)}, {})
    return metrics


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    return {k: v for k, v in metrics.items() if isinstance(v, int | float)}


def _log(run_id: str | None, prefix: str, metrics: dict[str, Any]) -> None:
    if run_id is None or not tracking.has_run(run_id):
        return
    values = {f"{prefix}/{k}": float(v) for k, v in _numbers(metrics).items()}
    tracking.log_metrics(tracking.tracking_uri(), run_id, values, step=0)
