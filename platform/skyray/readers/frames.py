"""Cutouts cut from survey frames: a catalogue of positions, and FITS frames with a WCS beside it.

Each row of the catalogue (CSV or Parquet) is an object; the frames are found by a template over its
columns. Rows can be matched with a second catalogue (Galaxy Zoo votes), and later rows at the same
sky position are refused::

    reader: frame_cutouts
    reader_options:
      frames: "frame-{band}-{run:06d}-{camcol}-{field:04d}.fits"
      bands: [g, r, i, z]
      ra: RA_deg
      dec: DEC_deg
      size: {survey: sdss}
      fields: {object_id: SDSS_OBJID}
      extra: [P_CS_DEBIASED, P_EL_DEBIASED]
"""

from __future__ import annotations

import io
import math
import posixpath
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from astropy.io import fits
from astropy.wcs import WCS
from pydantic import Field

from skyray.config import Config
from skyray.readers.base import Reader, SurveyFile, register
from skyray.readers.foreign_arrow import read_table
from skyray.readers.images import ImageOptions
from skyray.records import Cutout, InvalidRecord
from skyray.transforms.cutting import (
    DES_PIXEL_ARCSEC,
    SDSS_PIXEL_ARCSEC,
    cross_match,
    cut,
    des_half_width,
    first_on_sky,
    sdss_half_width,
)

_OPEN_FRAMES = 8


class SizeRule(Config):
    """How large a cutout is."""

    survey: Literal["sdss", "des"] | None = Field(None, description="rule of Khan et al. 2019")
    mode: Literal["corrected", "as_published"] = "corrected"
    half_width_arcsec: float | None = Field(None, gt=0, description="or one size for all")
    petro_rad: str = Field("petroRad_r", description="sdss: column, arcsec")
    kron_radius: str = Field("KRON_RADIUS", description="des: column, in units of a_image")
    a_image: str = Field("A_IMAGE", description="des: column, pixels")

    def half_width(self, row: Mapping[str, Any], pixel_arcsec: float) -> float:
        """Return half the side in pixels."""
        if self.survey == "sdss":
            return sdss_half_width(float(row[self.petro_rad])) * SDSS_PIXEL_ARCSEC / pixel_arcsec
        if self.survey == "des":
            width = des_half_width(
                float(row[self.kron_radius]), float(row[self.a_image]), self.mode
            )
            return width * DES_PIXEL_ARCSEC / pixel_arcsec
        return (self.half_width_arcsec or math.nan) / pixel_arcsec


class MatchOptions(Config):
    """A second catalogue whose columns are added to the rows it shares with the first."""

    table: str = Field(description="CSV or Parquet, relative to the catalogue")
    ra: str = "ra"
    dec: str = "dec"
    radius_arcsec: float = Field(1.0, gt=0)
    columns: list[str] = Field(min_length=1)


class FrameOptions(ImageOptions):
    frames: str = Field(description="path of a band's frame relative to the catalogue, with {band}")
    bands: tuple[str, ...] = ("g", "r", "i")
    hdu: int = Field(0, description="HDU of the image")
    ra: str = "ra"
    dec: str = "dec"
    size: SizeRule = SizeRule()
    match: MatchOptions | None = None
    duplicates_arcsec: float | None = Field(
        1.0, gt=0, description="later rows this near to an earlier one are refused; null: kept"
    )


