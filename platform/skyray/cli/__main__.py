"""``python -m skyray.cli``."""

from skyray.cli import main

main()
