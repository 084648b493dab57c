"""Bodies that are small and become large, or take long, cost the service little.

Each is decoded as the service decodes it, in a process with limits, and what it took is measured
there.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import io
import json
import os
import signal
import struct
import time
import zlib
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
from serve.decoding import Decoders, Decoding, Upload
from serve.refusal import Refusal
from serve.settings import ServiceSettings
from tests.bounded_work import children_of_mine, measured
from tests.damaged_fits import spec_file

from skyray.cards import load_card
from skyray.families.base import DataInfo
from skyray.records import InvalidRecord
from skyray.runtime import bounded

MAX_BYTES, MAX_RECORDS = 64 << 20, 1000
BOUNDS = bounded.Bounds(seconds=5, memory_mib=512, seconds_per_mib=0.5)
PEAK_MIB, SECONDS = 160, 2.0  # that a hostile body of a megabyte may take
FITS, JSON, ARROW = "application/fits", "application/json", "application/vnd.apache.arrow.stream"


def decoding(card_name: str) -> Decoding:
    card = load_card(card_name)
    grid = card.grid.grid() if card.grid else None
    info = DataInfo(card.name, card.record, tuple(card.classes), card.coarse, "0" * 12, grid,
                    bands=tuple(card.bands or ()), image_size=card.image_size or 0)  # fmt: skip
    return Decoding(card, info, MAX_RECORDS, MAX_BYTES)


def arrow_of_bits() -> bytes:
    """2.5 kB that hold 2²⁸ bools, as one list."""
    bits = pa.Array.from_buffers(pa.bool_(), 1 << 28, [None, pa.py_buffer(bytes(1 << 25))])
    lists = pa.LargeListArray.from_arrays(pa.array([0, len(bits)], pa.int64()), bits)
    table = pa.table(dict.fromkeys(("wavelength", "flux", "ivar"), lists))
    table = table.replace_schema_metadata({"medium": "vacuum"})
    stream = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(stream, table.schema, options=options) as writer:
        writer.write_table(table)
    return stream.getvalue()


def small_lists() -> bytes:
    """Lists of bools within the limit of bytes, which as numbers take 64 times as much."""
    rows = [np.zeros(1 << 22, bool)] * 8
    table = pa.table({n: pa.array(rows, pa.list_(pa.bool_())) for n in ("wavelength", "flux")})
    table = table.append_column("ivar", table["flux"]).replace_schema_metadata({"medium": "air"})
    stream = io.BytesIO()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    return stream.getvalue()


def packed(mebibytes: int) -> bytes:
    """A gzipped spectrum, followed by as many MiB of nothing."""
    stream = zlib.compressobj(9, wbits=31)
    zeros = [stream.compress(bytes(1 << 20)) for _ in range(mebibytes)]
    return b"".join([stream.compress(spec_file()), *zeros, stream.flush()])


def long_header() -> bytes:
    cards = [b"SIMPLE  =                    T", b"BITPIX  =                    8",
             b"NAXIS   =                    0"]  # fmt: skip
    cards += [b"COMMENT " + b"x" * 72] * (16 * 2**20 // 80) + [b"END"]
    return b"".join(card.ljust(80) for card in cards)


def many_hdus(count: int) -> bytes:
    def block(*cards: str) -> bytes:
        return "".join(card.ljust(80) for card in (*cards, "END")).ljust(2880).encode()

    first = block("SIMPLE  =                    T", "BITPIX  =                    8",
                  "NAXIS   =                    0", "EXTEND  =                    T")  # fmt: skip
    more = block("XTENSION= 'IMAGE   '", "BITPIX  =                    8",
                 "NAXIS   =                    0", "PCOUNT  =                    0",
                 "GCOUNT  =                    1")  # fmt: skip
    return first + more * count


def wide_png(side: int) -> bytes:
    """A grey image of `side`² pixels whose compressed rows are as small as can be."""

    def chunk(name: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)

    rows = zlib.compress(bytes(side * (side + 1)), 9)
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def numbers(count: int = 1 << 19) -> str:
    return "[" + ",".join(["0"] * count) + "]"


def alert(stamp: str) -> str:
    stamps = ",".join(f'"{name}":{stamp}' for name in ("science", "template", "difference"))
    return (
        '{"objectId":"ZTF18a","candid":1,"candidate":{"jd":2458000.5,"fid":1,"ra":1,"dec":1},'
        f'"cutouts":{{{stamps}}}}}'
    )


def fits_stamp(side: int) -> str:
    from astropy.io import fits

    content = io.BytesIO()
    fits.PrimaryHDU(np.ones((side, side), np.float32)).writeto(content)
    return json.dumps(base64.b64encode(gzip.compress(content.getvalue())).decode())


def row_stamp(side: int) -> str:
    return "[" + ",".join([numbers(side)] * side) + "]"


SPECTRUM, CUTOUT, ALERT = "sdss_coarse", "galaxies_gz1", "ztf_bts"
BODIES = {
    "Arrow of 2^28 bools": (SPECTRUM, ARROW, arrow_of_bits, "body_too_large"),
    "Arrow of bools": (SPECTRUM, ARROW, small_lists, "body_too_large"),
    "gzip of 900 MiB": (SPECTRUM, FITS, lambda: packed(900), "body_too_large"),
    "header of 16 MiB": (SPECTRUM, FITS, long_header, "header_too_long"),
    "180,000 HDUs, packed": (SPECTRUM, FITS, lambda: gzip.compress(many_hdus(180_000)),
                             "body_too_large"),
    "20,000 HDUs": (SPECTRUM, FITS, lambda: many_hdus(20_000), "too_many_hdus"),
    "JSON of numbers": (SPECTRUM, JSON, numbers, "json_invalid"),
    "JSON of spectra": (SPECTRUM, JSON, lambda: '{"spectra":' + numbers() + "}",
                        "too_many_records"),
    "JSON of pixels": (SPECTRUM, JSON, lambda: '{"wavelength":' + numbers() + "}", "json_invalid"),
    "JSON of texts": (SPECTRUM, JSON, lambda: '{"flux":' + numbers().replace("0", '""') + "}",
                      "json_invalid"),
    "JSON of fields": (SPECTRUM, JSON, lambda: json.dumps(dict.fromkeys(map(str, range(80_000)))),
                       "json_invalid"),
    "JSON of planes": (CUTOUT, JSON, lambda: '{"image":' + numbers() + "}", "json_invalid"),
    "JSON of rows": (CUTOUT, JSON, lambda: '{"image":[' + numbers() + "]}", "json_invalid"),
    "JSON of empty rows": (CUTOUT, JSON, lambda: '{"image":[' + numbers().replace("0", "[]") + "]}",
                           "json_invalid"),
    "JSON of deep lists": (CUTOUT, JSON, lambda: "[" * 500_000, "not_json"),
    "PNG of 4096²": (CUTOUT, "image/png", lambda: wide_png(4096), "image_too_large"),
    "stamps of 1000² in rows": (ALERT, JSON, lambda: alert(row_stamp(1000)), "json_invalid"),
    "stamps of 1000² in FITS": (ALERT, JSON, lambda: alert(fits_stamp(1000)), "stamp_shape"),
    "stamps of 4000² in FITS": (ALERT, JSON, lambda: alert(fits_stamp(4000)), "stamp_too_large"),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_a_small_body_takes_little(name):
    card, kind, make, reason = BODIES[name]
    body = make()
    body = body.encode() if isinstance(body, str) else body
    work = partial(measured, decoding(card))
    (took,) = bounded.each(work, [Upload(kind, body, "")], [len(body)], BOUNDS)
    assert not isinstance(took, InvalidRecord), f"was ended: {took}"
    found = took.result if isinstance(took.result, Refusal) else took.result[0]
    assert found.reason == reason
    room = PEAK_MIB + 8 * len(body) / 2**20
    assert took.peak_mib < room, f"{len(body):,} bytes took {took.peak_mib:.0f} MiB"
    assert took.seconds < SECONDS + 0.5 * len(body) / 2**20


@pytest.fixture
def decoders() -> Decoders:
    limits = {"decode_seconds": 0.5, "decode_memory_mib": 300, "predict_timeout_s": 300}
    return Decoders(ServiceSettings(bundle="none", **limits))


def upload(content: bytes) -> Upload:
    return Upload(FITS, content, "spec-0266-51602-0007.fits")


def test_bodies_are_decoded_and_refused_as_in_one_process(decoders):
    sdss = decoding(SPECTRUM)

    async def both():
        (spectrum,) = await decoders.decode(sdss, upload(spec_file(size=3800)))
        with pytest.raises(Refusal) as refused:
            await decoders.decode(sdss, upload(b"no FITS"))
        return spectrum, refused.value

    spectrum, refused = asyncio.run(both())
    (expected,) = sdss(upload(spec_file(size=3800)))
    np.testing.assert_array_equal(spectrum.flux, expected.flux)
    assert spectrum.object_id == expected.object_id
    assert (refused.status, refused.reason) == (400, "not_fits")


class Stuck:
    """In place of a `Decoding`: a library that never comes back, and one that crashes."""

    def __call__(self, upload: Upload):
        if upload.name == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        while True:
            pass


def test_what_never_ends_is_refused_and_others_are_answered(decoders):
    sdss, stuck = decoding(SPECTRUM), Stuck()

    async def ask(work, name="spec.fits"):
        try:
            return await decoders.decode(work, Upload(FITS, spec_file(size=3800), name))
        except Refusal as refused:
            return refused.reason

    async def all_at_once():
        await ask(sdss)
        hostile = [ask(stuck) for _ in range(2)] + [ask(stuck, "crash")]
        return await asyncio.gather(*hostile, ask(sdss))

    found = asyncio.run(all_at_once())
    assert found[:3] == ["decode_timeout"] * 2 + ["decode_crashed"]
    assert len(found[3]) == 1


def test_processes_are_there_before_the_first_body(decoders):
    deadline = time.monotonic() + 120
    while not bounded._idle and time.monotonic() < deadline:
        time.sleep(0.05)
    waiting = {process._process.pid for process in bounded._idle}
    (pid,) = bounded.each(children_of_mine, [None], [0], BOUNDS)
    assert pid in waiting
