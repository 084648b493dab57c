"""Figures of a morphology evaluation: ROC, confidence curves, confusion, mistakes, clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context

from skyray.analysis import plots
from skyray.analysis.calibration import reliability_curve
from skyray.analysis.classification import roc_auc, roc_curve
from skyray.analysis.embedding import MIN_ROWS, tsne_3d, umap_2d
from skyray.families.base import Columns
from skyray.families.morphology import metrics as scores
from skyray.pages.scatter_map import Points, write_scatter_map

_GALLERY = 32
_UMAP_ROWS = 4000


def write_figures(
    table: Columns, metrics: Mapping[str, Any], folder: Path, classes: Sequence[str], positive: str
) -> list[Path]:
    """Write all figures of an evaluated table and return their paths."""
    paths = [plots.loss_figure(table["history"], folder / "loss.png")] if "history" in table else []
    rows = scores.labelled({k: v for k, v in table.items() if k != "history"}, classes)
    if len(rows["label"]):
        confusion = np.array(metrics["confusion"])
        paths += [
            plots.confusion_figure(confusion, classes, folder / "confusion.png"),
            roc_figure({"": rows}, positive, folder / "roc.png"),
            confidence_figure({"": rows}, classes, positive, folder / "confidence.png"),
            reliability_figure(rows, folder / "reliability.png"),
        ]
        if metrics.get("votes"):
            paths.append(votes_figure(metrics["votes"], folder / "votes.png"))
        if "thumbnail" in rows:
            paths.append(mistakes_figure(rows, folder / "mistakes.png"))
        if "embedding" in rows and len(rows["label"]) >= MIN_ROWS:
            paths += cluster_figures(rows, classes, folder)
    return [path for path in paths if path is not None]


def roc_figure(sets: Mapping[str, Columns], positive: str, path: Path) -> Path:
    """Draw ROC curves, with the corner of few false positives on a log axis inset (Fig. 10)."""
    with rc_context(plots.STYLE):
        figure, axes = plots.panels(width=5.2, height=4.6)
        axis = axes[0, 0]
        inset = axis.inset_axes([0.42, 0.16, 0.54, 0.52])
        for (name, rows), color in zip(sets.items(), plots.CYCLE, strict=False):
            truth = np.asarray(rows["label"], str) == positive
            false, true = roc_curve(rows[f"p_{positive}"], truth)
            area = roc_auc(rows[f"p_{positive}"], truth)
            label = f"{name + ', ' if name else ''}AUC {area:.4f}"
            axis.step(false, true, where="post", color=color, label=label)
            inset.step(np.maximum(false, 1e-4), true, where="post", color=color)
        axis.plot([0, 1], [0, 1], color=plots.SOFT, linestyle="--", linewidth=1)
        inset.set(xscale="log", xlim=(1e-3, 1), ylim=(0.5, 1.01))
        inset.tick_params(labelsize=7)
        axis.set(
            xlabel="false-positive rate", ylabel="true-positive rate", title=f"ROC: {positive}"
        )
        axis.legend(loc="lower right", fontsize=8, bbox_to_anchor=(1.0, 0.0))
        return plots.save(figure, path)


def confidence_figure(
    sets: Mapping[str, Columns], classes: Sequence[str], positive: str, path: Path
) -> Path:
    """Draw accuracy and F1 of the most confident share of the objects (paper, Fig. 6)."""
    with rc_context(plots.STYLE):
        figure, axes = plots.panels(1, 2, sharey=True)
        for (name, rows), color in zip(sets.items(), plots.CYCLE, strict=False):
            curve = scores.confidence_curve(rows, classes, positive)
            for axis, key in zip(axes[0], ("accuracy", "f1"), strict=True):
                axis.plot(curve["share"], curve[key], color=color, label=name)
                axis.axvline(0.5, color=plots.SOFT, linestyle=":", linewidth=1)
                axis.set(
                    xlabel="most confident share of the objects", title=key.replace("f1", "F1")
                )
        if any(sets):
            axes[0, 0].legend(fontsize=8, loc="lower left")
        return plots.save(figure, path)


def reliability_figure(rows: Columns, path: Path) -> Path:
    """Draw observed against stated probability of the called class."""
    right = np.asarray(rows["label"], str) == np.asarray(rows["label_pred"], str)
    with rc_context(plots.STYLE):
        figure, axes = plots.panels()
        curve = reliability_curve(rows["probability"], right, bins=10)
        plots.reliability_axis(axes[0, 0], curve, "Calibration")
        return plots.save(figure, path)


def votes_figure(votes: Mapping[str, Sequence[float]], path: Path) -> Path:
    """Draw accuracy against the share of votes the label got."""
    with rc_context(plots.STYLE):
        figure, axes = plots.panels()
        plots.rate_axis(axes[0, 0], votes, "", plots.BLUE)
        axes[0, 0].set(xlabel="share of votes for the label", ylabel="% right",
                       title="By the label's own confidence")  # fmt: skip
        return plots.save(figure, path)


def mistakes_figure(rows: Columns, path: Path) -> Path | None:
    """Draw the most confident mistakes, with both classes and the probability."""
    truth, called = np.asarray(rows["label"], str), np.asarray(rows["label_pred"], str)
    wrong = np.flatnonzero(truth != called)
    if not len(wrong):
        return None
    order = wrong[np.argsort(-np.asarray(rows["probability"])[wrong], kind="stable")][:_GALLERY]
    columns = 8
    with rc_context({**plots.STYLE, "axes.grid": False}):
        figure, axes = plots.panels(-(-len(order) // columns), columns, 1.35, 1.6)
        for axis in axes.flat:
            axis.set_axis_off()
        for axis, row in zip(axes.flat, order, strict=False):
            axis.imshow(rows["thumbnail"][row])
            axis.set_title(
                f"{truth[row]}\n→ {called[row]} {rows['probability'][row]:.2f}",
                fontsize=7, weight="normal",
            )  # fmt: skip
        figure.suptitle(f"Mistakes: {len(wrong):,} of {len(truth):,}", fontsize=10)
        return plots.save(figure, path)


def clusters_page(rows: Columns, chosen: np.ndarray, place_N3: np.ndarray, path: Path) -> Path:
    """Write the map of the `chosen` rows, with every galaxy's picture and mistakes ringed."""
    names = ("object_id", "label", "label_pred", "probability")
    columns = {name: np.asarray(rows[name])[chosen] for name in names}
    points = Points(
        {"t-SNE": place_N3},
        columns,
        pictures=rows["thumbnail"][chosen] if "thumbnail" in rows else None,
        ringed=columns["label"].astype(str) != columns["label_pred"].astype(str),
    )
    return write_scatter_map(
        path, points, "Clusters of features", color_by="label", ringed_title="mistakes",
        note="t-SNE of the penultimate features", titles={"label_pred": "predicted"},
    )  # fmt: skip


def cluster_figures(rows: Columns, classes: Sequence[str], folder: Path) -> list[Path]:
    """Write a UMAP and the t-SNE map (3-D as an interactive page), coloured by the true class."""
    labels = np.asarray(rows["label"], str)
    chosen, place = tsne_3d(rows["embedding"])
    clusters_page(rows, chosen, place, folder / "clusters.html")
    flat = np.sort(np.random.default_rng(0).permutation(len(labels))[:_UMAP_ROWS])
    with rc_context(plots.STYLE):
        figure, axes = plots.panels(1, 2)
        for axis, points, names, title in (
            (axes[0, 0], umap_2d(rows["embedding"][flat]), labels[flat], "UMAP"),
            (axes[0, 1], place[:, :2], labels[chosen], "t-SNE (two of three axes)"),
        ):
            for name, color in zip(classes, plots.CYCLE, strict=False):
                of = names == name
                axis.scatter(*points[of, :2].T, s=5, color=color, alpha=0.7, label=name)
            axis.set(xticks=[], yticks=[], title=title)
        axes[0, 0].legend(fontsize=8, markerscale=2)
        return [plots.save(figure, folder / "clusters.png")]
