"""What code wrote a file: the package's version and the commit of its sources."""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path


@functools.cache
def git_commit() -> str:
    """Return the commit of the sources, with ``-dirty`` where they were changed; '' if unknown.

    ``SKYRAY_COMMIT`` says it where the sources come without their repository (a container).
    """
    if stated := os.environ.get("SKYRAY_COMMIT"):
        return stated
    folder = Path(__file__).resolve().parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.strip()
