"""Cutouts from image tables, folders of images, FITS images and numpy files.

Four readers share one column map (`ImageOptions`); a card gives it in ``reader_options``:

- ``image_table``: Parquet with a column of JPEG or PNG bytes;
- ``image_files``: one JPEG or PNG an object, with an optional table of labels;
- ``image_fits``: one FITS file an object, a cube or an HDU a band;
- ``image_arrays``: ``.npy`` (one image) and ``.npz`` (an image a name) in folders named by class.

    reader: image_table
    reader_options:
      image: image_jpeg
      bands: [red, green, blue]
      fields: {object_id: objid}
      extra: [label]
"""

from __future__ import annotations

import math
import posixpath
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from skyray.config import Config
from skyray.readers.base import Reader, SurveyFile, name_by_content, register
from skyray.readers.columns import Columns, open_columns, parquet_units
from skyray.readers.fits_bytes import FitsFile
from skyray.readers.fits_header import Header
from skyray.readers.image_bytes import MAX_PIXELS, as_planes, decode_image, load_npy, load_npz
from skyray.records import Cutout, InvalidRecord

_FIELDS = ("object_id", "ra", "dec", "redshift", "pixel_scale_arcsec", "survey")


class ImageOptions(Config):
    """What every image reader can be told."""

    bands: tuple[str, ...] = Field(("red", "green", "blue"), min_length=1)
    fields: dict[str, str] = Field(
        default_factory=dict, description="field of Cutout → column or FITS keyword"
    )
    extra: list[str] = Field(
        default_factory=list, description="columns or keywords kept for cuts and labels"
    )
    pixel_scale_arcsec: float | None = Field(None, gt=0, description="of every image")
    survey: str = ""
    max_pixels: int = Field(MAX_PIXELS, gt=0, description="limit of height × width")

    @model_validator(mode="after")
    def _known(self):
        if unknown := set(self.fields) - set(_FIELDS):
            raise ValueError(f"fields: unknown {sorted(unknown)}; known: {sorted(_FIELDS)}")
        if "pixel_scale_arcsec" in self.fields and self.pixel_scale_arcsec is not None:
            raise ValueError("pixel_scale_arcsec: give a number or a column, not both")
        return self

    def names(self) -> set[str]:
        return set(self.fields.values()) | set(self.extra)

    def cutout(
        self,
        image: np.ndarray,
        value: Callable[[str], Any],
        source: str,
        object_id: str,
        extra: dict[str, Any] | None = None,
    ) -> Cutout:
        """Return the record of an image; `value` gives a column's value."""
        found: dict[str, Any] = {"survey": self.survey, "object_id": object_id}
        if self.pixel_scale_arcsec is not None:
            found["pixel_scale_arcsec"] = self.pixel_scale_arcsec
        for field, name in self.fields.items():
            cell = value(name)
            if field in ("object_id", "survey"):
                found[field] = "" if cell is None else str(cell).strip()
            else:
                found[field] = math.nan if cell is None else float(cell)
        if not found["object_id"]:
            raise ValueError("object_id: expected text, found none")
        columns = {name: value(name) for name in self.extra}
        if "object_id" not in self.fields:
            found["observation_id"] = name_by_content(object_id, image)
        return Cutout(
            image=image,
            bands=self.bands,
            source=source,
            extra={**columns, **(extra or {})},
            **found,
        )


def _attempt(
    make: Callable[[], Cutout], source: str, object_id: str = ""
) -> Cutout | InvalidRecord:
    """Return a record or, for one that cannot be read, why."""
    try:
        return make()
    except InvalidRecord as error:
        if error.reason == "column_missing":  # the same for every record: refuse the file
            raise
        return InvalidRecord(error.reason, error.detail, source, error.object_id or object_id)
    except (TypeError, ValueError) as error:
        return InvalidRecord("field_invalid", str(error), source, object_id)


# tables ----------------------------------------------------------------------------------------
class ImageTableOptions(ImageOptions):
    image: str = Field("image", description="column of JPEG or PNG bytes")


@register
class ImageTableReader(Reader):
    """Encoded images of a Parquet table, row group by row group."""

    name = "image_table"
    patterns = ("*.parquet",)

    def __init__(self, options=None):
        super().__init__(options)
        self.table = ImageTableOptions.load(self.options)

    def units(self, file: SurveyFile) -> list[int]:
        return parquet_units(file)

    def read(self, file: SurveyFile, unit: int = 0) -> Iterator[Cutout | InvalidRecord]:
        options = self.table
        for columns in open_columns(file, unit, options.names() | {options.image}):
            for row in range(columns.rows(options.image)):
                yield self._record(file, columns, row)

    def _record(self, file: SurveyFile, columns: Columns, row: int) -> Cutout | InvalidRecord:
        number = columns.first_row + row
        source = f"{file.path}#{number}"

        def make() -> Cutout:
            content = columns.content(self.table.image, row)
            image = decode_image(content, len(self.table.bands), self.table.max_pixels)
            default = f"{file.name.split('.')[0]}-{number}"
            return self.table.cutout(image, lambda name: columns.scalar(name, row), source, default)

        return _attempt(make, source, self._object_id(columns, row))

    def _object_id(self, columns: Columns, row: int) -> str:
        name = self.table.fields.get("object_id")
        return str(columns.scalar(name, row)) if name else ""


