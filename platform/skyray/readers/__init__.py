"""Survey files → records. No Ray, MLflow or HTTP here."""

from skyray.readers import desi, fourmost, sdss, tables

__all__ = ["desi", "fourmost", "sdss", "tables"]
