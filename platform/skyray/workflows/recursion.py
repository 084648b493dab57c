"""``skyray recurse``: let a model label a new survey and learn from its surest labels.

Khan et al. 2019, §III: train on labelled galaxies of one survey, predict those of another, add the
N most confident of each class to the training set, train again from the same start, R times. The
labels of the new survey are never needed; where a test set has some, it tells what was gained.

    OUT/seed-S/round-R/bundle, dataset, scores-NAME
    OUT/recursion.json, OUT/index.html            before and after, by seed

Finished steps in the folder are not repeated.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context

from skyray.analysis import plots
from skyray.bundles.bundle import BUNDLE_FILE, read_bundle
from skyray.config import ConfigError
from skyray.data.dataset import Dataset
from skyray.families.base import Recipe
from skyray.inference.evaluate import evaluate
from skyray.inference.predict import KEY
from skyray.pages.report import write_report
from skyray.runtime import places
from skyray.training.lone import train_alone
from skyray.training.train import train
from skyray.workflows.pseudo_labels import join_pseudo_labels, predict_unlabelled, surest_rows

FAMILY = "morphology"
_LABELS = "pseudo_labels.json"


@dataclass(frozen=True)
class Settings:
    """How a recursion goes.

    Attributes
    ----------
    per_class : int
        Most confident objects of each class that are added in every round.
    rounds : int
        Trainings after the first.
    tolerance : float
        The recursion stops, and keeps what it had, when the held-out accuracy (validation split of
        the labelled data) falls by more than this.
    unlabelled_split, test_split : str or None
        Rows that are predicted, and rows that are scored; None: all.
    """

    per_class: int = 1000
    rounds: int = 1
    tolerance: float = 0.01
    unlabelled_split: str | None = None
    test_split: str | None = "test"

    def __post_init__(self):
        if self.per_class < 1 or self.rounds < 1:
            raise ConfigError(
                f"recursion: expected per_class and rounds ≥ 1, found {self.per_class} and "
                f"{self.rounds}"
            )


@dataclass(frozen=True)
class Resources:
    """What trainings may use; more than one worker trains in a Ray Train group.

    `threads` are those of a worker; None: this machine's cores, shared among the workers.
    """

    workers: int = 1
    threads: int | None = None
    use_gpu: bool = False
    progress: bool = False


@dataclass(frozen=True)
class Round:
    """One training of a recursion.

    Attributes
    ----------
    held_out : float
        Accuracy on the validation split of the labelled data.
    scores : dict
        Test set → its metrics.
    added : dict
        Class → pseudo-labelled training rows.
    purity : float or None
        Share of them whose label is right, where the unlabelled data do hold labels; for
        information, nothing is decided by it.
    """

    number: int
    bundle: str
    held_out: float
    scores: dict[str, dict[str, float]]
    added: dict[str, int] = field(default_factory=dict)
    purity: float | None = None


@dataclass(frozen=True)
class Recursion:
    """The rounds of one seed, the one that is kept, and why it ended."""

    seed: int
    rounds: tuple[Round, ...]
    kept: int
    stopped: str

    @property
    def bundle(self) -> str:
        """The model to use."""
        return self.rounds[self.kept].bundle

    def gain(self, test: str, score: str) -> float:
        """Return a score of the kept round less that of the first."""
        return self.rounds[self.kept].scores[test][score] - self.rounds[0].scores[test][score]


def recurse(
    recipe: Recipe,
    data: str,
    unlabelled: str,
    out: str,
    *,
    tests: Mapping[str, str],
    settings: Settings | None = None,
    resources: Resources | None = None,
) -> Recursion:
    """Run one recursion with the recipe's seed; Ray must be running.

    Parameters
    ----------
    recipe : Recipe
        Of the family ``morphology``.
    data, unlabelled : str
        Datasets; labels of the second are not used.
    out : str
        Folder or URI.
    tests : mapping
        Name → dataset to score every round on.
    """
    if recipe.family != FAMILY:
        raise ConfigError(f"recursion: expected a recipe of {FAMILY!r}, found {recipe.family!r}")
    settings, resources = settings or Settings(), resources or Resources()
    current, rounds = data, []
    for number in range(settings.rounds + 1):
        place = places.join(out, f"round-{number}")
        added: dict[str, int] = {}
        purity = None
        if number:
            current = places.join(place, "dataset")
            added, purity = _label(rounds[-1].bundle, data, unlabelled, place, settings, resources)
        made = _train_and_score(recipe, data, current, place, tests, settings, resources)
        rounds.append(Round(number, places.join(place, "bundle"), *made, added, purity))
        if number and rounds[-1].held_out < rounds[-2].held_out - settings.tolerance:
            fell = rounds[-2].held_out - rounds[-1].held_out
            stopped = (
                f"round {number}: held-out accuracy fell by {fell:.4f}; round {number - 1} kept"
            )
            return Recursion(recipe.seed, tuple(rounds), number - 1, stopped)
    return Recursion(recipe.seed, tuple(rounds), settings.rounds, "all rounds done")


def recurse_seeds(
    recipe: Recipe,
    data: str,
    unlabelled: str,
    out: str,
    *,
    seeds: Sequence[int],
    tests: Mapping[str, str],
    settings: Settings | None = None,
    resources: Resources | None = None,
) -> list[Recursion]:
    """Run a recursion for every seed and write ``recursion.json``, a figure and a page to `out`."""
    found = [
        recurse(recipe.override([f"seed={seed}"]), data, unlabelled,
                places.join(out, f"seed-{seed}"), tests=tests, settings=settings,
                resources=resources)
        for seed in seeds
    ]  # fmt: skip
    places.write_json(places.join(out, "recursion.json"), [asdict(one) for one in found])
    rows = before_and_after(found)
    summary = {"data": data, "unlabelled": unlabelled, "seeds": len(found),
               "stopped early": sum(one.stopped != "all rounds done" for one in found)}  # fmt: skip
    with places.local_folder(out) as folder:
        figure = gain_figure(found, folder / "figures" / "gain.png")
        write_report(folder, f"Recursive training of {recipe.name}", summary, [figure],
                     {"Before and after": rows}, {})  # fmt: skip
    return found


def before_and_after(found: Sequence[Recursion]) -> list[dict[str, Any]]:
    """Return a row a test set and score: mean before and after, their change, seeds that gained."""
    rows = []
    for test in found[0].rounds[0].scores:
        for score in ("accuracy", "half_accuracy", "f1", "auc"):
            pairs = [
                (
                    one.rounds[0].scores[test].get(score),
                    one.rounds[one.kept].scores[test].get(score),
                )
                for one in found
            ]
            if any(value is None for pair in pairs for value in pair):
                continue
            gains = [after - before for before, after in pairs]
            rows.append({
                "test set": test, "score": score,
                "before": statistics.mean(before for before, _ in pairs),
                "after": statistics.mean(after for _, after in pairs),
                "change": statistics.mean(gains),
                "spread of the change": statistics.stdev(gains) if len(gains) > 1 else 0.0,
                "seeds that gained": f"{sum(gain > 0 for gain in gains)} of {len(gains)}",
            })  # fmt: skip
    return rows


def gain_figure(found: Sequence[Recursion], path: Path) -> Path:
    """Draw every test set's accuracy by round, a line a seed."""
    tests = list(found[0].rounds[0].scores)
    with rc_context(plots.STYLE):
        figure, axes = plots.panels(1, len(tests) + 1)
        for axis, test in zip(axes[0], [*tests, None], strict=True):
            for one, color in zip(found, plots.CYCLE * len(found), strict=False):
                values = [
                    100 * (r.held_out if test is None else r.scores[test]["accuracy"])
                    for r in one.rounds
                ]
                axis.plot(range(len(values)), values, marker="o", markersize=4, color=color,
                          label=f"seed {one.seed}")  # fmt: skip
            axis.set(title=test or "held out (labelled survey)", xlabel="round", ylabel="% right")
            axis.set_xticks(range(max(len(one.rounds) for one in found)))
        axes[0, 0].legend(fontsize=7)
        return plots.save(figure, path)


