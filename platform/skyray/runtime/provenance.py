"""What a result was made with: the commit of the sources and the versions of its packages."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
from pathlib import Path

PACKAGES = ("skyray", "torch", "ray", "numpy", "pyarrow", "astropy", "mlflow", "scipy")


def git_commit() -> str:
    """Return the commit of the sources, ``-dirty`` when changed, or 'unknown'."""
    if commit := os.environ.get("SKYRAY_GIT_COMMIT"):  # cluster workers have no repository
        return commit
    here = Path(__file__).resolve().parent
    try:
        text = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=here, capture_output=True, text=True, timeout=10, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return text.strip()


def versions() -> dict[str, str]:
    """Return the versions of the packages that decide a result."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "source"
    return found