# one file an image -----------------------------------------------------------------------------
class ImageFileOptions(ImageOptions):
    table: str | None = Field(
        None, description="CSV or Parquet of labels, relative to the image's folder: ../labels.csv"
    )
    table_key: str = Field("name", description="its column that holds the file names, without .jpg")

    @model_validator(mode="after")
    def _needs_table(self):
        if self.table is None and type(self) is ImageFileOptions and self.names():
            raise ValueError("fields and extra: need `table`, which these columns are of")
        return self


class _FileReader(Reader):
    """Readers of files that hold images; labels may come from a table beside them."""

    options_type: type[ImageFileOptions] = ImageFileOptions

    def __init__(self, options=None):
        super().__init__(options)
        self.settings = self.options_type.load(self.options)
        self._tables: dict[str, dict[str, Callable[[str], Any]]] = {}

    def _check_bytes(self, file: SurveyFile) -> None:
        size = file.filesystem.get_file_info(file.path).size
        # Headers, and 16 bytes a pixel and band: double precision twice over.
        limit = (1 << 20) + 16 * self.settings.max_pixels * len(self.settings.bands)
        if size is not None and size > limit:
            raise InvalidRecord(
                "file_too_large", f"expected at most {limit:,} bytes, found {size:,}", file.path
            )

    def _row(self, file: SurveyFile) -> Callable[[str], Any]:
        """Return the look-up of the label table's columns for an image."""
        if self.settings.table is None:
            return lambda name: None
        path = posixpath.normpath(posixpath.join(posixpath.dirname(file.path), self.settings.table))
        if path not in self._tables:
            try:
                self._tables[path] = self._load_table(SurveyFile(file.filesystem, path))
            except InvalidRecord as error:
                detail = f"{self.settings.table}: {error.detail}"
                raise InvalidRecord(error.reason, detail) from None
        rows = self._tables[path]
        if (stem := _stem(file)) not in rows:
            raise InvalidRecord(
                "label_row_missing",
                f"{self.settings.table}: expected a row with {self.settings.table_key} = {stem!r}",
            )
        return rows[stem]

    def _load_table(self, table: SurveyFile) -> dict[str, Callable[[str], Any]]:
        if not table.exists():
            raise InvalidRecord("label_table_missing", f"expected a table {table.path}")
        key, names = self.settings.table_key, self.settings.names()
        rows: dict[str, Callable[[str], Any]] = {}
        units = parquet_units(table) if table.name.endswith(".parquet") else [0]
        for unit in units:
            for columns in open_columns(table, unit, names | {key}):
                for row in range(columns.rows(key)):
                    name = str(columns.scalar(key, row))
                    stem = posixpath.splitext(posixpath.basename(name))[0]
                    rows[stem] = lambda n, columns=columns, row=row: columns.scalar(n, row)
        return rows


def _stem(file: SurveyFile) -> str:
    return posixpath.splitext(file.name.removesuffix(".gz"))[0]


def _folder(file: SurveyFile) -> str:
    return posixpath.basename(posixpath.dirname(file.path))


@register
class ImageFileReader(_FileReader):
    """JPEG and PNG files; ``folder`` in `extra` is the name of the file's folder."""

    name = "image_files"
    patterns = ("*.jpg", "*.jpeg", "*.png", "*.JPG", "*.JPEG", "*.PNG")

    def read(self, file: SurveyFile, unit: int = 0) -> Iterator[Cutout | InvalidRecord]:
        self._check_bytes(file)

        def make() -> Cutout:
            options = self.settings
            image = decode_image(file.read_bytes(), len(options.bands), options.max_pixels)
            return options.cutout(
                image, self._row(file), file.path, _stem(file), {"folder": _folder(file)}
            )

        yield _attempt(make, file.path, _stem(file))


