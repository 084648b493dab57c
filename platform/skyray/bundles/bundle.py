"""Bundles: what a training leaves for use, and the one predictor that uses them.

Layout::

    BUNDLE/weights.safetensors     model weights
    BUNDLE/calibration.safetensors tensors of the calibration (in-domain gate …)
    BUNDLE/bundle.json             recipe, data, calibration, provenance, metrics
    BUNDLE/MODEL_CARD.md           the same for people
    BUNDLE/history.jsonl           one line an epoch

Batch jobs and HTTP replicas call the same `Predictor`, so that preprocessing cannot differ.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from skyray.bundles.named import located
from skyray.data.dataset import Dataset
from skyray.data.rows import columns_of
from skyray.families.base import Columns, DataInfo, Family, Tensors, load_family
from skyray.records import Record
from skyray.runtime import places

BUNDLE_VERSION = 1
BUNDLE_FILE = "bundle.json"
WEIGHTS_FILE = "weights.safetensors"
CALIBRATION_FILE = "calibration.safetensors"
HISTORY_FILE = "history.jsonl"
CARD_FILE = "MODEL_CARD.md"


class NotABundle(ValueError):
    """There is no bundle at a place, or one this version cannot read."""


def write_bundle(
    uri: str,
    family: Family,
    model: torch.nn.Module,
    calibration: dict[str, Any],
    tensors: Tensors,
    provenance: dict[str, Any],
    history: bytes = b"",
) -> None:
    """Write a bundle; ``bundle.json`` comes last, so that a half-written one is none."""
    places.remove(places.join(uri, BUNDLE_FILE))  # of a bundle that was there before
    weights = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    places.write_bytes(places.join(uri, WEIGHTS_FILE), save_tensors(weights))
    kept = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    places.write_bytes(places.join(uri, CALIBRATION_FILE), save_tensors(kept))
    places.write_bytes(places.join(uri, HISTORY_FILE), history)
    content = {
        "bundle_version": BUNDLE_VERSION,
        "family": family.name,
        "recipe": family.recipe.snapshot(),
        "data": family.data.to_dict(),
        "input_columns": family.columns(training=False),
        "output": [vars(column) for column in family.output_columns()],
        "calibration": calibration,
        "metrics": {},
        **provenance,
    }
    places.write_bytes(places.join(uri, CARD_FILE), model_card(content).encode())
    places.write_json(places.join(uri, BUNDLE_FILE), content)


def read_bundle(uri: str | os.PathLike) -> dict[str, Any]:
    """Return the content of ``bundle.json`` at a place, or of a bundle named ``models:/…``.

    Raises
    ------
    NotABundle
        If there is none, or its version is not this version's.
    """
    uri = located(uri)
    place = places.join(uri, BUNDLE_FILE)
    if not places.exists(place):
        raise NotABundle(f"{uri}: not a bundle: no {BUNDLE_FILE}")
    content = places.read_json(place)
    if content.get("bundle_version") != BUNDLE_VERSION:
        raise NotABundle(
            f"{place}: bundle_version: expected {BUNDLE_VERSION}, "
            f"found {content.get('bundle_version')!r}"
        )
    return content


def bundle_digest(content: dict[str, Any]) -> str:
    """Return a digest of what a bundle answers with: its content without scores added later."""
    kept = {name: value for name, value in content.items() if name != "metrics"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def add_metrics(uri: str, split: str, metrics: dict[str, Any]) -> None:
    """Record the metrics of one split in a bundle and renew its model card."""
    content = read_bundle(uri)
    content["metrics"][split] = metrics
    places.write_bytes(places.join(uri, CARD_FILE), model_card(content).encode())
    places.write_json(places.join(uri, BUNDLE_FILE), content)


def model_card(content: dict[str, Any]) -> str:
    """Return a bundle's model card (Markdown)."""
    data, recipe = content["data"], content["recipe"]
    lines = [
        f"# {content['family']}: {recipe['name']}",
        "",
        f"- version: `{content.get('version', '')}`",
        f"- trained on card `{data['card']}`, dataset fingerprint `{data['fingerprint']}`",
        f"- classes: {', '.join(data['classes'])}",
        f"- mode: {recipe['mode']}, seed {recipe['seed']}",
        f"- commit: `{content.get('git_commit', '')}`",
        "",
        "## Output",
        "",
        "| column | unit | meaning |",
        "| --- | --- | --- |",
        *(f"| {c['name']} | {c['unit']} | {c['description']} |" for c in content["output"]),
        "",
        "## Training rows",
        "",
        "| split | class | rows |",
        "| --- | --- | --- |",
        *(
            f"| {split} | {label or '(none)'} | {count} |"
            for split, counts in sorted(data["counts"].items())
            for label, count in sorted(counts.items())
        ),
        "",
    ]
    for split, metrics in content["metrics"].items():
        numbers = {k: v for k, v in metrics.items() if isinstance(v, int | float)}
        lines += [f"## Scores on {split}", "", "| score | value |", "| --- | --- |"]
        lines += [f"| {name} | {value:.5g} |" for name, value in numbers.items()] + [""]
    return "\n".join(lines)


