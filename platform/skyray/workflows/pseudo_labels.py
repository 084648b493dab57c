"""Pseudo-labels: the surest predictions for one dataset join the training rows of another.

The joined dataset holds every row of the labelled one as it was. Rows that are added belong to the
training split only, carry the predicted class as their label and ``"pseudo_label": true`` in
``extra``: validation and test hold nothing but labels that people gave.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import torch

from skyray.bundles.bundle import Predictor
from skyray.config import ConfigError
from skyray.data.dataset import QUARANTINE, RECORDS, Dataset, table_to_columns
from skyray.data.outcomes import DIGEST, Job, records_schema, row_digest
from skyray.data.publish import create_dataset, publish
from skyray.data.sky_groups import near_positions
from skyray.data.sources import FileSource
from skyray.data.tables import commit_append, open_table, write_fragments
from skyray.families.base import Columns
from skyray.inference.predict import KEY, predict_dataset
from skyray.inference.results import Results, on_workers, piece_rows
from skyray.runtime import places
from skyray.transforms.augment import AugmentConfig, augment

_AUGMENT_SEED = 20190527
_PREFIX = "pseudo/"  # one object may be seen by both surveys under one id
_ADDED_AT_ONCE = 256


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


def surest_rows(results: Results, classes: Sequence[str], per_class: int) -> np.ndarray:
    """Return `surest` of a results table, piece by piece: only the surest so far are held."""
    names, probability = np.zeros(0, object), np.zeros(0)
    rows = np.zeros(0, np.int64)
    for number, table in enumerate(results.tables(["label_pred", "probability"])):
        new = table_to_columns(table)
        names = np.concatenate([names, new["label_pred"]])
        probability = np.concatenate([probability, new["probability"]])
        rows = np.concatenate([rows, number * results.size + np.arange(table.num_rows)])
        kept = surest(names, probability, classes, per_class)
        names, probability, rows = names[kept], probability[kept], rows[kept]
    return rows


def predict_unlabelled(
    bundle: str, dataset: Dataset, split: str | None, out: str, *, workers: int | None,
    use_gpu: bool,
) -> Results:  # fmt: skip
    """Write object_id, label (what the dataset says, if anything) and predictions to `out`.

    With the recipe's switch ``pseudo_labels`` as_published the images are augmented at random
    first, as in the released code.
    """
    recipe = Predictor.without_network(bundle).family.recipe
    published = recipe.switch("pseudo_labels") == "as_published"
    return predict_dataset(
        bundle, dataset, out, keep=["object_id", "label"], split=split, workers=workers,
        use_gpu=use_gpu, replace=True, change=partial(_augmented, recipe.augment) if published
        else None, note={"images": "augmented"} if published else {},
    )  # fmt: skip


def _augmented(how: AugmentConfig, piece: int, inputs: Columns) -> Columns:
    generator = torch.Generator().manual_seed(_AUGMENT_SEED + piece)
    image = augment(torch.as_tensor(inputs["image"]).float(), how, generator)
    return {**inputs, "image": image.round().to(torch.uint8).numpy()}


def join_pseudo_labels(
    labelled: Dataset, unlabelled: Dataset, labels: Mapping[str, str], out: str
) -> Dataset:
    """Write `labelled` with the rows of `unlabelled` named in `labels` as training rows.

    Workers copy the rows from table to table; Ray must be running.

    Parameters
    ----------
    labels : mapping
        observation_id of `unlabelled` → class.
    out : str
        Folder or URI of the new dataset.

    Raises
    ------
    ConfigError
        If the two datasets' rows differ in kind, or an object occurs in validation or test of
        `labelled`: it would be trained on and judged by.
    """
    _check_alike(labelled, unlabelled)
    _check_not_judged(labelled, unlabelled, labels)
    source = FileSource(labelled.card, [])
    cuts = labelled.manifest.apply_cuts
    job = Job(labelled.card, source, places.absolute(out), cuts, keys_final=True)
    create_dataset(job)
    names, step = sorted(labels), piece_rows(labelled.schema, labelled.schema.names, 1 << 40)
    starts = [*range(0, labelled.count(), step)]
    copies = len(starts)
    starts += range(0, len(names), _ADDED_AT_ONCE)

    def copy(task: int) -> Iterator[pa.Table]:
        if task == len(starts):
            yield _written(job, QUARANTINE, _refusals(labelled))
        elif task < copies:
            rows = labelled.table.to_table(offset=starts[task], limit=step)
            yield _written(job, RECORDS, rows.cast(records_schema(job.card)))
        else:
            rows = _as_training(unlabelled, names, starts[task], labels)
            yield _written(job, RECORDS, rows.cast(records_schema(job.card)))

    written = pa.concat_tables(on_workers(len(starts) + 1, copy)).to_pylist()
    for table in (QUARANTINE, RECORDS):
        files = [row["file"] for row in written if row["table"] == table]
        commit_append(places.join(job.out, table), files)
    return publish(job)


def _written(job: Job, table: str, rows: pa.Table) -> pa.Table:
    files = write_fragments(places.join(job.out, table), rows)
    return pa.table({"table": [table] * len(files), "file": pa.array(files, pa.string())})


def _refusals(dataset: Dataset) -> pa.Table:
    place = places.join(dataset.uri, QUARANTINE)
    return open_table(place, dataset.manifest.quarantine_version).to_table()


def _check_alike(labelled: Dataset, unlabelled: Dataset) -> None:
    if labelled.schema.names != unlabelled.schema.names or any(
        labelled.schema.field(n).type != unlabelled.schema.field(n).type
        for n in labelled.schema.names
    ):
        raise ConfigError(
            f"{unlabelled.uri}: expected rows as in {labelled.uri} (bands, image_size), found "
            f"{unlabelled.card.bands} of {unlabelled.card.image_size} px; ingest both alike"
        )


def _check_not_judged(labelled: Dataset, unlabelled: Dataset, labels: Mapping[str, str]) -> None:
    """Refuse objects that are judged by: of the same key, or near by on the sky."""
    asked = unlabelled.find(list(labels), ["object_key", "ra", "dec"])
    keys = set(asked["object_key"].to_pylist())
    known = labelled.find(sorted(keys), ["split"], key="object_key").to_pylist()
    leaks = {row["object_key"] for row in known if row["split"] != "train"}
    if labelled.card.object_key.by == "sky":
        judged = labelled.table.to_table(["object_key", "ra", "dec"], filter="split != 'train'")
        near = near_positions(asked, judged, labelled.card.object_key.radius_arcsec)
        leaks |= set(judged["object_key"].take(pa.array(near)).to_pylist())
    if leaks := sorted(leaks):
        raise ConfigError(
            f"unlabelled data: {len(leaks)} objects are in validation or test of the labelled "
            f"ones, such as {leaks[:3]}; leave them out"
        )


def _as_training(
    dataset: Dataset, names: Sequence[str], start: int, labels: Mapping[str, str]
) -> pa.Table:
    """Return some of the named rows as training rows that carry their label."""
    table = dataset.find(names[start : start + _ADDED_AT_ONCE], dataset.schema.names)
    table = table.select(dataset.schema.names).sort_by(KEY)
    ids = table[KEY].to_pylist()
    extra = [
        json.dumps({**json.loads(text or "{}"), "pseudo_label": True}, sort_keys=True)
        for text in table["extra"].to_pylist()
    ]
    changed = {
        "label": [labels[name] for name in ids],
        "split": ["train"] * len(ids),
        "extra": extra,
        KEY: [f"{_PREFIX}{name}" for name in ids],
        "object_id": [f"{_PREFIX}{name}" for name in table["object_id"].to_pylist()],
    }
    for name, values in changed.items():
        position = table.schema.get_field_index(name)
        table = table.set_column(position, table.schema.field(name), pa.array(values, pa.string()))
    columns = table_to_columns(table)
    rows = [{name: values[i] for name, values in columns.items()} for i in range(len(ids))]
    came_from = {  # the ingest's record of where a row came from, whole when all of them are there
        "ingest_file": pa.array([f"{dataset.uri}#pseudo-labels"] * len(ids)),
        "ingest_stamp": pa.array([dataset.manifest.fingerprint] * len(ids)),
        "ingest_unit": pa.array([0] * len(ids), pa.int32()),
        "ingest_row": pa.array(range(start, start + len(ids)), pa.int32()),
        "ingest_rows": pa.array([len(names)] * len(ids), pa.int32()),
        DIGEST.name: pa.array([row_digest(row) for row in rows], DIGEST.type),
    }
    for name, values in came_from.items():
        table = table.append_column(name, values)
    return table
