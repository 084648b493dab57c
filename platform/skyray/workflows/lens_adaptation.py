"""``skyray reproduce lens-adaptation``: domain adaptation of lens classes, after Alexander et al.

Mock lenses seen by HST and Euclid; both directions; a D₂-equivariant network and EfficientNet-B0;
several seeds. Each training learns the source's labels, then adapts to the target without its
labels, and its best epoch is chosen without them. The table is that of the paper's Figure 2.

The images are those of the released simulator, whose Euclid has no noise: with its mistakes
corrected, and both surveys brought to one field and unit rms, hardly a shift is left to adapt to.

Finished steps in the folder are not repeated: lenses simulated there from another card are used.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context

from skyray.analysis import plots
from skyray.bundles.bundle import BUNDLE_FILE, history_rows
from skyray.cards import Card, load_card
from skyray.config import ConfigError
from skyray.data.dataset import Dataset, table_to_columns
from skyray.data.simulate import simulate
from skyray.families.base import load_recipe
from skyray.families.lensing.survey_figures import sample_figure, statistics
from skyray.pages.report import write_report
from skyray.runtime import places
from skyray.search.cells import Cell, train_cells
from skyray.simulate.base import make_simulator
from skyray.training.train import train

Key = tuple[str, str]  # direction, network
Trainings = Mapping[Key, Sequence[Mapping[str, Any]]]
CARD, CORRECTED_CARD = "lenses_two_domains_as_published", "lenses_two_domains"
DIRECTIONS = {"euclid_to_hst": "Euclid → HST", "hst_to_euclid": "HST → Euclid"}
NETWORKS = {"equivariant": "D₂ network", "efficientnet": "EfficientNet-B0"}
# Alexander et al. 2022, §4: AUC before, after; accuracy after.
PUBLISHED = {
    ("euclid_to_hst", "equivariant"): (0.915, 0.999, 0.991),
    ("hst_to_euclid", "equivariant"): (0.973, 0.999, 0.975),
    ("euclid_to_hst", "efficientnet"): (0.685, 0.924, 0.87),
    ("hst_to_euclid", "efficientnet"): (0.789, 0.991, 0.88),
}
_SCORES = ("target_before_auc", "target_after_auc", "target_before_accuracy",
           "target_after_accuracy", "source_before_auc", "domain_auc_before",
           "domain_auc_after")  # fmt: skip
_SAMPLE_ROWS = 300
_SHOWN = ["image", "label", "survey", "pixel_scale_arcsec", "extra"]


@dataclass(frozen=True)
class Scale:
    """How large a reproduction is; `recipes` end in this suffix."""

    objects: int
    suffix: str
    seeds: int


# The card's split: 70 % train. Laptop: 2,100 training images of each survey; paper: 30,000.
SCALES = {"laptop": Scale(6000, "_laptop", 3), "paper": Scale(86_000, "", 3)}


def reproduce(
    out: str,
    scale: str = "laptop",
    *,
    data: str | None = None,
    directions: Sequence[str] = tuple(DIRECTIONS),
    networks: Sequence[str] = tuple(NETWORKS),
    seeds: int | None = None,
    seed: int = 11,
    workers: int = 1,
    use_gpu: bool = False,
    threads: int | None = None,
    changes: tuple[str, ...] = (),
    progress: bool = True,
) -> dict[str, Any]:
    """Run the whole experiment in `out` and return its table; Ray must be running.

    Parameters
    ----------
    scale : str
        ``laptop`` or ``paper``.
    data : str, optional
        Dataset with both surveys to use in place of a simulated one.
    seeds : int, optional
        Trainings of each network and direction, with seeds `seed`, `seed` + 1 …
    workers : int
        Of one training. With 1, as many trainings run at once as the cluster has CPUs (or GPUs).
    threads : int, optional
        Of a worker; 1 unless given.
    changes : tuple of str
        ``key=value`` changes to all recipes, such as ``method=dann``.
    """
    if scale not in SCALES:
        raise ConfigError(f"scale {scale!r}: expected one of {sorted(SCALES)}")
    size = SCALES[scale]
    lenses = data or places.join(out, "lenses")
    if not Dataset.exists(lenses):
        simulate(load_card(CARD), size.objects, seed, lenses, progress=progress)
    cells: dict[tuple[Key, int], Cell] = {}
    for key in itertools.product(directions, networks):
        for number in range(seed, seed + (seeds or size.seeds)):
            made = _recipe(*key, size.suffix).override([f"seed={number}", *changes])
            name = f"{'-'.join(key)}-{number}"
            cells[key, number] = Cell(name, made, lenses, places.join(out, name))
    for cell in cells.values() if workers > 1 else ():
        if not places.exists(places.join(cell.bundle, BUNDLE_FILE)):
            train(cell.recipe, lenses, cell.bundle, workers=workers, use_gpu=use_gpu,
                  threads=threads, progress=progress)  # fmt: skip
    metrics = train_cells(
        list(cells.values()), threads=threads or 1, use_gpu=use_gpu, figures=True,
        progress=progress,
    )  # fmt: skip
    trainings: dict[Key, list[dict[str, Any]]] = {}
    for (key, _), cell in cells.items():
        trainings.setdefault(key, []).append(_scores(cell, metrics[cell.name]))
    with places.local_folder(out) as folder:
        return _report(folder, trainings, _survey(lenses))


def _report(out: Path, trainings: Trainings, survey: Mapping[str, Any]) -> dict[str, Any]:
    """Write table, figures and page; return the short table."""
    rows = [table_row(key, found) for key, found in trainings.items()]
    card = load_card(CORRECTED_CARD)
    corrected = _drawn(card, _SAMPLE_ROWS)
    measured = statistics(corrected)
    content = {
        "table": rows,
        "statistics": measured,
        "trainings": {"-".join(key): found for key, found in trainings.items()},
    }
    places.write_json(str(out / "figures.json"), content)
    paths = [
        sample_figure(survey, card.classes, out / "figures" / "lenses.png"),
        sample_figure(corrected, card.classes, out / "figures" / "lenses_corrected.png"),
        auc_figure(trainings, out / "figures" / "auc.png"),
    ]
    summary = {f"{r['direction']}, {r['network']}": r["AUC on the target"] for r in rows}
    tables = {"Figure 2": rows, "Images of the corrected simulator": measured}
    title = "Domain adaptation of strong lenses, reproduced"
    write_report(out, title, summary, [path for path in paths if path], tables)
    return summary


def _recipe(direction: str, network: str, suffix: str):
    middle = "" if network == "equivariant" else f"_{network}"
    name = f"{direction}{middle}{suffix}"
    if direction == "hst_to_euclid" and suffix == "" and middle:
        return load_recipe(f"lensing/{_turned(direction)}{middle}").override(
            [f"name={name}", "source=hst", "target=euclid"]
        )
    return load_recipe(f"lensing/{name}")


def _turned(direction: str) -> str:
    return next(name for name in DIRECTIONS if name != direction)


def _scores(cell: Cell, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the test scores of a training and what the choice of its epoch cost."""
    scores = {name: metrics[name] for name in _SCORES if name in metrics}
    rows = [row for row in history_rows(cell.bundle) if row.get("validation_target_share")]
    if rows:
        oracle = [row["validation_oracle"] / row["validation_target_share"] for row in rows]
        chosen = int(np.argmax([row["validation_selection"] for row in rows]))
        scores["validation_accuracy_chosen"] = oracle[chosen]
        scores["validation_accuracy_oracle"] = max(oracle)
    return scores


