"""Mutations of tables: Parquet, CSV, arrays of numpy: see `tests.fuzz_mutators`."""

from __future__ import annotations

import csv
import gzip
import io
import random
import struct
import zipfile
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tests.fuzz_mutators import (
    INTEGERS,
    WORDS,
    Mutator,
    _clipped,
    change_tree,
    fits,
    leaf,
    scratch,
    several,
)
from tests.hostile_avro import number

_KINDS = (pa.int8(), pa.int32(), pa.int64(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(),
          pa.string(), pa.large_string(), pa.binary(), pa.bool_(), pa.null(), pa.timestamp("ns"),
          pa.decimal128(38, 3), pa.dictionary(pa.int8(), pa.string()),
          pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float32(), 1200),
          pa.list_(pa.int16()), pa.list_(pa.list_(pa.float32())))  # fmt: skip


# Parquet ---------------------------------------------------------------------------------------
def parquet_footer(content: bytes, rng: random.Random) -> bytes:
    """Change the thrift footer; its length is made right."""
    size = int.from_bytes(content[-8:-4], "little")
    body, footer = content[: -8 - size], bytearray(content[-8 - size : -8])
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(footer))
        if rng.random() < 0.5:
            footer[at : at + 1] = number(_clipped(rng.choice(INTEGERS), 8))
        else:
            footer[at] = rng.randrange(256)
    return body + bytes(footer) + struct.pack("<I", len(footer)) + b"PAR1"


def parquet_pages(content: bytes, rng: random.Random) -> bytes:
    size = int.from_bytes(content[-8:-4], "little") + 8
    found = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        found[rng.randrange(4, max(5, len(found) - size))] = rng.randrange(256)
    return bytes(found)


def parquet_rows(content: bytes, rng: random.Random) -> bytes:
    """Change what rows hold: values, fields within fields, rows, at any depth."""
    rows = pq.read_table(io.BytesIO(content)).to_pylist()
    for _ in range(rng.randint(1, 3)):
        rows = change_tree(rows, rng)
    return _parquet(pa.Table.from_pylist(rows), rng)


def parquet_columns(content: bytes, rng: random.Random) -> bytes:
    """Give columns another type, name or place; leave some out; empty a row of one."""
    table = pq.read_table(io.BytesIO(content))
    at = rng.randrange(table.num_columns)
    name, column = table.column_names[at], table.column(at)
    kind = rng.randrange(6)
    if kind <= 1:
        table = table.set_column(at, name, column.cast(rng.choice(_KINDS), safe=False))
    elif kind == 2:
        table = table.remove_column(at)
    elif kind == 3:
        new = rng.choice((*WORDS[:-2], *table.column_names, name.upper(), f"{name}.x"))
        table = table.append_column(new, column)
        table = table if rng.random() < 0.3 else table.remove_column(at)
    elif kind == 4:
        values = column.to_pylist()
        values[rng.randrange(len(values))] = rng.choice((None, None, [], leaf(rng)))
        table = table.set_column(at, name, pa.array(values))
    else:
        table = table.slice(rng.randrange(2), rng.choice((0, 1, 1)))
    return _parquet(table, rng)


def parquet_stamps(content: bytes, rng: random.Random) -> bytes:
    """Change the gzipped FITS files in a row, in some cases behind the compression."""
    rows = pq.read_table(io.BytesIO(content)).to_pylist()
    packet = rng.choice(rows)
    name = rng.choice([name for name in packet if name.startswith("cutout")])
    stamp = packet[name]["stampData"]
    if rng.random() < 0.8:
        stamp = gzip.compress(fits(gzip.decompress(stamp), rng), 1)
    else:
        stamp = scratch(stamp, rng)
    packet[name]["stampData"] = rng.choice((stamp, stamp, stamp, None, b""))
    return _parquet(pa.Table.from_pylist(rows), rng)


def _parquet(table: pa.Table, rng: random.Random) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream, row_group_size=rng.choice((1, 2, 1000)),
                   compression=rng.choice(("none", "snappy", "gzip", "zstd", "lz4", "brotli")),
                   use_dictionary=rng.random() < 0.5, store_schema=rng.random() < 0.7,
                   write_statistics=rng.random() < 0.5, version=rng.choice(("1.0", "2.6")),
                   data_page_version=rng.choice(("1.0", "2.0")))  # fmt: skip
    return stream.getvalue()


def _then_bytes(*rows: Mutator) -> Mutator:
    """Change what a file holds, and then its bytes: what bytes were changed is not read again."""
    change_bytes = several(parquet_footer, parquet_pages, scratch)

    def mutate(content: bytes, rng: random.Random) -> bytes:
        kind = rng.randrange(4)
        for _ in range(rng.choice((1, 1, 2, 3)) if kind else 0):
            try:
                content = rng.choice(rows)(content, rng)
            except (pa.ArrowException, ValueError, LookupError, TypeError, AttributeError,
                    OSError, OverflowError):  # fmt: skip
                continue  # no such table can be written
        return change_bytes(content, rng) if kind <= 1 else content

    return mutate


parquet = _then_bytes(parquet_rows, parquet_columns)
alert_parquet = _then_bytes(parquet_rows, parquet_columns, parquet_stamps, parquet_stamps)


