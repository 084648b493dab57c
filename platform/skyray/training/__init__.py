"""The training engine: loop, workers, optimisers."""
