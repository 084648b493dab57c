"""Columns whose missing values another column marks: astropy's ``flux`` and ``flux.mask``."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from skyray.readers.column_facts import Facts
from skyray.records import InvalidRecord


def masks_of(facts: Facts, names: set[str], there: Collection[str]) -> dict[str, str]:
    """Return column → its mask; not of masks that are asked for, which the card applies itself."""

    def plain(name: str) -> str:
        return name.lower() if facts.any_case else name

    asked, known = {plain(name) for name in names}, {plain(name) for name in there}
    masks = {name: facts.of(name).mask for name in names}
    return {n: mask for n, mask in masks.items() if plain(mask) in known - asked}


def without_masked(
    name: str, column: np.ndarray | pa.Array, mask: np.ndarray | pa.Array, source: str
) -> np.ndarray | pa.Array:
    """Return a column that is masked, or null, where its mask is true.

    Raises
    ------
    InvalidRecord
        ``column_type`` for a mask of another shape or type, and for Arrow's lists.
    """
    if isinstance(column, np.ndarray):
        if mask.dtype == bool and mask.shape == column.shape:
            return np.ma.array(column, mask=mask | np.ma.getmaskarray(column))
        found = f"{mask.dtype} of shape {mask.shape}"
    else:
        if pa.types.is_boolean(mask.type) and not pa.types.is_nested(column.type):
            return pc.if_else(mask, pa.scalar(None, column.type), column)
        found = f"{mask.type} beside {column.type}"
    detail = f"{name}: expected its mask to hold a truth value a number, found {found}; "
    raise InvalidRecord("column_type", f"{detail}let the card's `mask` name it", source)
