"""What single families add to the verbs of all."""

from __future__ import annotations

from typing import Annotated

import typer

from skyray.cli.verb import (
    Address,
    BundleUri,
    Json,
    Progress,
    Sources,
    verb,
)

# paper → module with a function `reproduce(out, scale, …)`
PAPERS = {
    "desi-outliers": "skyray.workflows.desi_outliers",
    "lens-adaptation": "skyray.workflows.lens_adaptation",
}


@verb
def outliers(
    bundle: BundleUri,
    sources: Sources,
    out: Annotated[str, typer.Option(help="Folder for catalogue, gallery and map.")],
    stars: Annotated[
        str | None, typer.Option(help="Second bundle, of stars: adds the star/galaxy decision.")
    ] = None,
    card: Annotated[
        str | None, typer.Option(help="Card of the files; default: the bundle's own.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Objects in the gallery.")] = 100,
    map_rows: Annotated[
        int, typer.Option("--map", min=0, help="Points in the map of the latents; 0: no map.")
    ] = 5000,
    workers: Annotated[int | None, typer.Option(help="Model replicas.")] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="One GPU a replica.")] = False,
    progress: Progress = True,
    address: Address = None,
    json: Json = None,
):
    """Rank a survey's spectra by strangeness: catalogue, gallery, map of the latent space.

    Example: skyray outliers galaxies survey/ --stars stars --out strange
    """
    from skyray.engine.session import ray_session

    with ray_session(address):
        from skyray.workflows.outliers import find_outliers

        return find_outliers(
            bundle, sources, out, star_bundle=stars, card=card, top=top, explorer_rows=map_rows,
            workers=workers, use_gpu=gpu, progress=progress,
        )  # fmt: skip


@verb
def reproduce(
    paper: Annotated[str, typer.Argument(help="desi-outliers or lens-adaptation.")],
    out: Annotated[str, typer.Option(help="Folder; finished steps in it are not repeated.")],
    scale: Annotated[str, typer.Option(help="laptop, or paper for a cluster.")] = "laptop",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change the recipes: train.epochs=20. Repeat.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the mock surveys and the trainings.")] = 11,
    workers: Annotated[int, typer.Option(min=1, help="Data-parallel workers.")] = 1,
    gpu: Annotated[bool, typer.Option("--gpu", help="One GPU a worker.")] = False,
    progress: Progress = True,
    address: Address = None,
    json: Json = None,
):
    """Run a published experiment from simulation to figures, and print what it gave.

    Example: skyray reproduce desi-outliers --out strange
    """
    import importlib

    from skyray.config import ConfigError
    from skyray.engine.session import ray_session

    if paper not in PAPERS:
        raise ConfigError(f"paper {paper!r}: expected one of {sorted(PAPERS)}")
    with ray_session(address):
        experiment = importlib.import_module(PAPERS[paper])
        return experiment.reproduce(
            out, scale, seed=seed, workers=workers, use_gpu=gpu, changes=tuple(set_ or ()),
            progress=progress,
        )  # fmt: skip


@verb
def nearest(
    search: Annotated[str, typer.Argument(help="Folder that `skyray outliers` wrote.")],
    object_id: Annotated[str, typer.Argument(help="Object whose like is looked for.")],
    count: Annotated[int, typer.Option(min=1, help="How many.")] = 10,
    json: Json = None,
):
    """Show the spectra nearest to one in the latent space, and their distances.

    Example: skyray nearest strange 39627794400937953
    """
    from skyray.workflows.outliers import nearest_spectra

    return nearest_spectra(search, object_id, count)