def trained_model(uri: str | os.PathLike, family: Family) -> torch.nn.Module:
    """Return a bundle's model as it was trained, in evaluation mode, on the processor."""
    model = family.build_model()
    model.load_state_dict(load_tensors(places.read_bytes(places.join(uri, WEIGHTS_FILE))))
    return model.eval()


def check_layout(uri: str | os.PathLike, dataset: Dataset) -> None:
    """Refuse a dataset whose pixels or features are not those a bundle was trained on.

    Raises
    ------
    ValueError
    """
    expected, found = read_bundle(uri)["data"], dataset.info().to_dict()
    for name in ("record", "grid", "bands", "image_size", "features"):
        if name in expected and expected[name] != found[name]:
            raise ValueError(
                f"{dataset.uri}: {name}: the bundle expects {expected[name]}, found "
                f"{found[name]}; ingest the files with card {expected['card']!r}"
            )


class Predictor:
    """A bundle ready to answer.

    Use `Predictor.from_bundle`. `predict` takes record columns on the dataset's grid,
    `predict_records` records as readers yield them; both run the same transform and model.
    """

    def __init__(
        self,
        family: Family,
        model: torch.nn.Module | None,
        calibration: dict[str, Any],
        tensors: Tensors,
        content: dict[str, Any],
    ):
        self.family, self.model = family, model
        self.calibration, self.tensors, self.content = calibration, tensors, content

    @classmethod
    def from_bundle(cls, uri: str | os.PathLike, device: str | None = None) -> Predictor:
        """Load a bundle by place or name onto a device (default: CUDA where there is one).

        Raises
        ------
        NotABundle
            If nothing usable is there.
        """
        uri = located(uri)
        made = cls.without_network(uri)
        model = trained_model(uri, made.family)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        made.model = made.family.optimise_for_inference(model.to(device)).to(device)
        return made

    @classmethod
    def without_network(cls, uri: str | os.PathLike) -> Predictor:
        """Load what workers beside the network need: transform, calibration, post-processing."""
        uri = located(uri)
        content = read_bundle(uri)
        family_type = load_family(content["family"])
        recipe = family_type.recipe_type.load(content["recipe"])
        family = family_type(recipe, DataInfo.from_dict(content["data"]))
        tensors = load_tensors(places.read_bytes(places.join(uri, CALIBRATION_FILE)))
        return cls(family, None, content["calibration"], tensors, content)

    @property
    def info(self) -> DataInfo:
        return self.family.data

    @property
    def version(self) -> str:
        """What predictions carry as ``model_version``."""
        return str(self.content.get("version", ""))

    def describe(self) -> dict[str, Any]:
        """Return what a user of the model wants to know, as JSON types."""
        names = ("family", "version", "output", "metrics", "git_commit", "versions", "created")
        shown = {name: self.content[name] for name in names if name in self.content}
        return {**shown, "recipe": self.content["recipe"], "data": self.content["data"]}

    def predict(self, columns: Columns, training: bool = False, detail: bool = False) -> Columns:
        """Return the output columns for record columns (see `Family.columns`), row by row.

        With `training`, truth columns are expected too and families add what scoring needs; with
        `detail`, the arrays of `Family.detail_columns` come too.
        """
        return self.finish(self.infer(self.inputs(columns, training)), detail)

    def inputs(self, columns: Columns, training: bool = False) -> Columns:
        """Return what `infer` takes: the rows of `Family.transform` and of `answer_inputs`."""
        made = self.family.transform(columns, training=training)
        return {**made, **self.family.answer_inputs(columns)}

    def infer(self, inputs: Columns) -> Columns:
        """Return what `finish` needs for transformed inputs; the one step that has the network."""
        return self.family.infer(self.model, inputs, self.calibration, self.tensors)

    def finish(self, found: Columns, detail: bool = False) -> Columns:
        """Return the output columns from what `infer` gave; `detail` as in `predict`."""
        output = self.family.finish(found, self.calibration, self.tensors)
        if not detail:
            for name in self.family.detail_columns():
                output.pop(name, None)
        rows = len(next(iter(output.values())))
        output["model_version"] = np.full(rows, self.version, dtype=object)
        return output

    def predict_records(self, records: Sequence[Record], detail: bool = False) -> pa.Table:
        """Return a table of predictions with ``object_id`` first; `detail` as in `predict`.

        Raises
        ------
        InvalidRecord
            For a record that cannot be used.
        """
        output = self.predict(columns_of(records, self.info), detail=detail)
        table = {"object_id": [record.object_id for record in records]}
        lists = {name: list(output[name]) for name in self.family.detail_columns() if detail}
        return pa.table({**table, **output, **lists})


def bundle_version(recipe_digest: str, fingerprint: str, run_id: str) -> str:
    """Return a version that names recipe, data and run."""
    return f"{recipe_digest[:8]}-{fingerprint[:8]}-{run_id[:8]}"


def history_rows(uri: str) -> list[dict[str, Any]]:
    """Return a bundle's training history, one dict an epoch."""
    text = places.read_bytes(places.join(located(uri), HISTORY_FILE)).decode()
    return [json.loads(line) for line in text.splitlines()]
