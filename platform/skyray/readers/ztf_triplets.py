"""Alerts as BTSbot published them: an array of image triplets and a CSV of candidates, row by row.

``train_triplets_v10_N100.npy`` (float [N, 63, 63, 3]: science, reference, difference, each divided
by its norm) stands beside ``train_cand_v10_N100.csv``, whose rows hold ZTF's fields, the features
computed from all alerts of a source (``peakmag_so_far``, ``days_since_peak`` …) and ``label``.
``.npz`` holds the array as ``triplets``. Arrays are read without pickle: one of objects is refused.

Source: Rehemtulla et al. 2024, ApJ 972, 7; https://doi.org/10.5281/zenodo.10839690
"""

from __future__ import annotations

import io
import math
import re
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from skyray.config import Config
from skyray.readers.alert_files import csv_rows, plain_values
from skyray.readers.alert_packet import finite_field, integer_field
from skyray.readers.base import Reader, SurveyFile, name_by_content, register
from skyray.records import STAMPS, Alert, InvalidRecord, attempt

_ROWS = 1_000  # of a unit
_MAX_SIDE = 512
_MAX_NPZ_BYTES = 1 << 30
_TEXTS = ("objectId", "isdiffpos", "split")
_INTEGER = re.compile(r"[0-9]{1,19}")


class TripletOptions(Config):
    """``reader_options`` of the ``ztf_triplets`` reader."""

    table: str | None = Field(
        None,
        description="name of the CSV beside the array; none: that of the array with cand or "
        "candidates in place of triplets",
    )
    pixel_scale_arcsec: float = Field(1.01, gt=0, description="of the stamps")


@register
class ZtfTripletsReader(Reader):
    """Published triplets: row n of the array is row n of the table.

    ``candid`` is 0 where the table holds it rounded (2.46644e+18): an alert is then named by its
    source and its pixels. ``extra`` holds the label and what is no field of ZTF's.
    """

    name = "ztf_triplets"
    patterns = ("*triplets*.npy", "*triplets*.npz")

    def __init__(self, options=None):
        super().__init__(options)
        self.triplets = TripletOptions.load(self.options)
        self._kept: tuple[Any, list[dict[str, Any]]] = (None, [])

    def units(self, file: SurveyFile) -> list[int]:
        return list(range(max(math.ceil(_Array(file).rows / _ROWS), 1)))

    def read(self, file: SurveyFile, unit: int = 0) -> Iterator[Alert | InvalidRecord]:
        array, table = _Array(file), self._table(file)
        if array.rows != len(table):
            detail = f"expected a row of the table for each of {array.rows}, found {len(table)}"
            raise InvalidRecord("rows_differ", detail, file.path)
        start = unit * _ROWS
        for number, triplet in enumerate(array.part(start, start + _ROWS), start):
            source = f"{file.path}#{number}"
            row = table[number]
            name = str(row.get("objectId") or "")
            yield attempt(partial(self._alert, triplet, row, source), source, name)

    def _table(self, file: SurveyFile) -> list[dict[str, Any]]:
        beside = self._beside(file)
        info = beside.filesystem.get_file_info(beside.path)
        stamp = (beside.path, info.size, info.mtime_ns)
        if self._kept[0] != stamp:
            self._kept = stamp, csv_rows(beside)
        return self._kept[1]

    def _beside(self, file: SurveyFile) -> SurveyFile:
        stem = file.name.rpartition(".")[0]
        names = [self.triplets.table] if self.triplets.table else [
            f"{stem.replace('triplets', word)}.csv" for word in ("cand", "candidates")
        ]  # fmt: skip
        for name in names:
            beside = file.sibling(name)
            if beside.exists():
                return beside
        detail = f"expected {' or '.join(names)} beside it, found none"
        raise InvalidRecord("table_missing", detail, file.path)

    def _alert(self, triplet: np.ndarray, row: dict[str, Any], source: str) -> Alert:
        fields = plain_values(row)
        fields |= {name: row[name] for name in _TEXTS if name in row}
        source_id, candid = row.get("objectId"), (row.get("candid") or "").strip()
        if not source_id:
            raise InvalidRecord("packet_field_missing", "table: expected objectId")
        candid = int(candid) if _INTEGER.fullmatch(candid) and int(candid) < 1 << 63 else 0
        planes = np.moveaxis(np.asarray(triplet, np.float32), -1, 0)
        name = str(candid) if candid else name_by_content(source_id, planes)
        return Alert(
            object_id=name, source_id=source_id, candid=candid, jd=finite_field(fields, "jd"),
            fid=integer_field(fields, "fid"), candidate={**fields, "candid": candid},
            ra=finite_field(fields, "ra"), dec=finite_field(fields, "dec"), survey="ztf",
            source=source, extra={"label": fields.get("label")},
            pixel_scale_arcsec=self.triplets.pixel_scale_arcsec,
            **dict(zip(STAMPS, planes, strict=True)),
        )  # fmt: skip