@register
class FrameCutoutReader(Reader):
    """Cutouts at the positions of a catalogue."""

    name = "frame_cutouts"
    patterns = ("*.csv", "*.parquet")

    def __init__(self, options=None):
        super().__init__(options)
        self.settings = FrameOptions.load(self.options)
        self._frames: OrderedDict[str, tuple[Any, WCS]] = OrderedDict()

    def read(self, file: SurveyFile, unit: int = 0) -> Iterator[Cutout | InvalidRecord]:
        options = self.settings
        table = _load_table(file, [options.ra, options.dec])
        ra, dec = (table[name].to_numpy(np.float64) for name in (options.ra, options.dec))
        placed = np.isfinite(ra) & np.isfinite(dec)
        kept = placed.copy()
        if options.duplicates_arcsec:
            kept[placed] = first_on_sky(ra[placed], dec[placed], options.duplicates_arcsec)
        matched = self._matched(file, ra, dec, kept)
        for number, row in enumerate(table.to_dict("records")):
            source = f"{file.path}#{number}"
            name = str(row.get(options.fields.get("object_id", ""), f"{file.name}-{number}"))
            try:
                if not placed[number]:
                    raise InvalidRecord("position_missing", "expected ra and dec, found none")
                if not kept[number]:
                    raise InvalidRecord(
                        "duplicate_on_sky",
                        f"expected no earlier row within {options.duplicates_arcsec}″, found one",
                    )
                if options.match and number not in matched:
                    raise InvalidRecord(
                        "no_counterpart",
                        f"{options.match.table}: expected a row within "
                        f"{options.match.radius_arcsec}″, found none",
                    )
                values = {**row, **matched.get(number, {})}
                yield self._cutout(file, values, ra[number], dec[number], source, name)
            except InvalidRecord as error:
                yield InvalidRecord(error.reason, error.detail, source, name)
            except (KeyError, TypeError, ValueError) as error:
                yield InvalidRecord("field_invalid", str(error), source, name)

    def _matched(self, file: SurveyFile, ra, dec, kept) -> dict[int, dict[str, Any]]:
        match = self.settings.match
        if match is None:
            return {}
        other = _load_table(file.sibling(match.table), [match.ra, match.dec, *match.columns])
        place = other[[match.ra, match.dec]].to_numpy(np.float64)
        rows = np.flatnonzero(kept)
        pairs = cross_match(ra[rows], dec[rows], place[:, 0], place[:, 1], match.radius_arcsec)
        columns = other[match.columns].to_dict("records")
        return {int(rows[i]): columns[j] for i, j in zip(pairs.first, pairs.second, strict=True)}

    def _cutout(self, file, row: dict[str, Any], ra, dec, source: str, name: str) -> Cutout:
        options = self.settings
        planes, scale = [], math.nan
        for band in options.bands:
            frame, wcs = self._frame(file, options.frames.format(band=band, **row))
            scale = _pixel_arcsec(wcs)
            planes.append(cut(frame, wcs, ra, dec, options.size.half_width(row, scale)))
        # Neighbouring frames of one survey may differ by a pixel in size.
        side = min(len(plane) for plane in planes)
        image = np.stack([plane[:side, :side] for plane in planes])
        kept = {"pixel_scale_arcsec": scale} if options.pixel_scale_arcsec is None else {}
        made = options.cutout(image, row.__getitem__, source, name, {})
        fields = {"ra": float(ra), "dec": float(dec), **kept}
        return Cutout(**{**{n: getattr(made, n) for n in made.__slots__}, **fields})

    def _frame(self, file: SurveyFile, name: str) -> tuple[Any, WCS]:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(file.path), name))
        if path in self._frames:
            self._frames.move_to_end(path)
            return self._frames[path]
        frame = SurveyFile(file.filesystem, path)
        if not frame.exists():
            raise InvalidRecord("frame_missing", f"expected a file {path}, found none")
        try:
            hdu = fits.open(io.BytesIO(frame.read_bytes()))[self.settings.hdu]
            found = np.asarray(hdu.data, np.float32), WCS(hdu.header)
        except (OSError, ValueError, IndexError, TypeError) as error:
            raise InvalidRecord("frame_invalid", f"{path}: {error}") from None
        if found[0].ndim != 2 or not found[1].has_celestial:
            raise InvalidRecord(
                "frame_invalid", f"{path}: expected an image with a celestial WCS in HDU "
                f"{self.settings.hdu}, found shape {found[0].shape}",
            )  # fmt: skip
        self._frames[path] = found
        if len(self._frames) > _OPEN_FRAMES:
            self._frames.popitem(last=False)
        return found


def _pixel_arcsec(wcs: WCS) -> float:
    return 3600.0 * math.sqrt(abs(np.linalg.det(wcs.pixel_scale_matrix)))


def _load_table(file: SurveyFile, needed: list[str]) -> pd.DataFrame:
    if not file.exists():
        raise InvalidRecord("table_missing", f"expected a table {file.path}", file.path)
    try:
        if file.name.endswith(".parquet"):
            table = read_table(file.path, filesystem=file.filesystem)
            table = table.to_pandas(ignore_metadata=True)  # pandas has a registry of types too
        else:
            table = pd.read_csv(io.BytesIO(file.read_bytes()))
    except InvalidRecord:
        raise
    except (pa.ArrowException, pd.errors.ParserError, ValueError, OSError) as error:
        raise InvalidRecord("table_invalid", str(error), file.path) from None
    missing = set(needed) - set(table.columns)
    if missing:
        raise InvalidRecord(
            "column_missing",
            f"expected columns {sorted(missing)}, found {list(table.columns)[:40]}", file.path,
        )  # fmt: skip
    return table
