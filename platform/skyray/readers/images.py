"""Cutouts from image tables, folders of images and numpy files; FITS is in `image_fits`.

The readers share one column map (`ImageOptions`); a card gives it in ``reader_options``:

- ``image_table``: Parquet with a column of PNG, JPEG or TIFF bytes;
- ``image_files``: one PNG, JPEG or TIFF an object, with an optional table of labels;
- ``image_fits``: one FITS file an object, a cube or an HDU a band;
- ``image_arrays``: ``.npy`` (one image) and ``.npz`` (an image a name) in folders named by class.

    reader: image_table
    reader_options:
      image: image_jpeg
      bands: [red, green, blue]
      fields: {object_id: objid}
      extra: [label]

A file's object is named by its path below the folder that was given: class folders number their
files from 1 each. `extra` holds ``folder`` (the last one, often the class) and ``folders`` (the
whole path: ``train/spiral``). Splits that a tree has are not taken over, since the same object may
be in several; a cut on ``folders`` (``op: startswith``) takes one part.
"""

from __future__ import annotations

import math
import posixpath
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from skyray.config import Config
from skyray.readers.base import Reader, SurveyFile, name_by_content, read_object, register
from skyray.readers.column_facts import ColumnFacts
from skyray.readers.columns import Columns, open_columns, parquet_units
from skyray.readers.csv_columns import number_of
from skyray.readers.image_bytes import decode_image
from skyray.readers.layout import stem
from skyray.readers.numpy_bytes import load_npy, load_npz
from skyray.readers.pixels import MAX_PIXELS, as_planes
from skyray.readers.sky_frame import coordinate, in_icrs, position_statement
from skyray.readers.units import check_redshift, to_arcsec
from skyray.readers.unpacked import plain_name
from skyray.records import Cutout, InvalidRecord

_FIELDS = ("object_id", "ra", "dec", "redshift", "pixel_scale_arcsec", "survey")


class Cells(NamedTuple):
    """What tells of an object: the cells of its row, or the keywords of its file.

    `facts` gives what is stated of a column, `header` the keywords that hold for positions.
    """

    value: Callable[[str], Any] = lambda name: None
    facts: Callable[[str], ColumnFacts] = ColumnFacts
    header: Any = None


def row_cells(columns: Columns, row: int) -> Cells:
    """Return the cells of a table's row."""
    return Cells(partial(columns.scalar, row=row), columns.facts.of, columns.header)


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
        cells: Cells,
        source: str,
        object_id: str,
        extra: dict[str, Any] | None = None,
        statements: dict[str, str] | None = None,
    ) -> Cutout:
        """Return the record of an image, its position in ICRS."""
        found: dict[str, Any] = {"survey": self.survey, "object_id": object_id}
        told = dict(statements or {})
        if self.pixel_scale_arcsec is not None:
            found["pixel_scale_arcsec"] = self.pixel_scale_arcsec
            told.setdefault("pixel_scale_arcsec", f"{self.pixel_scale_arcsec:g} (card)")
        for field, name in self.fields.items():
            cell, unit = cells.value(name), cells.facts(name).unit
            if field in ("object_id", "survey"):
                found[field] = _text(field, cell)
            elif field in ("ra", "dec"):
                found[field] = coordinate(source, cells.facts(name), cell, latitude=field == "dec")
            elif field == "pixel_scale_arcsec":
                scale = math.nan if cell is None else number_in(field, cell)
                found[field] = to_arcsec(source, name, unit, scale)
            else:
                check_redshift(source, name, unit)
                found[field] = math.nan if cell is None else number_in(field, cell)
            if field == "pixel_scale_arcsec" and math.isfinite(found[field]):
                told[field] = f"{found[field]:g} ({name})"
        if not found["object_id"]:
            raise ValueError("object_id: expected text, found none")
        columns = {name: cells.value(name) for name in self.extra}
        if {"ra", "dec"} <= set(found):
            facts = [cells.facts(self.fields[field]) for field in ("ra", "dec")]
            position = found["ra"], found["dec"]
            found["ra"], found["dec"], frame = in_icrs(source, cells.header, facts, *position)
            told |= position_statement(frame)
        if "object_id" not in self.fields:
            found["observation_id"] = name_by_content(object_id, image)
        return Cutout(
            image=image,
            bands=self.bands,
            source=source,
            extra={**columns, **(extra or {})},
            statements=told,
            **found,
        )


