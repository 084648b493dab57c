"""What single families add to the verbs of all."""

from __future__ import annotations

from typing import Annotated

import typer

from skyray.cli.verb import (
    Address,
    BundleUri,
    Changes,
    FilesCard,
    Fits,
    Hats,
    Json,
    Progress,
    ReplicaGpu,
    Replicas,
    Sources,
    Split,
    Votable,
    Workers,
    cluster,
    devices,
    verb,
)

# paper → module with a function `reproduce(out, scale, …)`
PAPERS = {
    "gasnet-ii": "skyray.workflows.gasnet",
    "desi-outliers": "skyray.workflows.desi_outliers",
    "des-galaxies": "skyray.workflows.des_galaxies",
    "lens-adaptation": "skyray.workflows.lens_adaptation",
}


@verb
def fit(
    sources: Sources,
    out: Annotated[str, typer.Option(help="Folder for catalogue, spectra and page.")],
    card: Annotated[
        str | None, typer.Option(help="Card of the files; default: by the names of the files.")
    ] = None,
    templates: Annotated[
        list[str] | None,
        typer.Option(
            help="Template files (spEigen, rrtemplate), or a dataset of known redshifts to learn "
            "from; default: the built-in ones. Repeat."
        ),
    ] = None,
    lsf: Annotated[
        float | None, typer.Option(help="Line spread, sigma in km/s; default: the card's.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Fitters at work at most.")] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="One GPU a fitter.")] = False,
    fits: Fits = None,
    votable: Votable = False,
    hats: Hats = False,
    progress: Progress = True,
    address: Address = None,
    json: Json = None,
):
    """Classes and redshifts of spectra from templates, with quality bits. Needs no training.

    Example: skyray fit spectra/ --out fitted
    """
    devices(address, int(gpu))

    from skyray.cards import load_card
    from skyray.cli.beforehand import check_there, check_writable

    if card is not None:
        load_card(card)
    check_there(sources)
    check_writable(out)
    with cluster("fit", address, int(gpu)):
        from skyray.workflows.fit import fit as run

        return run(
            sources, out, card=card, template_sources=templates or (), lsf_kms=lsf, workers=workers,
            use_gpu=gpu, fits=fits, votable=votable, hats=hats, progress=progress,
        )  # fmt: skip


@verb
def outliers(
    bundle: BundleUri,
    sources: Sources,
    out: Annotated[str, typer.Option(help="Folder for catalogue, gallery and map.")],
    stars: Annotated[
        str | None, typer.Option(help="Second bundle, of stars: adds the star/galaxy decision.")
    ] = None,
    card: FilesCard = None,
    top: Annotated[int, typer.Option(min=1, help="Objects in the gallery.")] = 100,
    map_rows: Annotated[
        int, typer.Option("--map", min=0, help="Points in the map of the latents; 0: no map.")
    ] = 5000,
    workers: Replicas = None,
    gpu: ReplicaGpu = False,
    fits: Fits = None,
    progress: Progress = True,
    address: Address = None,
    json: Json = None,
):
    """Rank a survey's spectra by strangeness: catalogue, gallery, map of the latent space.

    Example: skyray outliers galaxies survey/ --stars stars --out strange
    """
    devices(address, int(gpu))

    from skyray.cli.beforehand import check_sources_of, check_writable

    for one in filter(None, (bundle, stars)):
        check_sources_of(one, sources, card)
    check_writable(out)
    with cluster("outliers", address, int(gpu)):
        from skyray.workflows.outliers import find_outliers

        return find_outliers(
            bundle, sources, out, star_bundle=stars, card=card, top=top, explorer_rows=map_rows,
            workers=workers, use_gpu=gpu, fits=fits, progress=progress,
        )  # fmt: skip


