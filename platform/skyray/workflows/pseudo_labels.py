"""Pseudo-labels: the surest predictions for one dataset join the training rows of another.

The joined dataset holds every row of the labelled one as it was. Rows that are added belong to the
training split only, carry the predicted class as their label and ``"pseudo_label": true`` in
``extra``: validation and test hold nothing but labels that people gave.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from skyray.bundles.bundle import Predictor
from skyray.config import ConfigError
from skyray.data.dataset import MANIFEST, Dataset, Manifest, Part
from skyray.data.parts import PartWriter, add_digests
from skyray.families.base import Columns
from skyray.inference.predict import collect, predict_dataset, table_to_columns
from skyray.runtime import places
from skyray.transforms.augment import augment

_ADDED = "parts/pseudo_labels.parquet"
_AUGMENT_SEED = 20190527


def surest(
    predicted_N: np.ndarray, probability_N: np.ndarray, classes: Sequence[str], per_class: int
) -> np.ndarray:
    """Return the rows of the `per_class` most probable objects of every class, int64, ascending.

    Equal probabilities go by the order of the rows. A class predicted less often gives all it has.
    """
    names, probability = np.asarray(predicted_N, str), np.asarray(probability_N, np.float64)
    chosen = []
    for name in classes:
        rows = np.flatnonzero(names == name)
        chosen.append(rows[np.argsort(-probability[rows], kind="stable")][:per_class])
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)


def predict_unlabelled(
    bundle: str, dataset: Dataset, split: str | None, *, workers: int | None, use_gpu: bool
) -> Columns:
    """Return object_id, label (what the dataset says, if anything) and predictions, in order.

    With the recipe's switch ``pseudo_labels`` as_published the images are augmented at random
    first, as in the released code.
    """
    predictor = Predictor.from_bundle(bundle, device="cpu")
    if predictor.family.recipe.switch("pseudo_labels") == "corrected":
        rows = predict_dataset(
            bundle, dataset, keep=["object_id", "label"], split=split, workers=workers,
            use_gpu=use_gpu,
        )  # fmt: skip
        return collect(rows)
    family = predictor.family
    generator = torch.Generator().manual_seed(_AUGMENT_SEED)
    batches: list[Columns] = []
    names = list(dict.fromkeys([*family.columns(training=False), "object_id", "label"]))
    for table in dataset.iter_tables(names, split, rows=256):
        columns = table_to_columns(table)
        inputs = family.transform(columns, training=False)
        image = torch.as_tensor(inputs["image"]).float()
        changed = augment(image, family.recipe.augment, generator).round().to(torch.uint8)
        output = family.predict(
            predictor.model, {"image": changed.numpy()}, predictor.calibration, predictor.tensors
        )
        output["label_pred"] = output.pop("label")
        batches.append({"object_id": columns["object_id"], "label": columns["label"], **output})
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def join_pseudo_labels(
    labelled: Dataset, unlabelled: Dataset, labels: Mapping[str, str], out: str
) -> Dataset:
    """Write `labelled` with the objects of `unlabelled` named in `labels` as training rows.

    Parameters
    ----------
    labels : mapping
        object_id of `unlabelled` → class.
    out : str
        Folder or URI of the new dataset.

    Raises
    ------
    ConfigError
        If the two datasets' rows differ in kind, or an object occurs in validation or test of
        `labelled`: it would be trained on and judged by.
    """
    if labelled.schema.names != unlabelled.schema.names or any(
        labelled.schema.field(n).type != unlabelled.schema.field(n).type
        for n in labelled.schema.names
    ):
        raise ConfigError(
            f"{unlabelled.uri}: expected rows as in {labelled.uri} (bands, image_size), found "
            f"{unlabelled.card.bands} of {unlabelled.card.image_size} px; ingest both alike"
        )
    parts: list[Part] = []
    for part in labelled.manifest.parts:
        content = places.read_bytes(places.join(labelled.uri, part.path))
        places.write_bytes(places.join(out, part.path), content)
        parts.append(part)
    writer = PartWriter(places.join(out, _ADDED), labelled.schema)
    judged = _judged_keys(labelled)
    for table in unlabelled.iter_tables():
        writer.add_table(_as_training(table, labels, judged))
    if writer.close():
        parts.append(writer.part(_ADDED))
    manifest = _manifest(labelled, parts, writer.rows)
    places.write_json(places.join(out, MANIFEST), manifest.snapshot())
    return Dataset.open(out)


def _judged_keys(dataset: Dataset) -> set[str]:
    keys: set[str] = set()
    for split in ("validation", "test"):
        keys |= set(dataset.to_table(["object_key"], split)["object_key"].to_pylist())
    return keys


def _as_training(table: pa.Table, labels: Mapping[str, str], judged: set[str]) -> pa.Table:
    """Return the rows that have a label, as training rows that carry it."""
    table = table.filter(pc.is_in(table["object_id"], pa.array(list(labels), pa.string())))
    if leaks := judged & set(table["object_key"].to_pylist()):
        raise ConfigError(
            f"unlabelled data: {len(leaks)} objects are in validation or test of the labelled "
            f"ones, such as {sorted(leaks)[:3]}; leave them out"
        )
    ids = table["object_id"].to_pylist()
    extra = [
        json.dumps({**json.loads(text or "{}"), "pseudo_label": True}, sort_keys=True)
        for text in table["extra"].to_pylist()
    ]
    changed = {
        "label": [labels[name] for name in ids],
        "split": ["train"] * len(ids),
        "extra": extra,
        # one object may be seen by both surveys under one id
        "object_id": [f"pseudo/{name}" for name in ids],
    }
    for name, values in changed.items():
        position = table.schema.get_field_index(name)
        table = table.set_column(position, table.schema.field(name), pa.array(values, pa.string()))
    return table


def _manifest(labelled: Dataset, parts: Sequence[Part], added: int) -> Manifest:
    counts: dict[str, dict[str, int]] = {}
    for part in parts:
        for split, labels in part.counts.items():
            here = counts.setdefault(split, {})
            for label, rows in labels.items():
                here[label] = here.get(label, 0) + rows
    digest = add_digests(*(part.content_digest for part in parts))
    before = labelled.manifest
    fingerprint = hashlib.sha256(f"{before.fingerprint}+{digest}".encode()).hexdigest()
    return before.model_copy(
        update={
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "counts": counts,
            "rows_read": before.rows_read + added,
            "rows_written": before.rows_written + added,
            "fingerprint": fingerprint[: len(before.fingerprint)],
            "parts": list(parts),
        }
    )
