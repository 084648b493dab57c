"""``skyray VERB``: the command line. Verbs only pass on to the engine and show its result."""

from __future__ import annotations

import functools
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="skyray",
    help="Survey files in, deep-learning catalogues and services out; on a laptop or a Ray cluster."
    "\n\nTry: skyray simulate sdss_dr16 --objects 2000 --out mock",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Address = Annotated[
    str | None,
    typer.Option(help="A running Ray cluster: HOST:PORT, ray://… or auto. Default: a private one."),
]
Json = Annotated[
    Path | None, typer.Option("--json", help="Also write the result as JSON to this file.")
]
CardName = Annotated[str, typer.Argument(help="Dataset card: a name of datasets/ or a YAML file.")]
BundleUri = Annotated[str, typer.Argument(help="Trained bundle: folder or URI.")]
Sources = Annotated[list[str], typer.Argument(help="Files, folders or URIs (s3://, gs://).")]
Progress = Annotated[bool, typer.Option(help="Show progress bars.")]


def _verb(function: Callable[..., Mapping[str, Any] | None]) -> Callable[..., None]:
    """Register a verb; show what it returns, and an error as one line and exit status 1."""

    @functools.wraps(function)
    def command(*args, json: Path | None = None, **kwargs) -> None:
        try:
            result = function(*args, json=json, **kwargs)
        except (KeyboardInterrupt, typer.Exit, typer.Abort):
            raise
        except Exception as error:  # the boundary to a person: one line, the rest on request
            _complain(error)
            raise typer.Exit(1) from None
        if result is not None:
            _show(function.__name__, result)
            if json is not None:
                _write(json, result)
            if result.get("failed"):  # a part of the work: shown, and no success
                raise typer.Exit(1)

    app.command(name=function.__name__)(command)
    return command


def _complain(error: Exception) -> None:
    if os.environ.get("SKYRAY_DEBUG"):
        traceback.print_exception(error)
    cause = getattr(error, "cause", None)  # what a Ray task died of
    shown = cause if isinstance(cause, Exception) else error
    text = str(shown).strip() or type(shown).__name__
    expected = isinstance(shown, ValueError | OSError | RuntimeError)
    kind = "" if expected else f"{type(shown).__name__}: "
    print(f"error: {kind}{text}", file=sys.stderr)
    if not os.environ.get("SKYRAY_DEBUG"):
        print("(SKYRAY_DEBUG=1 shows where)", file=sys.stderr)


def _show(title: str, result: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"skyray {title}", show_header=False, title_justify="left")
    for name, value in result.items():
        table.add_row(name, _text(value))
    Console(soft_wrap=True).print(table)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, Mapping):
        return "\n".join(f"{name}: {_text(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value[:8])) + (f" … ({len(value)})" if len(value) > 8 else "")
    return str(value)


def _write(path: Path, result: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2, default=str) + "\n", encoding="utf-8")


def _dataset_result(dataset: Any) -> dict[str, Any]:
    manifest = dataset.manifest
    return {
        "dataset": dataset.uri,
        "card": dataset.card.name,
        "rows read": manifest.rows_read,
        "rows written": manifest.rows_written,
        "rows quarantined": manifest.rows_quarantined,
        "objects": {split: sum(labels.values()) for split, labels in manifest.counts.items()},
        "fingerprint": manifest.fingerprint,
    }


@_verb
def download(
    card: CardName,
    listing: Annotated[
        str, typer.Option("--list", help="Table of files to fetch (CSV, FITS, Parquet), one a row.")
    ],
    out: Annotated[str, typer.Option(help="Folder for the files.")],
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
    from skyray.engine.download import download as run

    return run(
        load_card(card),
        listing,
        out,
        rate_limit=rate_limit,
        retries=retries,
        workers=workers,
        progress=progress,
    )


@_verb
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
    progress: Progress = True,
    address: Address = None,
    json: Json = None,
):
    """Make a mock survey: a dataset (--out), or survey files (--as-files).

    Example: skyray simulate sdss_dr16 --objects 13000 --seed 1 --out mock
    """
    from skyray.cards import load_card
    from skyray.config import ConfigError
    from skyray.engine.session import ray_session

    if out is None and as_files is None:
        raise ConfigError("simulate: expected --out DATASET or --as-files FOLDER, found neither")
    with ray_session(address):
        from skyray.engine.simulate import simulate as run

        return run(
            load_card(card), objects, seed, out,
            as_files=as_files, templates=templates, progress=progress,
        )  # fmt: skip


@_verb
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
    from skyray.engine.session import ray_session

    with ray_session(address):
        from skyray.engine.ingest import ingest as run

        made = run(load_card(card), sources, out, apply_cuts=cuts, progress=progress)
        return _dataset_result(made)