def _label(
    bundle: str, data: str, unlabelled: str, place: str, settings: Settings, resources: Resources
) -> tuple[dict[str, int], float | None]:
    """Write the joined dataset unless it is there; return rows added by class, and their purity."""
    kept, out = places.join(place, _LABELS), places.join(place, "dataset")
    if places.exists(kept):
        known = places.read_json(kept)
        return known["added"], known["purity"]
    new = Dataset.open(unlabelled)
    results = predict_unlabelled(
        bundle, new, settings.unlabelled_split, places.join(place, "predictions"),
        workers=resources.workers, use_gpu=resources.use_gpu,
    )  # fmt: skip
    classes = read_bundle(bundle)["data"]["classes"]
    chosen = results.take(surest_rows(results, classes, settings.per_class))
    names, ids, truth = (np.asarray(chosen[n], str) for n in ("label_pred", KEY, "label"))
    join_pseudo_labels(Dataset.open(data), new, dict(zip(ids, names, strict=True)), out)
    places.remove(results.uri)
    known = truth != ""
    purity = float(np.mean(truth[known] == names[known])) if known.any() else None
    added = {name: int((names == name).sum()) for name in classes}
    places.write_json(kept, {"added": added, "purity": purity})
    return added, purity


def _train_and_score(
    recipe, data: str, current: str, place: str, tests, settings: Settings, resources: Resources
) -> tuple[float, dict[str, dict[str, float]]]:
    """Return held-out accuracy and the scores of every test set, training first if need be."""
    bundle = places.join(place, "bundle")
    if not places.exists(places.join(bundle, BUNDLE_FILE)):
        if resources.workers == 1:
            train_alone(recipe, current, places.join(place, "run"), out=bundle, spread=True,
                        threads=resources.threads, use_gpu=resources.use_gpu)  # fmt: skip
        else:
            train(recipe, current, bundle, workers=resources.workers, threads=resources.threads,
                  use_gpu=resources.use_gpu, progress=resources.progress)  # fmt: skip
    held_out = _scores(bundle, data, places.join(place, "scores-held-out"), "validation", resources)
    scores = {}
    for name, test in tests.items():
        out = places.join(place, f"scores-{name.replace(' ', '-')}")
        scores[name] = _scores(bundle, test, out, settings.test_split, resources)
    return held_out["accuracy"], scores


def _scores(bundle: str, data: str, out: str, split: str | None, resources: Resources):
    kept = places.join(out, "metrics.json")
    if places.exists(kept):
        found = places.read_json(kept)
    else:
        found = evaluate(bundle, data, out, split=split, workers=resources.workers, figures=False)
    return {k: float(v) for k, v in found.items() if isinstance(v, int | float)}
