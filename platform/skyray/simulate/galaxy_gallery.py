"""Pictures of mock galaxies: the same objects as each survey shows them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from skyray.simulate.galaxies import GalaxySurvey
from skyray.transforms.images import ColourMapping, Mode, published_mapping, to_colour

_STYLE = {"font.size": 8, "axes.titlesize": 7}


def survey_figure(
    surveys: Mapping[str, GalaxySurvey], path: Path, per_class: int = 6, colours: Mode = "corrected"
) -> Path:
    """Draw the first galaxies of every class, a row a survey and class, and return `path` (PNG).

    Parameters
    ----------
    surveys : mapping
        Title → survey; of one seed, so that galaxies stand below each other.
    colours : str
        ``corrected``: one colour mapping for all; ``as_published``: each survey's own.
    """
    classes = next(iter(surveys.values())).card.classes
    rows = [(label, title) for label in classes for title in surveys]
    with rc_context(_STYLE):
        figure = Figure(figsize=(1.5 * per_class, 1.65 * len(rows)), layout="constrained")
        axes = figure.subplots(len(rows), per_class, squeeze=False)
        for line, (label, title) in zip(axes, rows, strict=True):
            for index, axis in enumerate(line):
                record = surveys[title].record(label, index)
                mapping, clip = ColourMapping(), "corrected"
                if colours == "as_published":
                    mapping, clip = published_mapping(record.survey), "as_published"
                picture = to_colour(record.image, record.bands, mapping, clip)
                axis.imshow(picture.transpose(1, 2, 0), origin="lower")
                axis.set(xticks=[], yticks=[])
                axis.set_title(f"{record.extra['kind']}, r {record.extra['r_mag']:.1f}")
            line[0].set_ylabel(f"{title}\n{label}")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    return path
