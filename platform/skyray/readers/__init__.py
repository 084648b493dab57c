"""Survey files → records. No Ray, MLflow or HTTP here."""

from skyray.readers import sdss

__all__ = ["sdss"]
