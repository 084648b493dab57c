"""Survey frames that cutouts are cut from: opened once, read by rows, kept within a limit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from astropy.wcs import WCS
from pydantic import Field

from skyray.config import Config
from skyray.readers.base import SurveyFile
from skyray.readers.fits_bytes import FitsFile, Hdu
from skyray.readers.image_hdus import check_band, choose_image, flux_factor
from skyray.readers.image_wcs import Sampling, sampling, sky_wcs
from skyray.readers.layout import COMPRESSED
from skyray.readers.pixels import as_float32
from skyray.records import InvalidRecord

KEPT_BYTES = 512 << 20  # of unpacked frames; of others only rows are read
KEPT_FRAMES = 16
MAX_TURN = 1.0  # degrees between frames of one object


class FrameOptions(Config):
    """What is taken from a frame."""

    hdu: int | str | None = Field(
        None, description="HDU of the image; null: the only one that is not called weight, mask …"
    )
    unit: str | None = Field(None, description="of the pixels; a frame's BUNIT is converted to it")
    zero_point: float | None = Field(
        None, description="magnitude of one unit of flux; frames are scaled from their own to it"
    )


@dataclass
class Frame:
    """An open frame; slices of it are float32 [rows, columns] in the card's unit."""

    file: FitsFile
    hdu: Hdu
    wcs: WCS
    sampling: Sampling
    factor: float
    told: dict[str, str] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.hdu.shape

    def __getitem__(self, at: tuple[slice, slice]) -> np.ndarray:
        rows, columns = at
        pixels = self.hdu.image_rows(rows.start, rows.stop)[:, columns]
        if self.factor != 1:
            pixels = pixels.astype(np.float64) * self.factor
        return as_float32(pixels)


class Frames:
    """The frames used last, as long as what they hold in memory stays within `KEPT_BYTES`."""

    def __init__(self, options: FrameOptions):
        self.options = options
        self._kept: OrderedDict[tuple[str, str], Frame] = OrderedDict()

    def open_all(
        self, catalogue: SurveyFile, paths: Sequence[str], bands: Sequence[str]
    ) -> list[Frame]:
        """Return the frames of an object, one a band.

        Raises
        ------
        InvalidRecord
            ``frame_missing``, ``frame_invalid`` (no image of two axes with a celestial WCS),
            ``frames_differ`` (in unit, pixel scale or orientation), or what the frame's file is
            refused for.
        """
        found = [self._open(catalogue, p, b) for p, b in zip(paths, bands, strict=True)]
        first = found[0]
        for path, frame in zip(paths, found, strict=True):
            turn = abs((frame.sampling.up - first.sampling.up + 180) % 360 - 180)
            scale = frame.sampling.pixel_scale_arcsec / first.sampling.pixel_scale_arcsec
            same = frame.sampling.mirrored == first.sampling.mirrored
            if abs(scale - 1) > 0.01 or turn > MAX_TURN or not same:
                raise InvalidRecord(
                    "frames_differ",
                    f"{path}: expected {first.sampling.pixel_scale_arcsec:.5g} arcsec a pixel, "
                    f"{first.sampling}, as {paths[0]}; found "
                    f"{frame.sampling.pixel_scale_arcsec:.5g}, {frame.sampling}",
                )
            if frame.told["unit"] != first.told["unit"]:
                units = {first.told["unit"], frame.told["unit"]}
                raise InvalidRecord("frames_differ", f"{path}: expected one unit, found {units}")
        while len(self._kept) > max(len(bands), 1) and self._too_much():
            self._kept.popitem(last=False)[1].file.__exit__()
        return found

    def told(self, frames: Sequence[Frame]) -> dict[str, str]:
        """Return what was decided about the frames of an object."""
        keys = dict.fromkeys(key for frame in frames for key in frame.told)
        return {key: "; ".join(dict.fromkeys(f.told[key] for f in frames)) for key in keys}

    def _too_much(self) -> bool:
        held = sum(frame.file.held_bytes for frame in self._kept.values())
        return held > KEPT_BYTES or len(self._kept) > KEPT_FRAMES

    def _open(self, catalogue: SurveyFile, path: str, band: str) -> Frame:
        if (path, band) in self._kept:
            self._kept.move_to_end((path, band))
            return self._kept[path, band]
        names = (f"{path}{packed}" for packed in COMPRESSED)  # as archives hand out plain ones
        files = (SurveyFile(catalogue.filesystem, name) for name in names)
        file = next((file for file in files if file.exists()), None)
        if file is None:
            raise InvalidRecord("frame_missing", f"expected a file {path}, found none")
        try:
            frame = self._made(file, band)
        except InvalidRecord as error:
            raise InvalidRecord(error.reason, f"{file.path}: {error.detail}") from None
        self._kept[path, band] = frame
        return frame

    def _made(self, file: SurveyFile, band: str) -> Frame:
        fits = FitsFile(file)
        try:
            hdu, why = choose_image(fits, file, self.options.hdu)
            header = hdu.inherited_header()
            wcs = sky_wcs(header.own, file)
            if wcs is None or len(hdu.shape) != 2:
                detail = "expected an image of two axes with a celestial WCS"
                raise InvalidRecord("frame_invalid", f"{detail}, found shape {hdu.shape}")
            found = sampling(wcs, hdu.shape)
            factor, told = flux_factor(header, self.options.unit, self.options.zero_point)
            scale = f"{found.pixel_scale_arcsec:.6g} (WCS)"
            told |= {"hdu": why, "bands": check_band(header, band)}
            told |= {"pixel_scale_arcsec": scale, "orientation": str(found)}
            return Frame(fits, hdu, wcs, found, factor, told)
        except BaseException:
            fits.__exit__()
            raise
