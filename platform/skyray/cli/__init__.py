"""``skyray VERB``: the command line. Verbs only pass on to the engine and show its result."""

from __future__ import annotations

from collections.abc import Sequence

from skyray.cli import (  # noqa: F401  (they register themselves)
    engine_verbs,
    export_verbs,
    family_verbs,
    model_verbs,
    search_verbs,
    service_verbs,
    vacuum_verb,
)
from skyray.cli.verb import app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; `arguments` default to the process's own."""
    app(args=None if arguments is None else list(arguments), prog_name="skyray")
