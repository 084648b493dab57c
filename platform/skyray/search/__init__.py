"""Many trainings: sweeps, ensembles, grids."""
