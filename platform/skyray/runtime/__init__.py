"""Ray sessions, places, MLflow, progress and provenance."""