# CSV -------------------------------------------------------------------------------------------
def csv_cells(content: bytes, rng: random.Random) -> bytes:
    rows = list(csv.reader(io.StringIO(content.decode())))
    for _ in range(rng.randint(1, 6)):
        row = rng.choice(rows)
        at = rng.randrange(len(row))
        row[at] = rng.choice((*WORDS, *map(str, INTEGERS), "[1 2 3]", "1;2", "\n", "a,b"))
        if rng.random() < 0.01:
            del row[at]
    return _csv(rows, rng)


def csv_columns(content: bytes, rng: random.Random) -> bytes:
    """Change a whole column: its name, its numbers' form or scale; repeat or leave it out."""
    rows = list(csv.reader(io.StringIO(content.decode())))
    names, at = rows[0], rng.randrange(len(rows[0]))
    kind = rng.randrange(5)
    if kind == 0:
        names[at] = rng.choice((*WORDS, *names, names[at].upper()))
    elif kind == 1:
        value: Any = rng.choice((*WORDS, *INTEGERS))
        rows[1:] = [[*row[:at], str(value), *row[at + 1 :]] for row in rows[1:]]
    elif kind == 2:
        form = rng.choice(
            ("{}e300", "{}e-300", "-{}", "{},5", "[{}]", "{} Jy", "+{}", " {} ", "0{}")
        )
        rows[1:] = [[*row[:at], form.format(row[at]), *row[at + 1 :]] for row in rows[1:]]
    elif kind == 3:
        rows = [[*row[:at], *row[at + 1 :]] for row in rows]
    else:
        rows = [[*row, row[at]] for row in rows]
    return _csv(rows, rng)


def csv_rows(content: bytes, rng: random.Random) -> bytes:
    """Drop, repeat, exchange or comment rows."""
    rows = content.splitlines(keepends=True)
    at, other = rng.randrange(len(rows)), rng.randrange(len(rows))
    kind = rng.randrange(4)
    if kind == 0:
        del rows[at:other]
    elif kind == 1:
        rows[at:at] = [rows[other]] * rng.choice((1, 2, 400))
    elif kind == 2:
        rows[at], rows[other] = rows[other], rows[at]
    else:
        rows[at:at] = [rng.choice((b"# x\n", b"\n", b"#\n", b"# %ECSV 1.0\n", b"\r", b" \n"))]
    return b"".join(rows)


def _csv(rows: list[list[str]], rng: random.Random) -> bytes:
    stream = io.StringIO()
    csv.writer(stream, delimiter=rng.choice(",,,;\t|")).writerows(rows)
    return rng.choice(("", "", "\ufeff")).encode() + stream.getvalue().encode("utf-8", "replace")


csv_table = several(csv_cells, csv_cells, csv_columns, csv_columns, csv_rows, scratch)


# numpy -----------------------------------------------------------------------------------------
def npy_header(content: bytes, rng: random.Random) -> bytes:
    """Change the dictionary of an array's header; its length is made right."""
    size = struct.unpack_from("<H", content, 8)[0]
    shape = tuple(rng.choice((0, 1, 3, 64, 69, -1, 2**31, 2**62)) for _ in range(rng.randint(0, 4)))
    described = rng.choice(("<f4", ">f8", "|O", "<U9", "|b1", "<c16", "<M8[s]", "|V8", "x", "<f2"))
    text = rng.choice((
        repr({"descr": described, "fortran_order": rng.random() < 0.5, "shape": shape}),
        repr({"descr": [("a", described), ("b", "<f4", (2, 2))], "fortran_order": 0, "shape": ()}),
        "{'descr': " + "(" * rng.choice((1, 90, 3000)) + "1", "{}", "__import__('os')",
    ))  # fmt: skip
    text = text.encode()[:60_000] + b"\n"
    return content[:8] + struct.pack("<H", len(text)) + text + content[10 + size :]


npy = several(npy_header, npy_header, scratch)


def zip_members(content: bytes, rng: random.Random) -> bytes:
    """Change one member of an archive, its name or its compression."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(list(members))
    kind = rng.randrange(4)
    if kind <= 1:
        members[name] = npy(members[name], rng)
    elif kind == 2:
        members[rng.choice((*WORDS, "flux.npy"))] = members.pop(name)
    else:
        del members[name]
    stream = io.BytesIO()
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
    with zipfile.ZipFile(stream, "w", method) as archive:
        for entry, data in members.items():
            archive.writestr(entry.replace("\0", "0") or "none", data)
    return stream.getvalue()


def zip_directory(content: bytes, rng: random.Random) -> bytes:
    """Change fields of the entries: sizes, flags (encrypted), methods (deflate64)."""
    found = bytearray(content)
    marks = [at for at in range(len(found) - 46) if found[at : at + 4] == b"PK\x01\x02"]
    marks += [at for at in range(len(found) - 30) if found[at : at + 4] == b"PK\x03\x04"]
    at = rng.choice(marks) + rng.randrange(4, 46)
    found[at : at + 4] = struct.pack("<i", _clipped(rng.choice(INTEGERS), 4))
    return bytes(found)


npz = several(zip_members, zip_members, zip_directory, scratch)
