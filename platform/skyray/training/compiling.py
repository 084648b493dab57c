"""torch.compile where the machine can: it needs a C++ compiler, on a GPU Triton beside it."""

from __future__ import annotations

import functools
import logging

import torch
from torch import nn

_log = logging.getLogger(__name__)


def compiled(module: nn.Module, device: torch.device) -> nn.Module:
    """Return a module as torch.compile makes it; itself, said in the log, where nothing compiles.

    It computes the same but for rounding, so a group may hold both.
    """
    if why := _refusal(device.type):
        _log.warning(
            "train.compile: expected a machine that compiles for %s, found: %s; training goes on "
            "without, and takes longer", device.type, why,
        )  # fmt: skip
        return module
    return torch.compile(module)


@functools.cache
def _refusal(kind: str) -> str:
    """Return why a function of one line cannot be compiled for a kind of device; "" if it can."""
    try:
        with torch._inductor.config.patch(force_disable_caches=True):  # what others compiled once
            torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=kind))
    except Exception as error:  # whatever compilers, their headers and torch raise
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return ""
