"""The one place that imports escnn.

escnn asks for lie_learn, whose wheels need numpy 1, and uses it for SO(3) alone. Groups of the
plane never get there, so where lie_learn is missing a placeholder takes its name; it raises if
anything calls it.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from types import ModuleType

from skyray.config import ConfigError

_WANTED = "lie_learn.representations.SO3.wigner_d"


def import_escnn() -> ModuleType:
    """Return escnn, with its ``gspaces`` and ``nn`` loaded.

    Raises
    ------
    ConfigError
        If escnn is not installed.
    """
    if importlib.util.find_spec("escnn") is None:
        raise ConfigError(
            "equivariant networks need escnn, which is not installed: pip install "
            "skyray[equivariant]"
        )
    if _WANTED not in sys.modules and importlib.util.find_spec("lie_learn") is None:
        _stand_in_for_lie_learn()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`py3nj` package not found")  # SO(3) again
        import escnn
        import escnn.gspaces
        import escnn.nn

    return escnn


def _stand_in_for_lie_learn() -> None:
    parts = _WANTED.split(".")
    for depth in range(1, len(parts) + 1):
        name = ".".join(parts[:depth])
        module = sys.modules.setdefault(name, ModuleType(name))
        module.__path__ = []  # a package, as far as the import system asks
    sys.modules[_WANTED].wigner_D_matrix = _no_wigner_matrix


def _no_wigner_matrix(*args, **kwargs):
    raise NotImplementedError("lie_learn is not installed: no representations of SO(3)")
