"""Datasets that `skyray reproduce gasnet-ii` makes of a survey: coarse classes, wrong labels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from skyray.cards import Card
from skyray.config import ConfigError
from skyray.data.dataset import Dataset, table_to_columns
from skyray.data.derive import derive
from skyray.families.redshift.contamination import contaminate_labels
from skyray.inference.predict import KEY

RIGHT_LABEL = "right_label"  # of ``extra``: what the survey says where the label was made wrong
COARSE = ("STAR", "GALAXY", "QSO")


def coarse_dataset(source: Dataset, out: str, per_class: int, seed: int) -> str:
    """Write a survey regrouped into STAR, GALAXY and QSO, equally many of each (Appendix B).

    `per_class` objects of each class are drawn at random; of the smallest class's number where it
    has fewer. Return `out`.
    """
    if Dataset.exists(out):
        return out
    names, labels = _labels(source)
    coarse = np.array([source.card.coarse.get(name, name) for name in labels])
    counts = {name: int((coarse == name).sum()) for name in COARSE}
    if not all(counts.values()):
        raise ConfigError(f"{source.uri}: expected stars, galaxies and quasars, found {counts}")
    each, rng, chosen = min(per_class, *counts.values()), np.random.default_rng(seed), {}
    for name in COARSE:
        rows = rng.permutation(np.flatnonzero(coarse == name))[:each]
        chosen |= dict.fromkeys(names[rows].tolist(), name)
    card = _card(source.card, "coarse", list(COARSE), {name: name for name in COARSE})
    _relabelled(source, card, chosen, out)
    return out


def contaminated_dataset(
    source: Dataset, out: str, among: Sequence[str], share: float, seed: int
) -> str:
    """Write the objects of some classes, of which a `share` carry wrong labels (Appendix A).

    As published the labels of the picked objects, of all splits, are shuffled among them. What
    the survey said stands as `RIGHT_LABEL` in ``extra``. Return `out`.
    """
    if Dataset.exists(out):
        return out
    names, labels = _labels(source)
    if missing := sorted(set(among) - set(labels)):
        raise ConfigError(f"{source.uri}: expected objects of {list(among)}, none of {missing}")
    here = np.isin(labels, list(among))
    wrong = contaminate_labels(labels[here], share, among, seed, "as_published")
    chosen = dict(zip(names[here].tolist(), wrong.tolist(), strict=True))
    coarse = {name: source.card.coarse.get(name, name) for name in among}
    _relabelled(source, _card(source.card, "contaminated", list(among), coarse), chosen, out)
    return out


def extra_of(texts: Sequence[str | None], name: str) -> list[Any]:
    """Return one entry of ``extra`` (JSON) of each row, None where it is not there."""
    return [json.loads(text or "{}").get(name) for text in texts]


def _labels(source: Dataset) -> tuple[np.ndarray, np.ndarray]:
    columns = table_to_columns(source.to_table([KEY, "label"]))
    order = np.argsort(columns[KEY].astype(str))  # not the order in which workers wrote
    return columns[KEY].astype(str)[order], columns["label"].astype(str)[order]


def _card(card: Card, kind: str, classes: list[str], coarse: dict[str, str]) -> Card:
    changed = {"name": f"{card.name}_{kind}", "classes": classes, "coarse": coarse,
               "labels": [], "mock": None}  # fmt: skip
    return Card.model_validate({**card.model_dump(), **changed})


def _relabelled(source: Dataset, card: Card, chosen: Mapping[str, str], out: str) -> None:
    """Write the rows named in `chosen` (observation_id → label) as a dataset."""

    def relabel(table: pa.Table) -> pa.Table:
        names = table[KEY].to_pylist()
        table = table.filter(pa.array([name in chosen for name in names]))
        labels = [chosen[name] for name in table[KEY].to_pylist()]
        extra = [
            json.dumps({**json.loads(text or "{}"), RIGHT_LABEL: right}, sort_keys=True)
            for text, right in zip(
                table["extra"].to_pylist(), table["label"].to_pylist(), strict=True
            )
        ]
        for column, values in (("label", labels), ("extra", extra)):
            at = table.schema.get_field_index(column)
            table = table.set_column(at, table.schema.field(at), pa.array(values, pa.string()))
        return table

    rows = source.to_ray().map_batches(relabel, batch_format="pyarrow", num_cpus=0.5)
    derive(card, rows, out)
