"""Cutouts from FITS files: one object a file (a cube, an HDU a band) or an object an HDU."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, model_validator

from skyray.readers.base import SurveyFile, read_object, register
from skyray.readers.fits_bytes import FitsFile, Hdu, Header
from skyray.readers.fits_image import image_hdu
from skyray.readers.fits_keywords import Keywords
from skyray.readers.image_hdus import (
    BAND_LISTS,
    band_order,
    check_band,
    choose_image,
    flux_factor,
    image_hdus,
)
from skyray.readers.image_wcs import check_scale, sampling, sky_wcs
from skyray.readers.images import Cells, FileReader, ImageFileOptions, folders, object_name
from skyray.readers.layout import fits_names
from skyray.readers.pixels import as_float32, as_planes, check_size
from skyray.readers.sky_frame import keyword_facts
from skyray.records import Cutout, InvalidRecord


class ImageFitsOptions(ImageFileOptions):
    """Columns named in `fields` and `extra` are FITS keywords, or of `table` where one is given."""

    keywords: ClassVar[bool] = True

    hdus: dict[str, str | int] = Field(
        default_factory=dict, description="band → name or number of its HDU; none: one HDU a cube"
    )
    hdu: str | int | None = Field(
        None,
        description="HDU of a cube [band, y, x], or of the single image; null: the only image that "
        "is not called weight, mask …; ``each``: every image HDU is an object",
    )
    unit: str | None = Field(None, description="of the pixels; a file's BUNIT is converted to it")
    zero_point: float | None = Field(
        None, description="magnitude of one unit of flux; images are scaled from their own to it"
    )

    @model_validator(mode="after")
    def _bands(self):
        if self.hdus and tuple(self.hdus) != self.bands:
            raise ValueError(f"hdus: expected one a band {self.bands}, found {tuple(self.hdus)}")
        return self


def stated_pixels(
    hdu: Hdu, header: Keywords, unit: str | None = None, magnitude: float | None = None
) -> tuple[np.ndarray, dict[str, str]]:
    """Return an HDU's pixels in the card's unit and zero point, float32; and what was decided.

    Raises
    ------
    InvalidRecord
        ``image_range``, ``image_type``, or what `flux_factor` and `Hdu.image` refuse.
    """
    factor, told = flux_factor(header, unit, magnitude)
    pixels = hdu.image()
    if pixels.dtype.kind not in "fiu":
        raise InvalidRecord("image_type", f"expected numbers, found {pixels.dtype}")
    if factor != 1:
        pixels = pixels.astype(np.float64) * factor
    return as_float32(pixels), told


@register
class ImageFitsReader(FileReader):
    """One object's FITS image, plain or compressed.

    Pixel scale and orientation come from its WCS; rows stay in the file's order, whichever way the
    sky is turned (`Cutout.statements` says which).
    """

    name = "image_fits"
    patterns = fits_names("*")
    options_type = ImageFitsOptions
    settings: ImageFitsOptions

    def read(self, file: SurveyFile, unit: int = 0) -> Iterator[Cutout | InvalidRecord]:
        self.check_bytes(file)
        if self.settings.hdu != "each":
            yield read_object(lambda: self._cutout(file), file.path, object_name(file))
            return
        with FitsFile(file) as fits:
            hdus = image_hdus(fits)
            if not hdus:
                fits.refuse("hdu_missing", "expected image HDUs that hold pixels, found none")
            for hdu in hdus:
                source, name = f"{file.path}#{hdu.index}", f"{object_name(file)}/{hdu.index}"
                told = f"{hdu.name or hdu.index} (card)"

                def make(hdu=hdu, source=source, name=name, told=told) -> Cutout:
                    return self._from_hdus(file, [hdu], told, source, name)

                yield read_object(make, source, name)

    def _cutout(self, file: SurveyFile) -> Cutout:
        options = self.settings
        with FitsFile(file) as fits:
            if options.hdus:
                hdus = [image_hdu(fits, name) for name in options.hdus.values()]
                told = ", ".join(f"{band}: {name}" for band, name in options.hdus.items())
                told = f"{told} (card)"
            else:
                hdu, told = choose_image(fits, file, options.hdu)
                hdus = [hdu]
            return self._from_hdus(file, hdus, told, file.path, object_name(file))

    def _from_hdus(
        self, file: SurveyFile, hdus: list[Hdu], told: str, source: str, name: str
    ) -> Cutout:
        options = self.settings
        headers = [hdu.inherited_header() for hdu in hdus]
        for hdu in hdus:
            check_size(math.prod(hdu.shape), options.max_pixels * len(options.bands))
        image, statements = self._image(hdus, headers)
        made = options.cutout(
            image, self._cells(file, headers), source, name, folders(file),
            {"hdu": told, **statements},
        )  # fmt: skip
        return self._placed(file, made, headers[0].own)

    def _cells(self, file: SurveyFile, headers: list[Keywords]) -> Cells:
        if self.settings.table:
            return self.row(file)

        def value(name: str) -> Any:
            found = (header.get(name.upper()) for header in headers)
            return next((one for one in found if one is not None), None)

        return Cells(value, partial(keyword_facts, headers[0]), headers[0])

    def _image(self, hdus: list[Hdu], headers: list[Keywords]) -> tuple[np.ndarray, dict[str, str]]:
        options = self.settings
        read = [stated_pixels(hdu, header, options.unit, options.zero_point)
                for hdu, header in zip(hdus, headers, strict=True)]  # fmt: skip
        planes, statements = [pixels for pixels, _ in read], dict(read[0][1])
        units = sorted({told["unit"] for _, told in read})
        if len(units) > 1 and options.unit is None:
            raise InvalidRecord("units_differ", f"expected one unit in all bands, found {units}")
        shapes = sorted({plane.shape for plane in planes})
        if len(shapes) > 1:
            raise InvalidRecord("image_shape", f"expected one shape in all bands, found {shapes}")
        if options.hdus:
            bands = [check_band(h, b) for h, b in zip(headers, options.bands, strict=True)]
            zeros = [told["zero_point"] for _, told in read]
            statements |= {"bands": "; ".join(bands), "zero_point": "; ".join(dict.fromkeys(zeros))}
            return as_planes(np.stack(planes), len(options.bands)), statements
        cube = planes[0]
        while cube.ndim > 3 and cube.shape[0] == 1:
            cube = cube[0]
        count = 1 if cube.ndim == 2 else len(cube)
        bands_last = count != len(options.bands) == cube.shape[-1] and cube.ndim == 3
        if not bands_last or any(map(headers[0].states, BAND_LISTS)):
            order, statements["bands"] = band_order(headers[0], count, options.bands)
            cube = cube if order is None else cube[order]
        return as_planes(cube, len(options.bands)), statements

    def _placed(self, file: SurveyFile, made: Cutout, own: Header) -> Cutout:
        """Return the record with what its WCS says of scale and orientation."""
        told = dict(made.statements)
        wcs = sky_wcs(own, file)
        if wcs is None:
            told.setdefault("pixel_scale_arcsec", "unknown")
            return replace(made, statements=told)
        found = sampling(wcs, made.image.shape[1:])
        check_scale(found.pixel_scale_arcsec, made.pixel_scale_arcsec)
        told |= {"pixel_scale_arcsec": f"{found.pixel_scale_arcsec:.6g} (WCS)",
                 "orientation": str(found)}  # fmt: skip
        return replace(made, pixel_scale_arcsec=found.pixel_scale_arcsec, statements=told)
