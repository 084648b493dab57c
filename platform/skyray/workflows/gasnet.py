"""``skyray reproduce gasnet-ii``: Zhong et al. 2024 on mocks of its three surveys, or on real SDSS.

Networks are trained and scored as published (each redshift network on spectra of its true class)
and end to end, and stand beside the paper: Tables 1–4, Figures 11–18 (SDSS), 19–23 (4MOST, DESI),
A1–A3 (wrong labels), B1 (coarse networks of their own), C1, D1 and E1. A copy of the authors'
released redshifts at ``OUT/released.fits`` (`benchmarks/released_table.py --keep`) is scored too.

The paper has networks alone, and so have the bundles and all figures: no templates are fitted.
Finished steps in the folder are not repeated.

    OUT/sdss, fourmost_mock, desi_edr, coarse-…, wrong-…     datasets
    OUT/bundle, scores                                       SDSS, with `skyray evaluate`'s page
    OUT/networks/NAME/bundle                                 all others
    OUT/figures.json, figures/, index.html                   what came out
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from skyray.bundles.bundle import BUNDLE_FILE, Predictor, history_rows
from skyray.cards import load_card
from skyray.config import ConfigError
from skyray.data.dataset import Dataset, table_to_columns
from skyray.data.simulate import simulate
from skyray.families.base import Columns, Recipe, load_recipe
from skyray.families.redshift import published
from skyray.families.redshift.published import Rows
from skyray.families.redshift.released import read_released
from skyray.inference.evaluate import evaluate
from skyray.pages.report import write_report
from skyray.runtime import places
from skyray.search.cells import Cell, train_cells
from skyray.training.train import train
from skyray.workflows.gasnet_data import coarse_dataset, contaminated_dataset
from skyray.workflows.gasnet_page import Sources, draw_all

SHARES = (0.0, 0.05, 0.10)  # of wrong labels, Appendix A
AMONG = {
    "sdss": ("GALAXY_AGN", "GALAXY_STARBURST", "GALAXY_STARFORMING"),
    "fourmost": ("COSMO_AGN", "ClusB", "RedGAL"),
}


@dataclass(frozen=True)
class Scale:
    """How large a reproduction is; `paper` is for a cluster.

    Attributes
    ----------
    objects : objects of the mocks of Tables 1, 2 and 3.
    coarse : objects of each of the three classes of Figure B1.
    recipes : of SDSS, 4MOST, DESI and the coarse classes.
    changes : to all recipes.
    """

    objects: tuple[int, int, int]
    coarse: int
    recipes: tuple[str, str, str, str]
    changes: tuple[str, ...] = ()


_NAMES = ("sdss_dr16", "fourmost_mock", "desi_edr", "sdss_coarse")
SCALES = {
    "laptop": Scale((5200, 3000, 1500), 600, tuple(f"redshift/{n}_laptop" for n in _NAMES)),
    "paper": Scale(
        (260_000, 200_000, 21_000), 7000, tuple(f"redshift/{n}" for n in _NAMES),
        ("mode=as_published",),
    ),
}  # fmt: skip


def reproduce(
    out: str,
    scale: str = "laptop",
    *,
    data: str | None = None,
    seed: int = 11,
    workers: int = 1,
    use_gpu: bool = False,
    changes: tuple[str, ...] = (),
    objects: tuple[int, int, int] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Run the experiment in `out` and return its figures; Ray must be running.

    Parameters
    ----------
    scale : str
        ``laptop`` or ``paper``.
    data : str, optional
        A dataset of card ``sdss_dr16`` in place of its mock.
    workers : int
        Of the SDSS training; of all others too where there are more than one.
    changes : tuple of str
        ``key=value`` changes to all recipes.
    objects : tuple of int, optional
        Of the mocks of SDSS, 4MOST and DESI, in place of the scale's.

    Raises
    ------
    ConfigError
        Also where the changes, or the bundle in `out`, have templates beside the networks.
    """
    if scale not in SCALES:
        raise ConfigError(f"scale {scale!r}: expected one of {sorted(SCALES)}")
    size, bundle = SCALES[scale], places.join(out, "bundle")
    asked = ["template_fit=as_published", *size.changes, *changes]
    recipes = [load_recipe(name).override(asked) for name in size.recipes]
    trained = places.exists(places.join(bundle, BUNDLE_FILE))
    used = Predictor.without_network(bundle).family.recipe if trained else recipes[0]
    _refuse_templates(used, out)
    released = _released(out)
    sdss, fourmost, desi = _surveys(out, objects or size.objects, data, seed, progress)
    if not trained:
        train(recipes[0], sdss, bundle, workers=workers, use_gpu=use_gpu, progress=progress)
    scores = places.join(out, "scores")
    if not places.exists(places.join(scores, "index.html")):
        evaluate(bundle, sdss, scores, use_gpu=use_gpu)
    cells = _cells(out, recipes, sdss, fourmost, desi, size.coarse, seed)
    _train(cells, workers, use_gpu, progress)
    sources = Sources(
        sdss, bundle, fourmost, {name: (cell.bundle, cell.data) for name, cell in cells.items()},
        {survey: AMONG[survey] for survey in AMONG}, SHARES, released,
    )  # fmt: skip
    with places.local_folder(out) as folder:
        drawn, numbers = draw_all(sources, folder / "figures", places.join(out, "work"), use_gpu)
        tables = _tables(sdss, fourmost, desi, bundle) | {"Figures, number by number": numbers}
        summary = {
            "scale": scale, "data": sdss, "column ours": "true class, as published",
            "column released": "the authors' redshifts, our metrics: "
            + ("OUT/released.fits" if released else "as measured before, docs/redshift.md"),
        }  # fmt: skip
        places.write_json(places.join(out, "figures.json"), tables)
        write_report(folder, "GaSNet-II, reproduced", summary,
                     {one.path: one.caption for one in drawn}, tables,
                     {"all figures of the SDSS networks": "scores/index.html"})  # fmt: skip
    shown = {f"{row['figure']}: {row['score']}": f"paper {row['paper']}, ours {row['ours']}"
             for row in numbers if row["paper"] is not None}  # fmt: skip
    return shown | {"page": places.join(out, "index.html")}


