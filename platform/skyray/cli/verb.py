"""What a verb is: a function that returns a result to show, and the options verbs share."""

from __future__ import annotations

import functools
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
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
BundleUri = Annotated[
    str, typer.Argument(help="Trained bundle: folder, URI or models:/NAME@ALIAS.")
]
Sources = Annotated[list[str], typer.Argument(help="Files, folders or URIs (s3://, gs://).")]
RecipeName = Annotated[str, typer.Argument(help="FAMILY/NAME, e.g. redshift/sdss_dr16.")]
TrainingData = Annotated[str, typer.Option(help="Dataset to train on.")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", help="Change the recipe: train.epochs=20. Repeat.")
]
Workers = Annotated[int, typer.Option(min=1, help="Data-parallel workers.")]
Progress = Annotated[bool, typer.Option(help="Show progress.")]
Split = Annotated[str, typer.Option(help="train, validation, test, or all for every row.")]
FilesCard = Annotated[
    str | None, typer.Option(help="Card of the files; default: the bundle's own.")
]
Replicas = Annotated[int | None, typer.Option(help="Model replicas.")]
ReplicaGpu = Annotated[bool, typer.Option("--gpu", help="One GPU a replica.")]
# what a catalogue is written as, beside Parquet
Fits = Annotated[
    bool | None,
    typer.Option("--fits/--no-fits", help="One FITS file; default: up to 5 million rows, 2 GB."),
]
Votable = Annotated[bool, typer.Option("--votable", help="Also write a VOTable.")]
Hats = Annotated[bool, typer.Option("--hats", help="Also write HATS partitions by sky, for LSDB.")]


def verb(function: Callable[..., Mapping[str, Any] | None]) -> Callable[..., None]:
    """Register a verb; show what it returns, and an error as one line and exit status 1.

    What MLflow was not told is said last, on stderr.
    """

    @functools.wraps(function)
    def command(*args, json: Path | None = None, **kwargs) -> None:
        try:
            if json is not None:
                from skyray.cli.beforehand import check_file

                check_file(json)
            with _display(function.__name__, kwargs.get("progress", False)):
                result = function(*args, json=json, **kwargs)
            if result is not None:
                show(function.__name__, result)
                if json is not None:
                    write(json, result)
        except (KeyboardInterrupt, typer.Exit, typer.Abort):
            raise
        except Exception as error:  # the boundary to a person: one line, the rest on request
            _complain(error)
            raise typer.Exit(1) from None
        finally:
            _say_what_mlflow_was_not_told()
        if result is not None and result.get("failed"):  # a part of the work: shown, no success
            raise typer.Exit(1)

    summary = (function.__doc__ or "").partition("\n")[0]  # whole in the list of verbs, not cut off
    app.command(name=function.__name__.replace("_", "-"), short_help=summary)(command)
    return command


def _say_what_mlflow_was_not_told() -> None:
    if outbox := sys.modules.get("skyray.runtime.outbox"):  # else nothing was sent
        with suppress(OSError):  # the place of the messages is away: so was the work, which said so
            for line in outbox.untold():
                print(line, file=sys.stderr)


def devices(address: str | None, gpus: int, cpus: int = 0) -> None:
    """Refuse what this machine, where no cluster is joined, has not got; first of all checks."""
    from skyray.runtime.session import require_devices

    require_devices(address, gpus, cpus)


@contextmanager
def cluster(name: str, address: str | None, gpus: int = 0) -> Iterator[None]:
    """Hold Ray for the verb `name`, whose checks are done; what Ray says goes into a log file."""
    from skyray.runtime import noise, progress
    from skyray.runtime.session import ray_session

    progress.clear()
    with noise.kept(name), ray_session(address, gpus=gpus):
        yield


@contextmanager
def _display(name: str, show: bool) -> Iterator[None]:
    """Hold one display for all that a verb does; without one, load nothing."""
    if not show:
        yield
        return
    from skyray.runtime.progress import display

    with display() as shown:
        shown.add(name).wait("imports and checks")  # until `cluster`
        yield


def _complain(error: Exception) -> None:
    if os.environ.get("SKYRAY_DEBUG"):
        traceback.print_exception(error)
    cause = getattr(error, "cause", None)  # what a Ray task died of
    shown = cause if isinstance(cause, Exception) else error
    text = str(shown).strip() or type(shown).__name__
    expected = isinstance(shown, ValueError | OSError | RuntimeError)
    kind = "" if expected else f"{type(shown).__name__}: "
    print(f"error: {kind}{text}", file=sys.stderr)
    for note in getattr(error, "__notes__", ()):
        print(f"({note})", file=sys.stderr)
    if not os.environ.get("SKYRAY_DEBUG"):
        print("(SKYRAY_DEBUG=1 shows where)", file=sys.stderr)


def show(title: str, result: Mapping[str, Any]) -> None:
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


def write(path: Path, result: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2, default=str) + "\n", encoding="utf-8")
