"""The redshifts that the authors of GaSNet-II released, as a table that our metrics take.

``results/test_results.fits`` of https://github.com/Fucheng-Zhong/GaSNet-II: 3,000 test spectra of
each of the six extragalactic classes, each with the mean and the standard deviation of the ten
networks of its *true* class. The repository has no licence: the table is fetched, never kept here.
"""

from __future__ import annotations

import os

import numpy as np
from astropy.table import Table

from skyray.families.redshift import metrics

URL = (
    "https://raw.githubusercontent.com/Fucheng-Zhong/GaSNet-II/"
    "3075cead83d41c6440ba3e972f6436fcd14aea6e/results/test_results.fits"
)
CLASSES = {
    "GALAXY_nan": "GALAXY", "GALAXY_AGN": "GALAXY", "GALAXY_STARBURST": "GALAXY",
    "GALAXY_STARFORMING": "GALAXY", "QSO_nan": "QSO", "QSO_BROADLINE": "QSO",
}  # fmt: skip
_NUMBERS = {  # theirs → ours
    "label": "redshift", "SNR": "snr", "pred_bar": "redshift_true_route",
    "pred_std": "redshift_err_true_route",
}  # fmt: skip


def read_released(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Return the released table as columns of `metrics.evaluate_table`, true-class route alone.

    Raises
    ------
    ValueError
        Naming the file and the column or row that is not as the authors' code writes it.
    """
    try:
        table = Table.read(os.fspath(path), format="fits", memmap=False)
    except OSError as error:
        raise ValueError(f"{path}: expected a FITS table, found {error}") from error
    wanted = [*_NUMBERS, "CLASS", "SUBCLASS"]
    if missing := [name for name in wanted if name not in table.colnames]:
        raise ValueError(f"{path}: columns {missing} are missing; found {table.colnames}")
    if not len(table):
        raise ValueError(f"{path}: expected rows, found none")
    found = {ours: _numbers(path, table, theirs) for theirs, ours in _NUMBERS.items()}
    words = [_texts(path, table, name) for name in ("CLASS", "SUBCLASS")]
    label = np.array([f"{c}_{s or 'nan'}" for c, s in zip(*words, strict=True)])
    if len(strange := np.flatnonzero(~np.isin(label, list(CLASSES)))):
        row = strange[0]
        raise ValueError(
            f"{path}: row {row}: expected a class of {list(CLASSES)}, found {label[row]!r}"
        )
    spectype = np.array([CLASSES[name] for name in label])
    return {"label": label, "spectype": spectype, **found}


def released_scores(columns: dict[str, np.ndarray], validation_mae=None) -> dict:
    """Return the scores of the released redshifts: ``all``, ``GALAXY``, ``QSO``, ``per_class``."""
    answer = {"label_pred": columns["label"], "redshift_pred": columns["redshift_true_route"],
              "redshift_err_pred": columns["redshift_err_true_route"]}  # fmt: skip
    table = {**columns, **answer}
    found = metrics.evaluate_table(table, list(CLASSES), CLASSES, validation_mae)
    return found["redshift"]["true_class"]


def _numbers(path, table: Table, name: str) -> np.ndarray:
    values = np.ma.filled(np.ma.asarray(table[name].data), np.nan)
    if values.dtype.kind not in "fiu" or values.size != len(table):
        raise ValueError(
            f"{path}: {name}: expected one number a row, found {values.dtype} {values.shape}"
        )
    values = values.reshape(-1).astype(np.float64)
    if len(bad := np.flatnonzero(~np.isfinite(values))):
        raise ValueError(f"{path}: row {bad[0]}: {name}: expected a number, found {values[bad[0]]}")
    return values


def _texts(path, table: Table, name: str) -> list[str]:
    values = np.asarray(table[name].data)
    if values.dtype.kind not in "SU" or values.size != len(table):
        raise ValueError(
            f"{path}: {name}: expected one text a row, found {values.dtype} {values.shape}"
        )
    return [str(text).strip() for text in values.reshape(-1).astype(str)]
