"""Survey files → records. No Ray, MLflow or HTTP here."""

from skyray.readers import desi, fourmost, lsst, sdss, tables, ztf

__all__ = ["desi", "fourmost", "lsst", "sdss", "tables", "ztf"]
