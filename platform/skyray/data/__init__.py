"""Survey files → datasets: sources, rows, ingest, download, simulation."""