@_verb
def inspect(
    uri: Annotated[str, typer.Argument(help="A dataset, bundle or catalogue.")],
    json: Json = None,
):
    """Show what a dataset, bundle or catalogue holds.

    Example: skyray inspect dataset
    """
    from skyray.engine.inspect import inspect as run

    return run(uri)


@_verb
def train(
    recipe: Annotated[str, typer.Argument(help="FAMILY/NAME, e.g. redshift/sdss_dr16.")],
    data: Annotated[str, typer.Option(help="Dataset to train on.")],
    out: Annotated[str, typer.Option(help="Bundle to write.")],
    workers: Annotated[int, typer.Option(min=1, help="Data-parallel workers.")] = 1,
    gpu: Annotated[bool, typer.Option("--gpu", help="One GPU a worker.")] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change the recipe: train.epochs=20. Repeat.")
    ] = None,
    max_failures: Annotated[int, typer.Option(help="Restarts after a lost worker.")] = 2,
    resume: Annotated[
        str | None, typer.Option(help="MLflow run id of an interrupted training to go on with.")
    ] = None,
    progress: Progress = True,
    address: Address = None,
    json: Json = None,
):
    """Train a recipe on a dataset and leave a bundle.

    Example: skyray train redshift/sdss_dr16 --data mock --workers 2 --out bundle
    """
    from dataclasses import asdict

    from skyray.engine.session import ray_session
    from skyray.families.base import load_recipe

    chosen = load_recipe(recipe).override(set_ or [])
    with ray_session(address):
        from skyray.engine.train import train as run

        done = run(
            chosen,
            data,
            out,
            workers=workers,
            use_gpu=gpu,
            max_failures=max_failures,
            resume=resume,
            progress=progress,
        )
    result = asdict(done)
    result["epochs"] = len(result.pop("history"))
    return result


@_verb
def evaluate(
    bundle: BundleUri,
    data: Annotated[str, typer.Option(help="Dataset to score on.")],
    out: Annotated[str, typer.Option(help="Folder for metrics.json, figures and index.html.")],
    split: Annotated[
        str, typer.Option(help="train, validation, test, or all for every row.")
    ] = "test",
    address: Address = None,
    json: Json = None,
):
    """Score a bundle on a dataset: metrics, figures and a page to look at.

    Example: skyray evaluate bundle --data mock --out scores
    """
    from skyray.engine.session import ray_session

    with ray_session(address):
        from skyray.engine.evaluate import evaluate as run

        scores = run(bundle, data, out, split=None if split == "all" else split)
    short = {name: value for name, value in scores.items() if isinstance(value, int | float)}
    return {**short, "all scores": f"{out}/metrics.json", "page": f"{out}/index.html"}


@_verb
def predict(
    bundle: BundleUri,
    sources: Sources,
    out: Annotated[str, typer.Option(help="Folder of the catalogue.")],
    card: Annotated[
        str | None, typer.Option(help="Card of the files; default: the bundle's own.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Model replicas.")] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="One GPU a replica.")] = False,
    votable: Annotated[bool, typer.Option("--votable", help="Also write a VOTable.")] = False,
    progress: Progress = True,
    address: Address = None,
    json: Json = None,
):
    """Write a catalogue of predictions (Parquet and FITS) for survey files or a dataset.

    Example: skyray predict bundle spectra/ --out catalogue
    """
    from dataclasses import asdict

    from skyray.engine.session import ray_session

    with ray_session(address):
        from skyray.engine.predict import predict as run

        done = run(
            bundle,
            sources,
            out,
            card=card,
            workers=workers,
            use_gpu=gpu,
            votable=votable,
            progress=progress,
        )
    return asdict(done)


@_verb
def serve(
    config: Annotated[
        Path | None, typer.Argument(help="Serve configuration; default: serve/config.yaml.")
    ] = None,
    bundle: Annotated[str | None, typer.Option(help="Bundle to serve.")] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to bind; others than loopback need a token.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port to bind.")] = None,
    address: Address = None,
    json: Json = None,
):
    """Serve a bundle over HTTP until Ctrl-C; explorer page at /, API at /docs.

    With --json, the file appears when the service is ready and holds its address.

    Example: skyray serve --bundle bundle --port 8000
    """
    from skyray.engine.serving import load_service, running_service, wait_for_signal
    from skyray.engine.session import ray_session

    place = config or Path(__file__).resolve().parents[2] / "serve" / "config.yaml"
    args = {"bundle": bundle} if bundle else {}
    loaded = load_service(place, args, host, port)
    with ray_session(address), running_service(loaded) as url:
        result = {"service": url, "explorer": f"{url}/", "API": f"{url}/docs", "stop": "Ctrl-C"}
        _show("serve", result)
        if json is not None:
            _write(json, result)
        wait_for_signal()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; `arguments` default to the process's own."""
    app(args=None if arguments is None else list(arguments), prog_name="skyray")


if __name__ == "__main__":
    main()
