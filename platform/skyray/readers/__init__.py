"""Survey files → records. No Ray, MLflow or HTTP here."""

from skyray.readers import desi, fourmost, images, sdss, tables

__all__ = ["desi", "fourmost", "images", "sdss", "tables"]
