"""What a family gives away of a trained network: one graph of plain layers, inputs to answers.

Other runtimes run the graph without skyray, so it holds all that follows the network as well:
temperature, ensembles, routing, the in-domain gate. `Export.compare` holds its answers against
those of `Family.predict`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

TOLERANCE = 1e-5
_ROUNDING = 5e-7  # by which features of two runtimes differ at most, in float32


class NotExportable(ValueError):
    """A network that cannot be given away; the message says why."""


class Mismatch(ValueError):
    """A graph that answers other than its bundle; the message says where and by how much."""


def tolerance_behind(*matrices: torch.Tensor) -> float:
    """Return by how much a number made of features by these matrices [D, K] or [D] may differ.

    They magnify the rounding of features by their 2-norms at most: along directions that training
    hardly fills, a whitener does so ten-thousandfold. Never less than `TOLERANCE`.
    """
    norms = [torch.linalg.norm(matrix.double(), ord=2).item() for matrix in matrices]
    return max(TOLERANCE, _ROUNDING * max(norms))


@dataclass(frozen=True)
class Port:
    """An input or output of a graph, [B, *shape], B any number of rows.

    Attributes
    ----------
    name : str
        Of an input: the column of `Family.transform` it takes.
    dtype : str
        numpy's name of the type.
    shape : tuple of int
        Of one row; () for one value.
    unit, description : str
    columns : tuple of str
        Outputs: the columns of `Family.predict` that are its last axis in their order, or the one
        that it is; default: the one of its name. A column of text is given as int64, the number in
        `Export.classes`. Of an input: what the last axis holds, where that has names.
    tolerance : float
        How much an output may differ from the bundle's, against max(1, |its value|).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    unit: str
    description: str
    columns: tuple[str, ...] = ()
    tolerance: float = TOLERANCE

    def check(self, values: np.ndarray) -> None:
        """Raise `Mismatch` unless an array is what the port says."""
        if values.dtype != np.dtype(self.dtype) or values.shape[1:] != self.shape:
            raise Mismatch(
                f"{self.name}: expected {self.dtype} [B, {', '.join(map(str, self.shape))}], "
                f"found {values.dtype} {list(values.shape)}"
            )

    def expected(self, predicted: Mapping[str, np.ndarray], classes: Sequence[str]) -> np.ndarray:
        """Return what the port must give, of the columns of `Family.predict`."""
        names = self.columns or (self.name,)
        if missing := [name for name in names if name not in predicted]:
            raise Mismatch(f"{self.name}: expected columns of predict, found no {missing}")
        found = [np.asarray(predicted[name]) for name in names]
        if found[0].dtype.kind in "OUT":
            number = {name: i for i, name in enumerate(classes)}
            return np.array([number.get(str(name), -1) for name in found[0]], np.int64)
        return found[0] if found[0].ndim > len(self.shape) else np.stack(found, axis=-1)


@dataclass(frozen=True)
class Export:
    """A graph and what its inputs and outputs mean.

    Attributes
    ----------
    network : nn.Module
        Takes the inputs in their order and returns a tuple of the outputs in theirs; float32
        weights, evaluation mode.
    inputs, outputs : tuple of Port
    classes : tuple of str
        What class numbers and the columns of probabilities mean.
    """

    network: nn.Module
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    classes: tuple[str, ...] = ()

    @property
    def given(self) -> set[str]:
        """The columns of `Family.predict` that the graph gives."""
        return {name for port in self.outputs for name in port.columns or (port.name,)}

    def feed(self, rows: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return the inputs among the rows of `Family.transform`, checked, contiguous."""
        if missing := [port.name for port in self.inputs if port.name not in rows]:
            raise Mismatch(f"inputs: expected rows of transform, found no {missing}")
        for port in self.inputs:
            port.check(rows[port.name])
        return [np.ascontiguousarray(rows[port.name]) for port in self.inputs]

    @torch.no_grad()
    def run(self, rows: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return what the network itself answers, in torch."""
        made = self.network(*(torch.tensor(values) for values in self.feed(rows)))
        return [values.numpy() for values in made]

    def compare(
        self, answers: Sequence[np.ndarray], predicted: Mapping[str, np.ndarray]
    ) -> dict[str, float]:
        """Return the largest difference of each output, |found − expected| / max(1, |expected|).

        Classes and booleans must be equal, NaN and infinities lie in the same places.

        Raises
        ------
        Mismatch
            If an output is of another type or shape, or differs by more than its tolerance.
        """
        if len(answers) != len(self.outputs):
            raise Mismatch(f"expected {len(self.outputs)} outputs, found {len(answers)}")
        largest = {}
        for port, found in zip(self.outputs, answers, strict=True):
            port.check(found)
            expected = port.expected(predicted, self.classes)
            if found.shape != expected.shape:
                raise Mismatch(
                    f"{port.name}: expected {list(expected.shape)}, found {list(found.shape)}"
                )
            largest[port.name] = _difference(port, found, expected)
        return largest


def _difference(port: Port, found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference of one output; raise where it is too large."""
    same = found == expected
    if expected.dtype.kind == "f":
        same |= np.isnan(found) & np.isnan(expected)
        with np.errstate(invalid="ignore"):
            size = np.maximum(1.0, np.abs(expected.astype(np.float64)))
            away = np.abs(found.astype(np.float64) - expected) / size
    else:
        away = np.ones(found.shape)
    away = np.where(same, 0.0, np.where(np.isfinite(away), away, np.inf))
    if not away.size:
        return 0.0
    at = np.unravel_index(int(away.argmax()), away.shape)
    if away[at] > port.tolerance:
        raise Mismatch(
            f"{port.name}: expected {expected[at]} within {port.tolerance:g}, found {found[at]} "
            f"(row {at[0]}; {int((away > port.tolerance).sum())} of {away.size} values differ)"
        )
    return float(away[at])
