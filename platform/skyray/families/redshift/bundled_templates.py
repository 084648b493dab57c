"""Templates as a bundle keeps them: among the calibration's tensors, under a prefix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from skyray.models.template_bases import TemplateBasis, from_arrays, to_arrays

_PREFIX = "templates/"


def to_tensors(bases: Sequence[TemplateBasis]) -> dict[str, torch.Tensor]:
    """Return the arrays of `template_bases.to_arrays` as tensors of a bundle."""
    return {f"{_PREFIX}{name}": torch.as_tensor(v.copy()) for name, v in to_arrays(bases).items()}


def from_tensors(tensors: Mapping[str, torch.Tensor]) -> list[TemplateBasis]:
    """Return the bases among the tensors of a bundle, on any device."""
    return from_arrays(
        {
            name.removeprefix(_PREFIX): values.cpu().numpy()
            for name, values in tensors.items()
            if name.startswith(_PREFIX)
        }
    )
