"""Contracts of what a trained model gives: weights, calibration, predictions, scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import nn

from skyray.families.base import Columns, Family, OutputColumn, Tensors
from skyray.training.contract.case import Case, plain, survives

_CLOSE = {"rtol": 1e-3, "atol": 1e-3}


class Answering:
    """A trained model as a bundle keeps it, calibrated on every other row of the example."""

    def __init__(self, case: Case, model: nn.Module):
        self.case, self.family = case, case.family()
        with case.checking("weights"):
            weights = save({k: v.detach().contiguous() for k, v in model.state_dict().items()})
            self.trained = _loaded(self.family, weights)
            self.model = self.family.optimise_for_inference(_loaded(self.family, weights))
            self.again = case.family().optimise_for_inference(_loaded(case.family(), weights))
        self.seen, self.new = np.arange(0, case.rows, 2), np.arange(1, case.rows, 2)

    def calibrate(self) -> None:
        """What blocks of rows give, on any workers, is enough for JSON and tensors that last."""
        case = self.case
        found = self._raw_outputs()
        with case.checking("fit_calibration"):
            values, tensors = self.family.fit_calibration(found)
            case.require(isinstance(values, dict), "a dict of JSON values", type(values).__name__)
            case.require(survives(values), "values that JSON keeps", values)
            for name, tensor in tensors.items():
                case.require(
                    isinstance(tensor, torch.Tensor), f"{name}: a tensor", type(tensor).__name__
                )
            kept = load(save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}))
            same = all(torch.equal(kept[name], tensors[name].cpu()) for name in tensors)
            case.require(same, "tensors that safetensors keep", "others")
            self.calibration, self.tensors = values, tensors
            self.kept: tuple[dict[str, Any], Tensors] = (plain(values), kept)

    def _raw_outputs(self) -> Columns:
        """Rows that other workers have in other blocks give the same, one after the other."""
        case = self.case

        def asked(rows: np.ndarray) -> Columns:
            return case.family().raw_outputs(self.model, case.inputs(True, rows))

        with case.checking("raw_outputs"):
            found = asked(self.seen)
            rows = {name: np.shape(values)[:1] for name, values in found.items()}
            case.require(
                all(isinstance(v, np.ndarray) for v in found.values())
                and len(set(rows.values())) == 1,
                "arrays of the same rows", rows,
            )  # fmt: skip
            for cut in (1, len(self.seen) // 2):
                parts = [asked(self.seen[:cut]), asked(self.seen[cut:])]
                for name, values in found.items():
                    dtypes = {part[name].dtype for part in parts}
                    case.require(dtypes == {values.dtype}, f"{name}: {values.dtype}", dtypes)
                joined = {n: np.concatenate([part[n] for part in parts]) for n in found}
                case.require(
                    all(joined[n].shape == v.shape for n, v in found.items()),
                    f"blocks of {cut} and more: as many rows", len(joined[next(iter(found))]),
                )  # fmt: skip
                self._require_close(joined, found, f"blocks of {cut} and more")
        return found

    def predict(self) -> None:
        """The columns described, a row an object, the same from the bundle and in any batch."""
        case = self.case
        with case.checking("predict"):
            inputs = case.asked(False, self.new)
            output = self.family.predict(self.model, inputs, self.calibration, self.tensors)
            self._check_columns(output, len(self.new), exact=True)
            nothing = case.asked(False, [])
            empty = self.family.predict(self.model, nothing, *self.kept)
            self._check_columns(empty, 0, exact=True)
            for row in (0, len(self.new) - 1):
                alone = case.asked(False, self.new[[row]])
                found = self.family.predict(self.model, alone, self.calibration, self.tensors)
                self._require_close(found, _rows(output, [row]), f"row {row} in a batch of one")
        with case.checking("weights"):
            found = case.family().predict(self.again, inputs, *self.kept)
            case.require_equal(found, output, "predictions after saving and loading")

    def in_two_steps(self) -> None:
        """`predict` is `finish` after `infer`, which other workers do, with other batches."""
        case, family = self.case, self.case.family()
        for training in (False, True):
            with case.checking("infer"):
                inputs = case.asked(training, self.new)
                found = self.family.infer(self.model, inputs, *self.kept)
                for name, values in found.items():
                    case.require(
                        isinstance(values, np.ndarray) and len(values) == len(self.new),
                        f"{name}: an array of {len(self.new)} rows", np.shape(values),
                    )  # fmt: skip
            with case.checking("finish"):
                expected = self.family.predict(self.model, inputs, *self.kept)
                case.require_equal(family.finish(found, *self.kept), expected, "as predict")
                for rows in ([0], [len(self.new) - 1], []):
                    answer = family.finish(_rows(found, rows), *self.kept)
                    case.require(set(answer) == set(expected), sorted(expected), sorted(answer))
                    self._require_close(answer, _rows(expected, rows), f"rows {rows} alone")

    def evaluate(self) -> None:
        """Predictions beside the truth give scores, in JSON."""
        case, family = self.case, self.family
        with case.checking("predict"):
            inputs = case.asked(True, self.new)
            output = family.predict(self.model, inputs, *self.kept)
            self._check_columns(output, len(self.new), exact=False)
        with case.checking("scoring_table"):
            names = dict.fromkeys(["object_id", *family.truth_columns()])
            truth = {name: case.dataset[name][self.new] for name in names}
            for name in family.detail_columns():
                output.pop(name, None)
            renamed = {f"{n}_pred" if n in truth else n: v for n, v in output.items()}
            table = family.scoring_table(truth | renamed)
            for rows in ([0], [len(self.new) - 1]):
                alone = family.scoring_table(_rows(truth | renamed, rows))
                case.require(
                    set(alone) == set(table), f"row {rows}: {sorted(table)}", sorted(alone)
                )
                same = all(len(v) == 1 and _same(v[0], table[n][rows[0]]) for n, v in alone.items())
                case.require(same, f"row {rows} alone as among others", "another")
        with case.checking("evaluate"):
            table = {name: values for name, values in table.items() if name != "object_id"}
            metrics = family.evaluate(table, self.kept[0])
            case.require(isinstance(metrics, dict), "a dict", type(metrics).__name__)
            case.require(survives(metrics), "values that JSON keeps", metrics)

    def _check_columns(self, output: Columns, rows: int, exact: bool) -> None:
        case, described = self.case, self.family.output_columns()
        promised = {column.name for column in described} | set(self.family.detail_columns())
        missing, more = promised - set(output), set(output) - promised
        case.require(not missing, f"the columns {sorted(promised)}", f"no {sorted(missing)}")
        case.require(not (exact and more), "no column but those described", sorted(more))
        for name, values in output.items():
            case.require(
                isinstance(values, np.ndarray) and len(values) == rows, f"{name}: {rows} rows",
                f"{type(values).__name__} {np.shape(values)}",
            )  # fmt: skip
        for column in described:
            _check_column(case, column, output[column.name])

    def _require_close(self, found: Columns, expected: Columns, what: str) -> None:
        """Require the same numbers but for rounding, which batches of other sizes do otherwise."""
        for name, values in expected.items():
            if values.dtype.kind == "f":
                close = np.allclose(found[name], values, equal_nan=True, **_CLOSE)
                self.case.require(
                    close, f"{what}: {name} {values.ravel()[:3]}", found[name].ravel()[:3]
                )


def _check_column(case: Case, column: OutputColumn, values: np.ndarray) -> None:
    case.require(values.ndim == 1, f"{column.name}: one value a row", values.shape)
    if column.dtype == "str":
        text = values.dtype.kind in "UT" or all(isinstance(value, str) for value in values)
        case.require(text, f"{column.name}: text", values[:3])
    else:
        case.require(
            values.dtype == np.dtype(column.dtype), f"{column.name}: {column.dtype}", values.dtype
        )


def _loaded(family: Family, weights: bytes) -> nn.Module:
    model = family.build_model()
    model.load_state_dict(load(weights))
    return model.eval()


def _rows(columns: Columns, rows: list[int]) -> Columns:
    chosen = np.asarray(rows, dtype=int)
    return {name: values[chosen] for name, values in columns.items()}


def _same(a: Any, b: Any) -> bool:
    return bool(np.all((np.asarray(a) == np.asarray(b)) | (np.asarray(a) != np.asarray(a))))