@verb
def reproduce(
    paper: Annotated[
        str, typer.Argument(help="gasnet-ii, desi-outliers, des-galaxies, lens-adaptation.")
    ],
    out: Annotated[str, typer.Option(help="Folder; finished steps in it are not repeated.")],
    scale: Annotated[str, typer.Option(help="laptop, or paper for a cluster.")] = "laptop",
    data: Annotated[
        str | None, typer.Option(help="gasnet-ii: a dataset in place of the mock survey.")
    ] = None,
    set_: Changes = None,
    seed: Annotated[int, typer.Option(help="Of the mock surveys and the trainings.")] = 11,
    workers: Workers = 1,
    gpu: Annotated[bool, typer.Option("--gpu", help="One GPU a worker.")] = False,
    progress: Progress = True,
    address: Address = None,
    json: Json = None,
):
    """Run a published experiment from simulation to figures, and print what it gave.

    Example: skyray reproduce desi-outliers --out strange
    """
    gpus = workers if gpu else 0
    devices(address, gpus, workers)
    import importlib
    import inspect

    from skyray.cli.beforehand import check_writable
    from skyray.config import ConfigError

    if paper not in PAPERS:
        raise ConfigError(f"paper {paper!r}: expected one of {sorted(PAPERS)}")
    check_writable(out)
    experiment = importlib.import_module(PAPERS[paper]).reproduce
    given = {} if data is None else {"data": data}
    if given and "data" not in inspect.signature(experiment).parameters:
        raise ConfigError(f"--data: {paper} takes no dataset")
    with cluster("reproduce", address, gpus):
        return experiment(
            out, scale, seed=seed, workers=workers, use_gpu=gpu, changes=tuple(set_ or ()),
            progress=progress, **given,
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


@verb
def recurse(
    recipe: Annotated[str, typer.Argument(help="A recipe of morphology: FAMILY/NAME.")],
    data: Annotated[str, typer.Option(help="Labelled dataset.")],
    unlabelled: Annotated[str, typer.Option(help="Dataset to label; its own labels are not used.")],
    test: Annotated[list[str], typer.Option(help="NAME=DATASET to score on. Repeat.")],
    out: Annotated[str, typer.Option(help="Folder; finished steps in it are not repeated.")],
    per_class: Annotated[
        int, typer.Option(min=1, help="Most confident objects of each class to add in a round.")
    ] = 1000,
    rounds: Annotated[int, typer.Option(min=1, help="Trainings after the first.")] = 1,
    seeds: Annotated[int, typer.Option(min=1, help="Recursions, each with a seed of its own.")] = 1,
    set_: Changes = None,
    workers: Workers = 1,
    gpu: Annotated[bool, typer.Option("--gpu", help="One GPU a worker.")] = False,
    progress: Progress = True,
    address: Address = None,
    json: Json = None,
):
    """Let a model label a new survey and learn from its surest labels; before and after.

    Example: skyray recurse morphology/sdss_xception --data sdss --unlabelled des
    --test des=des --out recursion
    """
    gpus = workers if gpu else 0
    devices(address, gpus, workers)
    from skyray.cli.beforehand import check_training, check_writable
    from skyray.config import ConfigError
    from skyray.data.dataset import Dataset
    from skyray.families.base import load_recipe
    from skyray.runtime import places

    tests = dict(item.split("=", 1) for item in test if "=" in item)
    if len(tests) < len(test):
        raise ConfigError(f"--test: expected NAME=DATASET each, found {test}")
    chosen = load_recipe(recipe).override(set_ or [])
    check_training(chosen, data)
    for other in (unlabelled, *tests.values()):
        Dataset.open(other)
    check_writable(out)
    with cluster("recurse", address, gpus):
        from skyray.workflows.recursion import (
            Resources,
            Settings,
            before_and_after,
            recurse_seeds,
        )

        found = recurse_seeds(
            chosen, data, unlabelled, out, seeds=range(chosen.seed, chosen.seed + seeds),
            tests=tests, settings=Settings(per_class=per_class, rounds=rounds),
            resources=Resources(workers=workers, use_gpu=gpu, progress=progress),
        )  # fmt: skip
    rows = {
        f"{row['test set']}, {row['score']}": f"{row['before']:.4f} → {row['after']:.4f} "
        f"({row['seeds that gained']} seeds gained)"
        for row in before_and_after(found)
    }
    return {**rows, "models": [one.bundle for one in found], "page": places.join(out, "index.html")}


@verb
def map_alerts(
    bundles: Annotated[list[str], typer.Argument(help="Bundles of the alerts family.")],
    data: Annotated[str, typer.Option(help="Dataset of alerts.")],
    out: Annotated[str, typer.Option(help="Folder for map, figure and outliers.")],
    split: Split = "test",
    workers: Replicas = None,
    gpu: ReplicaGpu = False,
    address: Address = None,
    json: Json = None,
):
    """Map alerts by a model's features; list those that all models find strange.

    Example: skyray map-alerts bundle-a bundle-b --data alerts --out map
    """
    devices(address, int(gpu))

    from skyray.cli.beforehand import check_bundle, check_writable

    chosen = None if split == "all" else split
    for bundle in bundles:
        check_bundle(bundle, data, chosen)
    check_writable(out)
    with cluster("map-alerts", address, int(gpu)):
        from skyray.workflows.alerts import map_alerts as run

        return run(bundles, data, out, split=chosen, workers=workers, use_gpu=gpu)