@register
class ImageArrayReader(_FileReader):
    """``.npy`` files (one image) and ``.npz`` (an image a name), as DeepLense ships them.

    `extra` holds ``folder`` and, for ``.npz``, ``name``.
    """

    name = "image_arrays"
    patterns = ("*.npy", "*.npz")

    def read(self, file: SurveyFile, unit: int = 0) -> Iterator[Cutout | InvalidRecord]:
        self._check_bytes(file)
        try:
            content = file.read_bytes()
            if file.name.endswith(".npz"):
                arrays = load_npz(content, self.settings.max_pixels * len(self.settings.bands))
            else:
                arrays = {
                    "": load_npy(content, self.settings.max_pixels * len(self.settings.bands))
                }
        except InvalidRecord as error:
            yield InvalidRecord(error.reason, error.detail, file.path, _stem(file))
            return
        for name, array in arrays.items():
            yield self._record(file, name, array)

    def _record(self, file: SurveyFile, name: str, array) -> Cutout | InvalidRecord:
        source = f"{file.path}#{name}" if name else file.path
        # DeepLense numbers its files from 1 in every folder: the folder is part of the name.
        object_id = "/".join(filter(None, (_folder(file), _stem(file), name)))

        def make() -> Cutout:
            if isinstance(array, InvalidRecord):
                raise array
            image = as_planes(array, len(self.settings.bands))
            extra = {"folder": _folder(file), **({"name": name} if name else {})}
            return self.settings.cutout(image, self._row(file), source, object_id, extra)

        return _attempt(make, source, object_id)


# FITS ------------------------------------------------------------------------------------------
class ImageFitsOptions(ImageFileOptions):
    """Columns named in `fields` and `extra` are FITS keywords, or of `table` where one is given."""

    hdus: dict[str, str | int] = Field(
        default_factory=dict, description="band → name or number of its HDU; none: one HDU a cube"
    )
    hdu: str | int | None = Field(
        None,
        description="HDU of a cube [band, y, x], or of the single image; null: the first image",
    )

    @model_validator(mode="after")
    def _bands(self):
        if self.hdus and tuple(self.hdus) != self.bands:
            raise ValueError(f"hdus: expected one a band {self.bands}, found {tuple(self.hdus)}")
        return self


@register
class ImageFitsReader(_FileReader):
    """One object's FITS image; the pixel scale comes from its WCS unless it is given."""

    name = "image_fits"
    patterns = ("*.fits", "*.fits.gz", "*.fit")
    options_type = ImageFitsOptions
    settings: ImageFitsOptions

    def read(self, file: SurveyFile, unit: int = 0) -> Iterator[Cutout | InvalidRecord]:
        self._check_bytes(file)
        yield _attempt(lambda: self._cutout(file), file.path, _stem(file))

    def _cutout(self, file: SurveyFile) -> Cutout:
        options = self.settings
        with FitsFile(file) as fits:
            hdus = [_image_hdu(fits, name) for name in (options.hdus.values() or [options.hdu])]
            headers = [hdus[0].header, next(fits.hdus()).header]
            for hdu in hdus:
                if math.prod(hdu.shape) > options.max_pixels * len(options.bands):
                    raise InvalidRecord(
                        "image_too_large",
                        f"expected at most {options.max_pixels:,} pixels a band, found {hdu.shape}",
                    )
            planes = [hdu.image() for hdu in hdus]
        shapes = sorted({plane.shape for plane in planes})
        if len(shapes) > 1:
            raise InvalidRecord("image_shape", f"expected one shape in all bands, found {shapes}")
        image = as_planes(np.stack(planes) if options.hdus else planes[0], len(options.bands))
        value = self._row(file) if options.table else lambda name: _keyword(headers, name)
        made = options.cutout(image, value, file.path, _stem(file), {"folder": _folder(file)})
        if math.isnan(made.pixel_scale_arcsec):
            made = replace(made, pixel_scale_arcsec=pixel_scale_arcsec(headers[0]))
        return made


def _image_hdu(fits: FitsFile, wanted: str | int | None):
    for hdu in fits.hdus():
        if wanted is None:
            if hdu.size and hdu.header.get("XTENSION", "IMAGE") == "IMAGE":
                return hdu
        elif wanted in (hdu.index, hdu.name):
            return hdu
    fits.refuse("hdu_missing", f"expected an image HDU {wanted!r}, found none")


def _keyword(headers: list[Header], name: str) -> Any:
    for header in headers:
        if (value := header.get(name.upper())) is not None:
            return value
    return None


def pixel_scale_arcsec(header: Header) -> float:
    """Return √|det| of the WCS matrix (CD, or CDELT · PC) in arcsec; NaN without one."""
    pairs = [(i, j) for i in (1, 2) for j in (1, 2)]
    found = [header.get(f"CD{i}_{j}") for i, j in pairs]
    if all(value is None for value in found):
        steps = [header.get(f"CDELT{i}") for i in (1, 2)]
        if None in steps:
            return math.nan
        turn = [header.get(f"PC{i}_{j}", float(i == j)) for i, j in pairs]
        found = [steps[i - 1] * value for (i, _), value in zip(pairs, turn, strict=True)]
    xx, xy, yx, yy = (float(value or 0.0) for value in found)
    area = abs(xx * yy - xy * yx)
    return 3600.0 * math.sqrt(area) if area > 0 else math.nan
