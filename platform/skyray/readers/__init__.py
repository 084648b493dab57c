"""Survey files → records. No Ray, MLflow or HTTP here."""

from skyray.readers import desi, fourmost, frames, image_fits, images, lsst, sdss, tables, ztf

__all__ = ["desi", "fourmost", "frames", "image_fits", "images", "lsst", "sdss", "tables", "ztf"]
