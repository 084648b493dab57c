"""Predict over a dataset or survey files: a Ray Data actor pool, and a catalogue at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from tqdm import tqdm

from skyray.bundles.bundle import Predictor, read_bundle
from skyray.data.dataset import MANIFEST, Dataset, table_to_columns
from skyray.families.base import Columns, OutputColumn
from skyray.inference.catalogue import CatalogueWriter
from skyray.runtime import places

_POSITION = (
    OutputColumn("object_id", "str", "", "identifier of the observation in its survey"),
    OutputColumn("ra", "float64", "deg", "right ascension, ICRS"),
    OutputColumn("dec", "float64", "deg", "declination, ICRS"),
)
IDENTITY = {
    "spectrum": (
        *_POSITION,
        OutputColumn("snr", "float64", "", "median signal-to-noise ratio per pixel"),
    ),
    "cutout": (*_POSITION, OutputColumn("survey", "str", "", "survey the image comes from")),
    "alert": (
        *_POSITION,
        OutputColumn("object_key", "str", "", "the survey's name of what varies"),
        OutputColumn("jd", "float64", "d", "Julian date of the exposure"),
        OutputColumn("fid", "int32", "", "the survey's number of the band"),
    ),
}
VERSION = OutputColumn("model_version", "str", "", "recipe, data and run of the model")
SOURCE = OutputColumn("source", "str", "", "survey file the object came from")
_BATCH = 256


class BatchPredictor:
    """One actor of the pool: loads the bundle once and answers batches."""

    def __init__(self, bundle: str, keep: Sequence[str], training: bool, threads: int):
        import torch

        torch.set_num_threads(threads)
        self.predictor = Predictor.from_bundle(bundle)
        self.keep, self.training = list(keep), training

    def __call__(self, batch: dict[str, np.ndarray]) -> Columns:
        output = self.predictor.predict(batch, training=self.training)
        kept = {name: batch[name] for name in self.keep}
        clashes = {name: f"{name}_pred" for name in output if name in kept}
        return kept | {clashes.get(name, name): values for name, values in output.items()}


def predict_dataset(
    bundle: str,
    dataset: Dataset,
    *,
    keep: Sequence[str],
    split: str | None = None,
    training: bool = False,
    workers: int | None = None,
    use_gpu: bool = False,
) -> ray.data.Dataset:
    """Return the predictions of a dataset as a lazy Ray dataset beside the columns `keep`.

    An output column of the same name as a kept one gets the suffix ``_pred``.
    """
    _check_layout(bundle, dataset)
    predictor = Predictor.from_bundle(bundle, device="cpu")
    needed = [*predictor.family.columns(training), *keep]
    pool = workers or max(1, int(ray.cluster_resources().get("GPU" if use_gpu else "CPU", 1)) // 2)
    return dataset.to_ray(list(dict.fromkeys(needed)), split).map_batches(
        BatchPredictor,
        fn_constructor_args=(bundle, keep, training, 1),
        batch_size=_BATCH,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=pool),
        num_cpus=1,
        num_gpus=1 if use_gpu else 0,
    )


def _check_layout(bundle: str, dataset: Dataset) -> None:
    """Refuse a dataset whose pixels or features are not those the bundle was trained on."""
    expected, found = read_bundle(bundle)["data"], dataset.info().to_dict()
    for name in ("record", "grid", "bands", "image_size", "features"):
        if name in expected and expected[name] != found[name]:
            raise ValueError(
                f"{dataset.uri}: {name}: the bundle expects {expected[name]}, found "
                f"{found[name]}; ingest the files with card {expected['card']!r}"
            )


@dataclass(frozen=True)
class PredictResult:
    """Where the catalogue is and how many objects it holds."""

    catalogue: str
    rows: int
    quarantined: int
    files: list[str]


def predict(
    bundle: str,
    sources: Sequence[str],
    out: str,
    *,
    card: str | None = None,
    workers: int | None = None,
    use_gpu: bool = False,
    votable: bool = False,
    progress: bool = True,
) -> PredictResult:
    """Write a catalogue of predictions for a dataset, or for survey files.

    Survey files are first ingested into ``OUT/dataset`` without the card's cuts (bad ones go to its
    quarantine with a reason), so that an interrupted job goes on where it stopped.

    Parameters
    ----------
    sources : sequence of str
        One dataset, or files and folders of the card's survey.
    card : str, optional
        Card the files belong to; default: the card the bundle was trained with.
    """
    dataset = as_dataset(bundle, sources, out, card, progress)
    identity = IDENTITY[dataset.manifest.record]
    keep = [column.name for column in (*identity, SOURCE)]
    rows = predict_dataset(bundle, dataset, keep=keep, workers=workers, use_gpu=use_gpu)
    described = [
        *identity,
        *Predictor.from_bundle(bundle, device="cpu").family.output_columns(),
        VERSION,
        SOURCE,
    ]
    expected = dataset.count()
    with (
        CatalogueWriter(places.join(out, "catalogue"), described, votable=votable) as writer,
        tqdm(total=expected, desc="predict", unit="object", disable=not progress) as bar,
    ):
        for batch in rows.iter_batches(batch_size=None, batch_format="pyarrow"):
            writer.write(batch)
            bar.update(batch.num_rows)
    if writer.rows != expected:
        raise RuntimeError(f"{out}: expected {expected} predictions, found {writer.rows}")
    quarantined = dataset.manifest.rows_quarantined
    return PredictResult(places.join(out, "catalogue"), writer.rows, quarantined, writer.files)


def as_dataset(
    bundle: str, sources: Sequence[str], out: str, card: str | None, progress: bool
) -> Dataset:
    """Return the dataset `sources` names, or ingest survey files into ``OUT/dataset``."""
    if len(sources) == 1 and places.exists(places.join(sources[0], MANIFEST)):
        return Dataset.open(sources[0])
    from skyray.cards import load_card
    from skyray.data.ingest import ingest

    chosen = load_card(card or read_bundle(bundle)["data"]["card"])
    return ingest(chosen, sources, places.join(out, "dataset"), apply_cuts=False, progress=progress)


def collect(rows: ray.data.Dataset) -> dict[str, Any]:
    """Return a Ray dataset of predictions as numpy columns, in order."""
    tables = list(rows.iter_batches(batch_size=None, batch_format="pyarrow"))
    return table_to_columns(pa.concat_tables(tables)) if tables else {}
