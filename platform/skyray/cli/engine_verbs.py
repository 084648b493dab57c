"""The verbs of every family: each passes on to the engine."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from skyray.cli.verb import (
    Address,
    BundleUri,
    CardName,
    Changes,
    FilesCard,
    Fits,
    Hats,
    Json,
    Progress,
    RecipeName,
    ReplicaGpu,
    Replicas,
    Sources,
    Split,
    TrainingData,
    Votable,
    Workers,
    cluster,
    devices,
    verb,
)


def _dataset_result(dataset: Any) -> dict[str, Any]:
    manifest = dataset.manifest
    return {
        "dataset": dataset.uri,
        "version": dataset.version,
        "card": dataset.card.name,
        "rows read": manifest.rows_read,
        "rows written": manifest.rows_written,
        "rows quarantined": manifest.rows_quarantined,
        **({"rows unfinished": manifest.rows_unfinished} if manifest.rows_unfinished else {}),
        "objects": {split: sum(labels.values()) for split, labels in manifest.counts.items()},
        "fingerprint": manifest.fingerprint,
    }


@verb
def download(
    card: CardName,
    listing: Annotated[
        str, typer.Option("--list", help="Table of files to fetch (CSV, FITS, Parquet), one a row.")
    ],
    out: Annotated[str, typer.Option(help="Folder or URI for the files.")],
    rate_limit: Annotated[float, typer.Option(help="Requests a second at most.")] = 5.0,
    retries: Annotated[int, typer.Option(help="Attempts after the first.")] = 5,
    workers: Annotated[int, typer.Option(help="Files fetched at once.")] = 4,
    progress: Progress = True,
    json: Json = None,
):
    """Fetch a card's survey files by its URL template, with retries and checksums.

    Example: skyray download sdss_dr16 --list plates.csv --out spectra/
    """
    from skyray.cards import load_card
    from skyray.data.download import download as run
    from skyray.runtime.progress import clear

    clear()
    return run(
        load_card(card),
        listing,
        out,
        rate_limit=rate_limit,
        retries=retries,
        workers=workers,
        progress=progress,
    )


@verb
def simulate(
    card: CardName,
    objects: Annotated[int, typer.Option(min=1, help="Objects to make, shared among classes.")],
    out: Annotated[str | None, typer.Option(help="Dataset to write.")] = None,
    as_files: Annotated[
        str | None, typer.Option(help="Folder for files in the survey's own format, instead.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed makes the same objects.")] = 0,
    templates: Annotated[
        str | None, typer.Option(help="Folder of external templates; built-in ones else.")
    ] = None,
    planted: Annotated[
        float, typer.Option(help="Share of planted outliers of known kind (spectra, --out only).")
    ] = 0.0,
    progress: Progress = True,
    address: Address = None,
    json: Json = None,
):
    """Make a mock survey: a dataset (--out), or survey files (--as-files).

    Example: skyray simulate sdss_dr16 --objects 13000 --seed 1 --out mock
    """
    from skyray.cards import load_card
    from skyray.cli.beforehand import check_there, check_writable
    from skyray.config import ConfigError

    if out is None and as_files is None:
        raise ConfigError("simulate: expected --out DATASET or --as-files FOLDER, found neither")
    chosen = load_card(card)
    check_there([templates] if templates else [])
    check_writable(out, as_files)
    with cluster("simulate", address):
        from skyray.data.simulate import simulate as run

        return run(
            chosen, objects, seed, out,
            as_files=as_files, templates=templates, planted=planted, progress=progress,
        )  # fmt: skip


@verb
def ingest(
    card: CardName,
    sources: Sources,
    out: Annotated[str, typer.Option(help="Dataset to write, or to add to.")],
    cuts: Annotated[bool, typer.Option(help="Apply the card's cuts.")] = True,
    progress: Progress = True,
    address: Address = None,
    json: Json = None,
):
    """Turn survey files into a dataset: checked, split by object, bad ones in quarantine.

    Example: skyray ingest sdss_dr16 spectra/ --out dataset
    """
    from skyray.cards import load_card
    from skyray.cli.beforehand import check_there, check_writable

    chosen = load_card(card)
    check_there(sources)
    check_writable(out)
    with cluster("ingest", address):
        from skyray.data.ingest import ingest as run

        made = run(chosen, sources, out, apply_cuts=cuts, progress=progress)
        return _dataset_result(made)


@verb
def inspect(
    uri: Annotated[str, typer.Argument(help="A dataset, bundle or catalogue.")],
    version: Annotated[
        int | None, typer.Option(min=1, help="Version of a dataset; default: the newest.")
    ] = None,
    json: Json = None,
):
    """Show what a dataset, bundle or catalogue holds.

    Example: skyray inspect dataset --version 2
    """
    from skyray.inference.inspect import inspect as run

    return run(uri, version)


@verb
def prepare(
    recipe: RecipeName,
    data: TrainingData,
    set_: Changes = None,
    progress: Progress = True,
    address: Address = None,
    json: Json = None,
):
    """Run a recipe's transform over a dataset, once for all trainings that need the same.

    Trainings do it by themselves where it was not done; this does it beforehand, on CPUs alone.

    Example: skyray prepare redshift/sdss_dr16 --data mock
    """
    from skyray.cli.beforehand import check_training
    from skyray.families.base import load_family, load_recipe

    chosen = load_recipe(recipe).override(set_ or [])
    check_training(chosen, data)
    with cluster("prepare", address):
        from skyray.data.dataset import Dataset
        from skyray.data.prepared import prepare as run
        from skyray.records import SPLITS

        dataset = Dataset.open(data)
        family = load_family(chosen.family)(chosen, dataset.info())
        table = run(dataset, family, progress=progress)
        return {
            "table": table.uri,
            "dataset version": dataset.version,
            "rows": {split: table.count(split) for split in SPLITS},
            "bytes of a row": table.bytes_per_row(),
            "made": table.about["created"],
        }


@verb
def train(
    recipe: RecipeName,
    data: TrainingData,
    out: Annotated[str, typer.Option(help="Bundle to write.")],
    workers: Workers = 1,
    gpu: Annotated[bool, typer.Option("--gpu", help="One GPU a worker.")] = False,
    set_: Changes = None,
    gpus_per_worker: Annotated[
        float | None,
        typer.Option(help="With --gpu: 0.25 lets four stages share a GPU. Default: 1."),
    ] = None,
    min_workers: Annotated[
        int | None, typer.Option(min=1, help="Elastic: go on with so many when workers are lost.")
    ] = None,
    side_by_side: Annotated[
        int | None,
        typer.Option(min=1, help="Stages at once, at most; default: what the cluster holds."),
    ] = None,
    max_failures: Annotated[int, typer.Option(min=0, help="Restarts after a lost worker.")] = 2,
    resume: Annotated[
        str | None, typer.Option(help="Run id of an interrupted training to go on with.")
    ] = None,
    progress: Progress = True,
    address: Address = None,
    json: Json = None,
):
    """Train a recipe on a dataset and leave a bundle.

    Example: skyray train redshift/sdss_dr16 --data mock --workers 2 --out bundle
    """
    from skyray.training.scale import Scale

    scale = Scale.asked(workers, min_workers, gpu, gpus_per_worker, side_by_side=side_by_side)
    devices(address, scale.least_gpus, scale.min_workers)
    from dataclasses import asdict

    from skyray.cli.beforehand import check_training, check_writable
    from skyray.families.base import load_recipe

    chosen = load_recipe(recipe).override(set_ or [])
    check_writable(out)
    check_training(chosen, data, resume)
    with cluster("train", address, scale.least_gpus):
        from skyray.training.train import train as run

        done = run(
            chosen,
            data,
            out,
            workers=workers,
            use_gpu=gpu,
            gpus=gpus_per_worker,
            min_workers=min_workers,
            side_by_side=side_by_side,
            max_failures=max_failures,
            resume=resume,
            progress=progress,
        )
    result = asdict(done)
    result["epochs"] = len(result.pop("history"))
    return result


@verb
def evaluate(
    bundle: BundleUri,
    data: Annotated[str, typer.Option(help="Dataset to score on.")],
    out: Annotated[str, typer.Option(help="Folder for metrics.json, figures and index.html.")],
    split: Split = "test",
    promote_if: Annotated[
        list[str] | None,
        typer.Option(help="Then make it champion if 'SCORE>NUMBER' or 'SCORE>champion'. Repeat."),
    ] = None,
    gpu: ReplicaGpu = False,
    progress: Progress = True,
    address: Address = None,
    json: Json = None,
):
    """Score a bundle on a dataset: metrics, figures and a page to look at.

    Example: skyray evaluate bundle --data mock --out scores
    """
    devices(address, int(gpu))
    from skyray.cli.beforehand import check_bundle, check_writable
    from skyray.inference.promote import Condition, promote
    from skyray.runtime import places

    for condition in promote_if or ():
        Condition.parse(condition)  # refused now, not after hours
    chosen, promotion = None if split == "all" else split, {}
    check_bundle(bundle, data, chosen)
    check_writable(out)
    with cluster("evaluate", address, int(gpu)):
        from skyray.inference.evaluate import evaluate as run

        scores = run(bundle, data, out, split=chosen, use_gpu=gpu, progress=progress)
        if promote_if:
            done = promote(bundle, data, out, promote_if, split=chosen, scores=scores, use_gpu=gpu)
            promotion = done.summary()
    short = {name: value for name, value in scores.items() if isinstance(value, int | float)}
    return {
        **short,
        "all scores": places.join(out, "metrics.json"),
        "page": places.join(out, "index.html"),
        **promotion,
    }


@verb
def predict(
    bundle: BundleUri,
    sources: Sources,
    out: Annotated[str, typer.Option(help="Folder of the catalogue.")],
    card: FilesCard = None,
    workers: Replicas = None,
    gpu: ReplicaGpu = False,
    fits: Fits = None,
    votable: Votable = False,
    hats: Hats = False,
    arrays: Annotated[
        bool, typer.Option("--arrays", help="Also a table of arrays: redshift PDFs.")
    ] = False,
    progress: Progress = True,
    address: Address = None,
    json: Json = None,
):
    """Write a catalogue of predictions (Parquet parts, FITS) for survey files or a dataset.

    Run again, an interrupted job goes on where it stopped.

    Example: skyray predict bundle spectra/ --out catalogue
    """
    devices(address, int(gpu))
    from dataclasses import asdict

    from skyray.cli.beforehand import check_sources_of, check_writable

    check_sources_of(bundle, sources, card)
    check_writable(out)
    with cluster("predict", address, int(gpu)):
        from skyray.inference.predict import predict as run

        done = run(
            bundle, sources, out, card=card, workers=workers, use_gpu=gpu, fits=fits,
            votable=votable, hats=hats, arrays=arrays, progress=progress,
        )  # fmt: skip
    return asdict(done)