def _released(out: str) -> Columns | None:
    place = places.join(out, "released.fits")
    if not places.exists(place):
        return None
    with places.local_copy(place) as file:
        return read_released(file)


def _surveys(
    out: str, objects: tuple[int, int, int], data: str | None, seed: int, progress: bool
) -> tuple[str, str, str]:
    """Return the datasets of SDSS, 4MOST and DESI, simulated where they are not there."""
    cards = {"sdss": "sdss_dr16", "fourmost_mock": "fourmost_mock", "desi_edr": "desi_edr"}
    if data is not None:
        classes = Dataset.open(data).info().classes
        if missing := sorted(set(published.TABLE_1) - set(classes)):
            raise ConfigError(f"{data}: expected the classes of card sdss_dr16, without {missing}")
    made = []
    for (folder, card), count in zip(cards.items(), objects, strict=True):
        place = places.join(out, folder)
        if folder == "sdss" and data is not None:
            place = data
        elif not Dataset.exists(place):
            simulate(load_card(card), count, seed, place, progress=progress)
        made.append(place)
    return made[0], made[1], made[2]


def _cells(
    out: str, recipes: list[Recipe], sdss: str, fourmost: str, desi: str, coarse: int, seed: int
) -> dict[str, Cell]:
    """Return all trainings but that of SDSS, by name, with their datasets."""
    classify = ["redshift_classes=[]"]

    def cell(name: str, recipe: Recipe, data: str, changes: list[str]) -> Cell:
        own = recipe.override([f"name={name}", f"seed={seed}", *changes])
        return Cell(name, own, data, places.join(out, "networks", name))

    found = [cell("fourmost", recipes[1], fourmost, []), cell("desi", recipes[2], desi, [])]
    for survey, data in (("sdss", sdss), ("fourmost", fourmost)):
        source = Dataset.open(data)
        place = coarse_dataset(source, places.join(out, f"coarse-{survey}"), coarse, seed)
        found.append(cell(f"coarse-{survey}", recipes[3], place, classify))
        recipe, changes = (recipes[0], []) if survey == "sdss" else (recipes[1], classify)
        for share in SHARES:
            name = f"wrong-{survey}-{round(100 * share)}"
            place = contaminated_dataset(
                source, places.join(out, name), AMONG[survey], share, seed
            )  # fmt: skip
            found.append(cell(name, recipe, place, changes))
    return {one.name: one for one in found}


def _train(cells: dict[str, Cell], workers: int, use_gpu: bool, progress: bool) -> None:
    for one in cells.values() if workers > 1 else ():
        if not places.exists(places.join(one.bundle, BUNDLE_FILE)):
            train(one.recipe, one.data, one.bundle, workers=workers, use_gpu=use_gpu,
                  progress=progress)  # fmt: skip
    train_cells(list(cells.values()), use_gpu=use_gpu, score=False, progress=progress)


def _refuse_templates(recipe: Recipe, out: str) -> None:
    if recipe.switch("template_fit") != "as_published":
        raise ConfigError(
            f"{out}: template_fit: expected as_published, for the paper's figures are of networks "
            "alone, found corrected; leave the change out, or take a folder without such a bundle"
        )


def _tables(sdss: str, fourmost: str, desi: str, bundle: str) -> dict[str, Rows]:
    uris = zip(published.DATASETS.items(), (sdss, fourmost, desi), strict=True)
    tables = {title: published.dataset_table(_truth(uri), paper) for (title, paper), uri in uris}
    return tables | {"Table 4: networks": _networks(bundle)}


def _truth(uri: str) -> Columns:
    """Return class, redshift and SNR of all rows of a dataset."""
    names = ["label", "redshift", "snr"]
    parts = [table_to_columns(t) for t in Dataset.open(uri).iter_tables(names, rows=1 << 16)]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def _networks(bundle: str) -> Rows:
    predictor = Predictor.without_network(bundle)
    model, counts = predictor.family.build_model(), predictor.info.counts["train"]
    members = next(iter(model.redshift.values()))
    parts = {"classifier": model.classifier, "redshift": members[0]}
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    history = history_rows(bundle)
    best = max(row["validation_accuracy"] for row in history if row["stage"] == "classifier")
    trained_on = dict(counts) | {"classifier": sum(counts.values())}
    mae = {name: one["mae"] for name, one in predictor.calibration["sigma"].items()}
    return published.networks_table(sizes, trained_on, best, mae)
