"""Survey files → records. No Ray, MLflow or HTTP here."""

from skyray.readers import (
    desi,
    fourmost,
    frames,
    image_fits,
    images,
    lamost,
    lsst,
    sdss,
    spectrum_images,
    tables,
    ztf,
    ztf_triplets,
)

__all__ = [
    "desi",
    "fourmost",
    "frames",
    "image_fits",
    "images",
    "lamost",
    "lsst",
    "sdss",
    "spectrum_images",
    "tables",
    "ztf",
    "ztf_triplets",
]
