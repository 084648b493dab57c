"""``skyray reproduce des-galaxies``: Khan et al. 2019 on mock SDSS and DES, or on real datasets.

A model is trained on safely labelled SDSS galaxies, scored on the full overlap in both surveys, and
trained again with its surest labels of unlabelled DES galaxies. Without real datasets the surveys
are mocks: training galaxies of one sky, and another sky that both surveys see.

Finished steps in the folder are not repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from skyray.cards import Card, load_card
from skyray.config import ConfigError
from skyray.data.dataset import Dataset
from skyray.data.simulate import simulate
from skyray.families.base import load_recipe
from skyray.inference.evaluate import evaluate
from skyray.pages.report import write_report
from skyray.runtime import places
from skyray.workflows.recursion import (
    Resources,
    Settings,
    before_and_after,
    gain_figure,
    recurse_seeds,
)


@dataclass(frozen=True)
class Scale:
    """How large a reproduction is; `paper` is for a cluster."""

    training: int
    overlap: int
    image_size: int
    per_class: int
    recipe: str


SCALES = {
    "laptop": Scale(1200, 2400, 64, 200, "morphology/mock_sdss_laptop"),
    "paper": Scale(52_000, 33_000, 200, 1000, "morphology/sdss_xception"),
}


def mock_cards(image_size: int) -> dict[str, Card]:
    """Return the cards of the mock datasets.

    ``sdss``: galaxies with safe votes; ``sdss_overlap`` and ``des_overlap``: galaxies of any
    votes, labelled by the larger share, through either survey, half of them for the test.
    """
    size = [f"image_size={image_size}"]
    halves = [*size, "split={train: 0.45, validation: 0.05, test: 0.5}"]
    sdss = load_card("sdss_galaxies").override(size)
    des = load_card("des_galaxies").override(halves)
    overlap = sdss.model_copy(
        update={
            "name": "sdss_galaxies_overlap",
            "labels": des.labels,
            "split": des.split,
            "mock": sdss.mock.model_copy(update={"options": {**sdss.mock.options, "min_vote": 0}}),
        }
    )
    safe = sdss.override(["mock.options.min_vote=0.985"])
    return {"sdss": safe, "sdss_overlap": overlap, "des_overlap": des}


def reproduce(
    out: str,
    scale: str = "laptop",
    *,
    sdss: str | None = None,
    sdss_overlap: str | None = None,
    des_overlap: str | None = None,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    seed: int = 11,
    workers: int = 1,
    threads: int | None = None,
    use_gpu: bool = False,
    changes: tuple[str, ...] = (),
    progress: bool = True,
) -> dict[str, Any]:
    """Run the whole experiment in `out` and return its figures; Ray must be running.

    Parameters
    ----------
    scale : str
        ``laptop`` or ``paper``.
    sdss, sdss_overlap, des_overlap : str, optional
        Datasets to use in place of mock surveys; of the last, ``train`` is taken as unlabelled and
        ``test`` scores.
    seeds : sequence of int
        Trainings; the paper averages ten.
    seed : int
        Of the mock skies.
    changes : tuple of str
        ``key=value`` changes to the recipe.
    """
    if scale not in SCALES:
        raise ConfigError(f"scale {scale!r}: expected one of {sorted(SCALES)}")
    size = SCALES[scale]
    given = {"sdss": sdss, "sdss_overlap": sdss_overlap, "des_overlap": des_overlap}
    data = {
        name: uri or _mock(name, size, seed, places.join(out, name), progress)
        for name, uri in given.items()
    }
    recipe = load_recipe(size.recipe).override(changes)
    found = recurse_seeds(
        recipe, data["sdss"], data["des_overlap"], places.join(out, "recursion"), seeds=seeds,
        tests={"SDSS in domain": data["sdss"], "SDSS overlap": data["sdss_overlap"],
               "DES overlap": data["des_overlap"]},
        settings=Settings(per_class=size.per_class, unlabelled_split="train"),
        resources=Resources(workers, threads, use_gpu, progress),
    )  # fmt: skip
    # The figures of the last seed, first and last round: ROC, confidence, mistakes, clusters.
    last = found[-1]
    links = {"Recursion": "recursion/index.html"}
    for number in sorted({0, last.kept}):
        name = f"des-round-{number}"
        if not places.exists(places.join(out, name, "index.html")):
            evaluate(last.rounds[number].bundle, data["des_overlap"], places.join(out, name))
        links[f"DES, round {number}, seed {last.seed}"] = f"{name}/index.html"
    table = before_and_after(found)
    places.write_json(places.join(out, "figures.json"), table)
    summary = {"scale": scale, "seeds": len(found), **data}
    with places.local_folder(out) as folder:
        figure = gain_figure(found, folder / "figures" / "gain.png")
        write_report(folder, "DES galaxies, reproduced", summary, [figure],
                     {"Before and after": table}, links)  # fmt: skip
    return {
        f"{row['test set']}, {row['score']}": (
            f"{row['before']:.4f} → {row['after']:.4f} ({row['seeds that gained']} seeds gained)"
        )
        for row in table
    }


def _mock(name: str, size: Scale, seed: int, out: str, progress: bool) -> str:
    """Simulate a dataset unless it is there; both overlaps show the same sky."""
    if not Dataset.exists(out):
        card = mock_cards(size.image_size)[name]
        objects = size.training if name == "sdss" else size.overlap
        sky = seed if name == "sdss" else seed + 1
        simulate(card, objects, sky, out, progress=progress)
    return out
