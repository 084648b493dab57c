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

import math
import posixpath
from collections.abc import Iterator
from dataclasses import replace
from string import Formatter
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from skyray.config import Config
from skyray.readers.base import Reader, SurveyFile, read_object, register
from skyray.readers.column_facts import ColumnFacts
from skyray.readers.columns import open_columns, parquet_units
from skyray.readers.frame_files import FrameOptions, Frames
from skyray.readers.image_wcs import check_scale
from skyray.readers.images import Cells, ImageOptions, number_in
from skyray.readers.sky_frame import sky_frame, to_icrs
from skyray.readers.units import agreed_angle, to_arcsec, to_degrees
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

_FRAMES = {"icrs": "", "fk5": "fk5 J2000", "fk4": "fk4 B1950", "galactic": "galactic",
           "ecliptic": "ecliptic J2000"}  # fmt: skip


class SizeRule(Config):
    """How large a cutout is."""

    survey: Literal["sdss", "des"] | None = Field(None, description="rule of Khan et al. 2019")
    mode: Literal["corrected", "as_published"] = "corrected"
    half_width_arcsec: float | None = Field(None, gt=0, description="or one size for all")
    petro_rad: str = Field("petroRad_r", description="sdss: column, arcsec")
    kron_radius: str = Field("KRON_RADIUS", description="des: column, in units of a_image")
    a_image: str = Field("A_IMAGE", description="des: column, pixels")

    def half_width(self, cells: Cells, pixel_arcsec: float) -> float:
        """Return half the side in pixels."""
        if self.survey == "sdss":
            unit, radius = _cell(cells, self.petro_rad)
            radius = to_arcsec("", self.petro_rad, unit, radius)
            return sdss_half_width(radius) * SDSS_PIXEL_ARCSEC / pixel_arcsec
        if self.survey == "des":
            (_, radius), (unit, axis) = (_cell(cells, n) for n in (self.kron_radius, self.a_image))
            if unit and not unit.lower().startswith("pix"):
                detail = f"{self.a_image}: expected pixels, found {unit!r}"
                raise InvalidRecord("unit_unknown", detail)
            return des_half_width(radius, axis, self.mode) * DES_PIXEL_ARCSEC / pixel_arcsec
        return (self.half_width_arcsec or math.nan) / pixel_arcsec


def _cell(cells: Cells, name: str) -> tuple[str, float]:
    """Return a column's unit and the number in a row."""
    return cells.facts(name).unit, number_in(name, cells.value(name))


class PositionOptions(Config):
    """Where a catalogue has its positions, and what they are where it does not say it."""

    ra: str = "ra"
    dec: str = "dec"
    frame: Literal["icrs", "fk5", "fk4", "galactic", "ecliptic"] | None = Field(
        None, description="of the positions; fk5 is J2000, fk4 B1950; default: icrs"
    )
    ra_unit: Literal["deg", "hourangle", "rad"] | None = Field(
        None, description="default: degrees, hours in 12:34:56"
    )
    dec_unit: Literal["deg", "rad"] | None = Field(None, description="as ra_unit; degrees")


class MatchOptions(PositionOptions):
    """A second catalogue whose columns are added to the rows it shares with the first."""

    table: str = Field(description="CSV or Parquet, relative to the catalogue")
    radius_arcsec: float = Field(1.0, gt=0)
    columns: list[str] = Field(min_length=1)


