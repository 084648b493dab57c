"""Predict over a dataset or survey files: workers write the results, and a catalogue of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from skyray.bundles.bundle import Predictor, bundle_digest, check_layout, read_bundle
from skyray.bundles.named import located
from skyray.config import ConfigError
from skyray.data.dataset import Dataset
from skyray.families.base import OutputColumn
from skyray.inference import pipeline
from skyray.inference.catalogue import Catalogue
from skyray.inference.catalogue_parts import write_catalogue
from skyray.inference.hats import write_hats
from skyray.inference.results import Results, piece_rows
from skyray.inference.single_file import MOST_BYTES, MOST_ROWS, fits_in_one, write_single
from skyray.runtime import places
from skyray.runtime.progress import task

KEY = "observation_id"
_POSITION = (
    OutputColumn("object_id", "str", "", "identifier of the observation in its survey"),
    OutputColumn(KEY, "str", "", "name of the observation, unique in its dataset"),
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


def predict_dataset(
    bundle: str,
    dataset: Dataset,
    out: str,
    *,
    keep: Sequence[str],
    split: str | None = None,
    rows: np.ndarray | None = None,
    training: bool = False,
    detail: bool = False,
    workers: int | None = None,
    use_gpu: bool = False,
    replace: bool = False,
    size: int | None = None,
    note: Mapping[str, str] | None = None,
    change: pipeline.Change | None = None,
    progress: str | None = None,
) -> Results:
    """Write the predictions of a dataset to a results table, beside the columns `keep`.

    Rows whose piece is there already are not predicted again. An output column of the same name
    as a kept one gets the suffix ``_pred``.

    Parameters
    ----------
    out : str
        Folder or URI of the results table.
    rows : int64 [N], optional
        Rows to predict, of `Dataset.rows`; default: all of `split`.
    training : bool
        Add what scoring needs, as `Family.scoring_table` leaves it.
    workers : int, optional
        Networks at work at most; default: as many as there are GPUs, or half as many as CPUs.
    replace : bool
        Whether results of other work at `out` are deleted instead of refused.
    size : int, optional
        Rows of a piece; default: so that some 32 MB are read at once.
    note : mapping, optional
        What else decides these results, so that other work does not go on with them.
    change : callable, optional
        What is done to the network's inputs (see `pipeline.Job`); name it in `note`.
    progress : str, optional
        Name under which progress is shown.

    Raises
    ------
    OtherResults
        If `out` holds results of another bundle, dataset version or question.
    """
    bundle = located(bundle)
    check_layout(bundle, dataset)
    content = read_bundle(bundle)
    chosen = row_numbers(dataset, split) if rows is None else np.asarray(rows, np.int64)
    keep = tuple(dict.fromkeys([KEY, *keep]))
    family = Predictor.without_network(bundle).family
    digest = bundle_digest(content)
    about = {
        "bundle": content.get("version", ""),
        "bundle_digest": digest,
        "dataset": places.absolute(dataset.uri),
        "dataset_version": dataset.version,
        "fingerprint": dataset.manifest.fingerprint,
        "rows_digest": _digest(chosen),
        "columns": list(keep),
        "scoring": training,
        "detail": detail,
        **(note or {}),
    }
    size = size or piece_rows(dataset.schema, [*keep, *family.columns(training)], len(chosen))
    results = Results.claim(places.absolute(out), about, len(chosen), size, replace)
    job = pipeline.Job(
        places.absolute(bundle), digest, about["dataset"], dataset.version,
        about["fingerprint"], keep, training, detail, results, change,
    )  # fmt: skip
    there = len(chosen) - sum(map(results.rows_of, results.missing()))
    with task(
        progress or "predict", len(chosen), "object", done=there, show=progress is not None
    ) as shown:
        shown.wait("networks to start")
        for written in pipeline.run(job, chosen, workers, use_gpu):
            shown.advance(written)
    if left := len(results.missing()):
        raise RuntimeError(f"{out}: expected {results.count} pieces, {left} of them are missing")
    return results


def row_numbers(dataset: Dataset, split: str | None) -> np.ndarray:
    """Return the row numbers of a split in the order of the table, int64: as they lie on disk."""
    rows = dataset.count(split)
    if split is None:
        return np.arange(rows)
    found, start = [np.zeros(0, np.int64)], 0
    for table in dataset.iter_tables(["split"], rows=1 << 16):
        found.append(start + np.flatnonzero(pc.equal(table["split"], split).to_numpy()))
        start += table.num_rows
    numbers = np.concatenate(found)
    if len(numbers) != rows:
        raise RuntimeError(f"{dataset.uri}: {split}: expected {rows} rows, found {len(numbers)}")
    return numbers


def _digest(rows: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(rows, np.int64)).hexdigest()[:16]


@dataclass(frozen=True)
class PredictResult:
    """Where the catalogue is, how many objects it holds, and what was written beside it."""

    catalogue: str
    rows: int
    quarantined: int
    files: list[str]
    note: str = ""


def predict(
    bundle: str,
    sources: Sequence[str],
    out: str,
    *,
    card: str | None = None,
    workers: int | None = None,
    use_gpu: bool = False,
    fits: bool | None = None,
    votable: bool = False,
    hats: bool = False,
    arrays: bool = False,
    progress: bool = True,
) -> PredictResult:
    """Write a catalogue of predictions for a dataset, or for survey files; Ray must be running.

    Workers write it in parts, ``OUT/catalogue/part-….parquet``; an interrupted job goes on where it
    stopped. Survey files are first ingested into ``OUT/dataset`` without the card's cuts (bad ones
    go to its quarantine with a reason).

    Parameters
    ----------
    sources : sequence of str
        One dataset, or files and folders of the card's survey.
    card : str, optional
        Card the files belong to; default: the card the bundle was trained with.
    workers : int, optional
        Networks at work at most; default: as many as there are GPUs, or half as many as CPUs.
    fits : bool, optional
        Write ``OUT/catalogue.fits`` too; default: up to 5 million rows and 2 GB.
    votable, hats : bool
        Write ``OUT/catalogue.vot``, and ``OUT/hats``, partitioned by sky.
    arrays : bool
        Write the family's arrays, one row an object in the catalogue's order, to ``OUT/arrays``
        (and ``OUT/arrays.fits`` as `fits` says).

    Raises
    ------
    ConfigError
        If `arrays` are wanted of a family that has none.
    OtherResults
        If `out` holds the catalogue of another bundle or dataset version.
    """
    bundle = located(bundle)
    family = Predictor.without_network(bundle).family
    if arrays and not family.array_columns():
        raise ConfigError(f"arrays: a bundle of {family.name} has none, or its recipe makes none")
    dataset = as_dataset(bundle, sources, out, card, progress)
    identity = IDENTITY[dataset.manifest.record]
    folder = places.join(out, "catalogue")
    results = predict_dataset(
        bundle, dataset, folder, keep=[column.name for column in (*identity, SOURCE)],
        detail=arrays, workers=workers, use_gpu=use_gpu, progress="predict" if progress else None,
    )  # fmt: skip
    more = []
    if arrays:
        described = [*identity, *family.array_columns(), VERSION]
        beside = write_catalogue(results, described, out=places.join(out, "arrays"))
        more, _ = write_beside(beside, fits=fits)
    catalogue = write_catalogue(results, [*identity, *family.output_columns(), VERSION, SOURCE])
    if catalogue.rows != dataset.count():
        raise RuntimeError(f"{out}: expected {dataset.count()} rows, found {catalogue.rows}")
    files, note = write_beside(catalogue, fits=fits, votable=votable)
    if hats:
        files.append(write_hats(catalogue.uri, places.join(out, "hats")).uri)
    return PredictResult(
        folder, catalogue.rows, dataset.manifest.rows_quarantined, files + more, note
    )


def write_beside(
    catalogue: Catalogue, *, fits: bool | None, votable: bool = False
) -> tuple[list[str], str]:
    """Write single files of a catalogue beside its folder; return all files, and what is not there.

    `fits` None: where the catalogue is small enough.
    """
    files, note = catalogue.files(), ""
    if fits or (fits is None and fits_in_one(catalogue)):
        files.append(write_single(catalogue.uri, _named(catalogue.uri, ".fits")))
    elif fits is None:
        limits = f"{MOST_ROWS:,} rows or {MOST_BYTES >> 30} GB"
        note = f"no FITS file above {limits}: --fits makes it"
    if votable:
        files.append(write_single(catalogue.uri, _named(catalogue.uri, ".vot")))
    return files, note


def _named(uri: str, ending: str) -> str:
    return places.join(places.parent(uri), f"{places.name(uri)}{ending}")


def as_dataset(
    bundle: str, sources: Sequence[str], out: str, card: str | None, progress: bool
) -> Dataset:
    """Return the dataset `sources` names, or ingest survey files into ``OUT/dataset``."""
    if len(sources) == 1 and Dataset.exists(sources[0]):
        return Dataset.open(sources[0])
    from skyray.cards import load_card
    from skyray.data.ingest import ingest

    chosen = load_card(card or read_bundle(bundle)["data"]["card"])
    return ingest(chosen, sources, places.join(out, "dataset"), apply_cuts=False, progress=progress)