def _text(field: str, cell: Any) -> str:
    """Return a name exactly as the survey has it; a float has lost digits beyond 2⁵³."""
    if isinstance(cell, float):
        if not (cell.is_integer() and abs(cell) < 2**53):
            raise ValueError(f"{field}: expected text or an integer, found the float {cell!r}")
        return str(int(cell))
    if isinstance(cell, bytes):
        return cell.decode("utf-8").strip()
    return "" if cell is None else str(cell).strip()


def number_in(field: str, cell: Any) -> float:
    """Return a cell as a number; raises ValueError naming the field."""
    if isinstance(cell, bool) or not isinstance(cell, int | float | str):
        raise ValueError(f"{field}: expected a number, found {type(cell).__name__}")
    try:
        return float(number_of(cell) if isinstance(cell, str) else cell)
    except (ValueError, OverflowError):
        raise ValueError(f"{field}: expected a number, found {str(cell)[:80]!r}") from None


# tables ----------------------------------------------------------------------------------------
class ImageTableOptions(ImageOptions):
    image: str = Field("image", description="column of PNG, JPEG or TIFF bytes")


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
            image, told = decode_image(content, len(self.table.bands), self.table.max_pixels)
            default = f"{object_name(file)}-{number}"
            cells = row_cells(columns, row)
            return self.table.cutout(image, cells, source, default, statements=told)

        return read_object(make, source, self._object_id(columns, row))

    def _object_id(self, columns: Columns, row: int) -> str:
        name = self.table.fields.get("object_id")
        return str(columns.scalar(name, row))[:200] if name else ""


# one file an image -----------------------------------------------------------------------------
class ImageFileOptions(ImageOptions):
    table: str | None = Field(
        None, description="CSV or Parquet of labels, relative to the image's folder: ../labels.csv"
    )
    table_key: str = Field(
        "name",
        description="its column of file names, with or without suffix and folders: spiral/1.png",
    )
    files: list[str] = Field(
        default_factory=list,
        description="names or ends of paths of the files taken from a folder (``*_sci.fits``, "
        "``vis/data.fits``); none: by suffix",
    )

    keywords: ClassVar[bool] = False  # whether the files themselves have fields

    @model_validator(mode="after")
    def _needs_table(self):
        if self.table is None and not self.keywords and self.names():
            raise ValueError("fields and extra: need `table`, which these columns are of")
        return self


class FileReader(Reader):
    """Readers of files that hold images; labels may come from a table beside them."""

    options_type: type[ImageFileOptions] = ImageFileOptions

    def __init__(self, options=None):
        super().__init__(options)
        self.settings = self.options_type.load(self.options)
        self._tables: dict[str, dict[str, Cells | None]] = {}

    def claims(self, path: str) -> bool:
        path = f"/{path.lower()}"
        wanted = self.settings.files or self.patterns
        return any(fnmatch(path, f"*/{pattern.lower()}") for pattern in wanted)

    def check_bytes(self, file: SurveyFile) -> None:
        size = file.filesystem.get_file_info(file.path).size
        # Headers, and 16 bytes a pixel and band: double precision twice over.
        limit = (1 << 20) + 16 * self.settings.max_pixels * len(self.settings.bands)
        if size is not None and size > limit:
            raise InvalidRecord(
                "file_too_large", f"expected at most {limit:,} bytes, found {size:,}", file.path
            )

    def row(self, file: SurveyFile) -> Cells:
        """Return the label table's row for an image."""
        if self.settings.table is None:
            return Cells()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(file.path), self.settings.table))
        if path not in self._tables:
            try:
                self._tables[path] = self._load_table(SurveyFile(file.filesystem, path))
            except InvalidRecord as error:
                detail = f"{self.settings.table}: {error.detail}"
                raise InvalidRecord(error.reason, detail) from None
        rows = self._tables[path]
        parts = without_suffix(file.path).split("/")
        names = ["/".join(parts[n:]) for n in range(len(parts))]
        if (name := next((name for name in names if name in rows), None)) is None:
            raise InvalidRecord(
                "label_row_missing",
                f"{self.settings.table}: expected a row with {self.settings.table_key} = "
                f"{parts[-1]!r}",
            )
        if rows[name] is None:
            raise InvalidRecord(
                "label_row_ambiguous",
                f"{self.settings.table}: expected one row with {self.settings.table_key} = "
                f"{name!r}, found several",
            )
        return rows[name]

    def _load_table(self, table: SurveyFile) -> dict[str, Cells | None]:
        if not table.exists():
            raise InvalidRecord("label_table_missing", f"expected a table {table.path}")
        key, names = self.settings.table_key, self.settings.names()
        rows: dict[str, Cells | None] = {}
        units = parquet_units(table) if table.name.lower().endswith(".parquet") else [0]
        for unit in units:
            for columns in open_columns(table, unit, names | {key}):
                for row in range(columns.rows(key)):
                    name = without_suffix(_text(key, columns.scalar(key, row))).lstrip("./")
                    again = name in rows
                    rows[name] = None if again else row_cells(columns, row)
        return rows