class FrameCutoutOptions(PositionOptions, FrameOptions, ImageOptions):
    frames: str = Field(description="path of a band's frame relative to the catalogue, with {band}")
    bands: tuple[str, ...] = ("g", "r", "i")
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
        self.settings = FrameCutoutOptions.load(self.options)
        self._frames = Frames(self.settings)

    def claims(self, path: str) -> bool:
        return super().claims(path.lower())

    def read(self, file: SurveyFile, unit: int = 0) -> Iterator[Cutout | InvalidRecord]:
        options = self.settings
        table = _load_table(file, self._names(), (options.ra, options.dec))
        ra, dec, faults = _positions(file.path, table, options)
        placed = np.isfinite(ra) & np.isfinite(dec)
        kept = placed.copy()
        if options.duplicates_arcsec:
            kept[placed] = first_on_sky(ra[placed], dec[placed], options.duplicates_arcsec)
        matched = self._matched(file, ra, dec, kept)
        for number in range(len(ra)):
            row = {name: values[number] for name, values in table.columns.items()}
            source = f"{file.path}#{number}"
            name = str(row.get(options.fields.get("object_id", ""), f"{file.name}-{number}"))

            def make(number=number, row=row, source=source, name=name) -> Cutout:
                if number in faults:
                    raise InvalidRecord("position_invalid", faults[number])
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
                cells = Cells(values.__getitem__, table.of)
                return self._cutout(file, values, cells, ra[number], dec[number], source, name)

            yield read_object(make, source, name)

    def _names(self) -> set[str]:
        """Return the columns of the catalogue that are asked for."""
        options, size = self.settings, self.settings.size
        template = {name for _, name, _, _ in Formatter().parse(options.frames) if name}
        sizes = {size.petro_rad, size.kron_radius, size.a_image}
        return {options.ra, options.dec} | options.names() | (template - {"band"}) | sizes

    def _matched(self, file: SurveyFile, ra, dec, kept) -> dict[int, dict[str, Any]]:
        match = self.settings.match
        if match is None:
            return {}
        wanted = {match.ra, match.dec, *match.columns}
        beside = file.sibling(match.table)
        other = _load_table(beside, wanted, tuple(sorted(wanted)))
        *place, faults = _positions(beside.path, other, match)
        for row, fault in faults.items():
            raise InvalidRecord(
                "position_invalid", f"{match.table}: {fault}", f"{beside.path}#{row}"
            )
        rows = np.flatnonzero(kept)
        there = np.flatnonzero(np.isfinite(place).all(axis=0))
        theirs = (values[there] for values in place)
        pairs = cross_match(ra[rows], dec[rows], *theirs, match.radius_arcsec)
        return {
            int(rows[i]): {name: other.columns[name][there[j]] for name in match.columns}
            for i, j in zip(pairs.first, pairs.second, strict=True)
        }

    def _cutout(
        self, file, row: dict[str, Any], cells: Cells, ra, dec, source: str, name: str
    ) -> Cutout:
        options = self.settings
        names = [options.frames.format(band=band, **row) for band in options.bands]
        paths = [posixpath.normpath(posixpath.join(posixpath.dirname(file.path), n)) for n in names]
        frames = self._frames.open_all(file, paths, options.bands)
        planes = [
            cut(frame, frame.wcs, ra, dec, options.size.half_width(cells, frame.sampling[0]))
            for frame in frames
        ]
        # Neighbouring frames of one survey may differ by a pixel in size.
        side = min(len(plane) for plane in planes)
        image = np.stack([plane[:side, :side] for plane in planes])
        made = options.cutout(image, cells, source, name, {}, self._frames.told(frames))
        fields = {"ra": float(ra), "dec": float(dec)}
        if options.pixel_scale_arcsec is None and "pixel_scale_arcsec" not in options.fields:
            fields["pixel_scale_arcsec"] = frames[0].sampling[0]
        check_scale(frames[0].sampling[0], made.pixel_scale_arcsec)
        return replace(made, **fields)


class _Catalogue(NamedTuple):
    """Columns as lists of Python's own values, integers exact, and what is stated of them."""

    columns: dict[str, list]
    facts: dict[str, ColumnFacts]

    def of(self, name: str) -> ColumnFacts:
        return self.facts.get(name) or ColumnFacts(name)


def _positions(
    path: str, table: _Catalogue, options: PositionOptions
) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Return positions in degrees, ICRS (NaN where there is none), and why some are wrong.

    Raises
    ------
    InvalidRecord
        ``unit_conflict``, ``frame_unknown``: of card and catalogue.
    """
    names = options.ra, options.dec
    stated = sky_frame(path, None, [table.of(name) for name in names])
    frame = _FRAMES[options.frame] if options.frame else stated
    if stated and frame != stated:
        detail = f"{names}: expected {options.frame}, as the card says, found {stated}"
        raise InvalidRecord("frame_unknown", detail, path)
    card = zip(names, (options.ra_unit, options.dec_unit), strict=True)
    units = [agreed_angle(path, name, unit, table.of(name).unit) for name, unit in card]
    hours, faults = frame.startswith("fk") or not frame, {}
    columns = [table.columns[name] for name in names]
    angles = np.full((2, len(columns[0])), np.nan)
    for number, pair in enumerate(zip(*columns, strict=True)):
        try:
            found = [to_degrees(path, name, unit, value, hours=hours and name == names[0])
                     for name, unit, value in zip(names, units, pair, strict=True)]  # fmt: skip
            if abs(found[0]) > 360 or abs(found[1]) > 90:
                raise ValueError("out of range")
            angles[:, number] = found
        except (ValueError, TypeError, OverflowError) as error:
            faults[number] = f"expected ra and dec in degrees, found {pair}: {error}"[:300]
    return *to_icrs(path, frame, *angles), faults


def _load_table(file: SurveyFile, names: set[str], needed: tuple[str, ...]) -> _Catalogue:
    """Return columns of a catalogue."""
    if not file.exists():
        raise InvalidRecord("table_missing", f"expected a table {file.path}", file.path)
    found = _Catalogue({}, {})
    units = parquet_units(file) if file.name.lower().endswith(".parquet") else [0]
    for unit in units:
        for piece in open_columns(file, unit, names):
            for name in names & set(piece.columns):
                values = piece.columns[name]
                new = values.to_pylist() if hasattr(values, "to_pylist") else values.tolist()
                found.columns.setdefault(name, []).extend(new)
                found.facts[name] = piece.facts.of(name)
    if missing := set(needed) - set(found.columns):
        raise InvalidRecord(
            "column_missing",
            f"expected columns {sorted(missing)}, found {sorted(found.columns)[:40]}", file.path,
        )  # fmt: skip
    return found
