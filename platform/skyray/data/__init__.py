"""Survey files → datasets: sources, rows, ingest, download, simulation."""

import os

os.environ.setdefault("LANCE_LOG", "error")  # it warns of every table that is new