class _Array:
    """The array of a file, of which a part is read at a time."""

    def __init__(self, file: SurveyFile):
        self.file = file
        self._content: bytes | None = None
        try:
            if file.name.endswith(".npz"):
                self._content = _member(file)
            with self._open() as stream:
                self.shape, self.dtype = self._header(stream)
                self._start = stream.tell()
        except (
            ValueError,
            OSError,
            EOFError,
            SyntaxError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            detail = f"expected a NumPy array, found {type(error).__name__}: {error}"[:300]
            raise InvalidRecord("npy_invalid", detail, file.path) from None

    def _open(self) -> pa.NativeFile:
        if self._content is not None:
            return pa.BufferReader(self._content)
        return self.file.filesystem.open_input_file(self.file.path)

    def _header(self, stream: pa.NativeFile) -> tuple[tuple[int, ...], np.dtype]:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0}.get(version)  # fmt: skip
        if read is None:
            raise ValueError(f"version {version}")
        shape, transposed, dtype = read(stream)
        whole = len(shape) == 4 and shape[3] == 3 and min(shape[1:3]) >= 1
        if not whole or max(shape[1:3]) > _MAX_SIDE or transposed or dtype.kind not in "fiu":
            raise ValueError(
                f"{dtype} {shape}{' in Fortran order' if transposed else ''}; expected numbers "
                f"[N, height, width, 3]"
            )
        held = stream.size() - stream.tell()
        if math.prod(shape) * dtype.itemsize > held:
            raise ValueError(f"{dtype} {shape} of only {held} bytes")
        return shape, dtype

    @property
    def rows(self) -> int:
        return self.shape[0]

    def part(self, start: int, end: int) -> np.ndarray:
        """Return rows `start` to `end`."""
        size = math.prod(self.shape[1:])
        count = max(min(end, self.rows) - start, 0)
        with self._open() as stream:
            stream.seek(self._start + start * size * self.dtype.itemsize)
            content = stream.read(count * size * self.dtype.itemsize)
        return np.frombuffer(content, self.dtype).reshape(count, *self.shape[1:])


def _member(file: SurveyFile) -> bytes:
    """Return the array ``triplets`` of an archive, or its only one, inflated within bounds."""
    with zipfile.ZipFile(io.BytesIO(file.read_bytes())) as archive:
        entries = archive.infolist()
        named = [e for e in entries if e.filename == "triplets.npy"] or entries
        if len(named) != 1:
            raise ValueError(
                f"an archive of {[e.filename for e in entries][:10]}; expected triplets"
            )
        with archive.open(named[0]) as stream:
            content = stream.read(_MAX_NPZ_BYTES + 1)
    if len(content) > _MAX_NPZ_BYTES:
        raise ValueError(f"an array beyond {_MAX_NPZ_BYTES >> 20} MB")
    return content