def table_row(key: Key, trainings: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return one line of the table: means and deviations over the seeds, the paper's beside."""

    def spread(name: str) -> str:
        values = [found[name] for found in trainings if found.get(name) is not None]
        return f"{np.mean(values):.3f} ± {np.std(values):.3f}" if values else ""

    before, after, accuracy = PUBLISHED[key]
    direction, network = key
    return {
        "direction": DIRECTIONS[direction],
        "network": NETWORKS[network],
        "seeds": len(trainings),
        "AUC on the source": spread("source_before_auc"),
        "AUC on the target": f"{spread('target_before_auc')} → {spread('target_after_auc')}",
        "accuracy on the target": (
            f"{spread('target_before_accuracy')} → {spread('target_after_accuracy')}"
        ),
        "published": f"{before:.3f} → {after:.3f}; accuracy {accuracy:.3f}",
        "AUC of telling the surveys": (
            f"{spread('domain_auc_before')} → {spread('domain_auc_after')}"
        ),
        "validation accuracy, chosen epoch (oracle's)": (
            f"{spread('validation_accuracy_chosen')} ({spread('validation_accuracy_oracle')})"
        ),
    }


def auc_figure(trainings: Trainings, path: Path) -> Path | None:
    """Draw the target's AUC before and after adaptation, every seed, beside the published one."""
    directions = [name for name in DIRECTIONS if any(key[0] == name for key in trainings)]
    if not directions:
        return None
    with rc_context(plots.STYLE):
        figure, axes = plots.panels(1, len(directions), width=4.4, sharey=True)
        for axis, direction in zip(axes[0], directions, strict=True):
            for place, (network, color) in enumerate(
                zip(NETWORKS, (plots.BLUE, plots.RED), strict=True)
            ):
                for found in trainings.get((direction, network), ()):
                    values = [found.get("target_before_auc"), found.get("target_after_auc")]
                    axis.plot([place - 0.15, place + 0.15], values, color=color, marker="o",
                              markersize=4, linewidth=1.2, alpha=0.8)  # fmt: skip
                axis.plot([place - 0.15, place + 0.15], PUBLISHED[direction, network][:2], "x",
                          color=plots.SOFT, label=None if place else "published")  # fmt: skip
            axis.set_xticks(range(len(NETWORKS)), NETWORKS.values())
            axis.set(title=DIRECTIONS[direction], xlim=(-0.5, len(NETWORKS) - 0.5))
        axes[0, 0].set_ylabel("macro AUC on the target: before, after")
        axes[0, 0].legend(loc="lower right", fontsize=8)
        return plots.save(figure, path)


def _survey(data: str) -> dict[str, Any]:
    """Return some test images, with what was drawn for them."""
    dataset = Dataset.open(data)
    rows = np.random.default_rng(0).permutation(dataset.rows("test"))[:_SAMPLE_ROWS]
    return table_to_columns(dataset.take(rows, _SHOWN))


def _drawn(card: Card, count: int) -> dict[str, Any]:
    """Return mock images of a card, all classes and surveys alike, with what was drawn for them."""
    survey = make_simulator(card, 0)
    labels = [card.classes[number % len(card.classes)] for number in range(count)]
    cutouts = [survey.record(of, number // len(card.classes)) for number, of in enumerate(labels)]
    return {
        "image": np.stack([cutout.image for cutout in cutouts]),
        "label": np.array(labels, dtype=object),
        "survey": np.array([cutout.survey for cutout in cutouts], dtype=object),
        "pixel_scale_arcsec": np.array([cutout.pixel_scale_arcsec for cutout in cutouts]),
        "extra": [json.dumps(cutout.extra) for cutout in cutouts],
    }