_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".npy", ".npz", ".parquet")


def without_suffix(name: str) -> str:
    """Return a name or path without what says its format; dots within it stay."""
    plain = plain_name(name)
    ending = next((end for end in _ENDINGS if plain.lower().endswith(end)), "")
    return plain[: len(plain) - len(ending)] if ending else stem(name)


def object_name(file: SurveyFile) -> str:
    """Return the name of a file's object: its path below the folder that was given."""
    return without_suffix(file.below)


def folders(file: SurveyFile) -> dict[str, str]:
    """Return what the folders of a file say: ``folder`` and ``folders``."""
    last = posixpath.basename(posixpath.dirname(file.path))
    return {"folder": last, "folders": posixpath.dirname(file.below) or last}


@register
class ImageFileReader(FileReader):
    """PNG, JPEG and TIFF files, one an object."""

    name = "image_files"
    patterns = ("*.jpg", "*.jpeg", "*.png", "*.tif", "*.tiff")

    def read(self, file: SurveyFile, unit: int = 0) -> Iterator[Cutout | InvalidRecord]:
        self.check_bytes(file)

        def make() -> Cutout:
            options = self.settings
            image, told = decode_image(file.read_bytes(), len(options.bands), options.max_pixels)
            return options.cutout(
                image, self.row(file), file.path, object_name(file), folders(file), told
            )

        yield read_object(make, file.path, object_name(file))


class ImageArrayOptions(ImageFileOptions):
    items: tuple[str, ...] = Field(
        (),
        description="names of what an object array holds, one of them ``image``: [image, mass]; "
        "the others go into `extra`",
    )

    @model_validator(mode="after")
    def _image(self):
        if self.items and (
            self.items.count("image") != 1 or len(set(self.items)) < len(self.items)
        ):
            raise ValueError(f"items: expected different names, one of them image: {self.items}")
        return self


@register
class ImageArrayReader(FileReader):
    """``.npy`` files (one image) and ``.npz`` (an image a name), as DeepLense ships them.

    Object arrays of one image beside numbers are read without pickle's powers. `extra` holds
    ``name`` for an array of a ``.npz``, and the numbers beside an image as `items` calls them.
    """

    name = "image_arrays"
    patterns = ("*.npy", "*.npz")
    options_type = ImageArrayOptions
    settings: ImageArrayOptions

    def read(self, file: SurveyFile, unit: int = 0) -> Iterator[Cutout | InvalidRecord]:
        self.check_bytes(file)
        limit, items = self.settings.max_pixels * len(self.settings.bands), self.settings.items
        try:
            content = file.read_bytes()
            zipped = content.startswith(b"PK")
            loaded = load_npz(content, limit, items) if zipped else None
            arrays = {"": load_npy(content, limit, items)} if loaded is None else loaded
        except InvalidRecord as error:
            yield InvalidRecord(error.reason, error.detail, file.path, object_name(file))
            return
        for name, array in arrays.items():
            yield self._record(file, name, array)

    def _record(self, file: SurveyFile, name: str, loaded) -> Cutout | InvalidRecord:
        source = f"{file.path}#{name}" if name else file.path
        object_id = "/".join(filter(None, (object_name(file), name)))

        def make() -> Cutout:
            if isinstance(loaded, InvalidRecord):
                raise loaded
            array, beside = loaded
            image = as_planes(array, len(self.settings.bands))
            extra = {**beside, **folders(file), **({"name": name} if name else {})}
            return self.settings.cutout(image, self.row(file), source, object_id, extra)

        return read_object(make, source, object_id)
