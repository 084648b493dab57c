"""A picture of a mock alert survey: stamps of every kind, to look at before anything is trained."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from skyray.records import STAMPS, Alert
from skyray.simulate.alerts import AlertSurvey

_MOST_TRIED = 400


def kinds_figure(survey: AlertSurvey, path: Path, columns: int = 3) -> Path:
    """Draw `columns` alerts of every kind of a survey, a kind a row, and return `path` (PNG).

    Science and template share one asinh stretch about the sky; the difference has its own.
    """
    rows: list[tuple[str, str, list[Alert]]] = []
    for label, kinds in survey.options.classes.items():
        found: dict[str, list[Alert]] = {kind: [] for kind in kinds}
        for source in range(_MOST_TRIED):
            if all(len(alerts) == columns for alerts in found.values()):
                break
            epoch = min(2, survey.options.alerts_per_source - 1)
            kind = survey.history(label, source, epoch).model.kind
            if len(found[kind]) < columns:
                index = source * survey.options.alerts_per_source + epoch
                found[kind].append(survey.record(label, index))
        rows += [(label, kind, alerts) for kind, alerts in found.items()]
    figure, axes = plt.subplots(
        len(rows), 3 * columns, figsize=(3.6 * columns, 1.35 * len(rows)), layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for row, (label, kind, alerts) in zip(axes, rows, strict=True):
        for axis in row:
            axis.set_axis_off()
        for number, alert in enumerate(alerts):
            _draw(row[3 * number : 3 * number + 3], alert)
        row[0].set_title(f"{label}: {kind.replace('_', ' ')}", fontsize=8, loc="left")
    figure.suptitle(f"{survey.card.title}: mock. Science, template, difference", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _draw(axes: np.ndarray, alert: Alert) -> None:
    for axis, name, stamp in zip(axes, STAMPS, alert.stamps(), strict=True):
        middle = np.nanmedian(stamp)
        noise = 1.4826 * np.nanmedian(np.abs(stamp - middle)) or 1.0
        shown = np.arcsinh((stamp - middle) / (3 * noise))
        limit = 2.0 if name == "difference" else None
        low = -2.0 if name == "difference" else -0.7
        axis.imshow(shown, cmap="gray", vmin=low, vmax=limit, origin="lower")
    axes[2].text(
        0.97, 0.03, f"{alert.candidate['magpsf']:.1f}", color="#E69F00", fontsize=7,
        ha="right", transform=axes[2].transAxes,
    )  # fmt: skip
