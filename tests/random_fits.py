"""Random FITS files over all that the standard allows in tables and images, with their true values.

Tables are built from raw bytes, so that every keyword and layout occurs, also those astropy would
not write; images, tiles and checksums are written by astropy. `build` returns a file's bytes and
what each HDU holds.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from astropy.io import fits

BLOCK = 2880
NUMBERS = {"B": "u1", "I": ">i2", "J": ">i4", "K": ">i8", "E": ">f4", "D": ">f8"}
SIGN = {"B": -128, "I": 2**15, "J": 2**31, "K": 2**63}
COMPRESSIONS = ("RICE_1", "GZIP_1", "GZIP_2", "PLIO_1", "HCOMPRESS_1", "NOCOMPRESS")


@dataclass
class Truth:
    """Values of a column or an image and where they are null; or why they may be refused."""

    values: Any = None
    nulls: np.ndarray | None = None
    refused: str = ""
    tolerance: float = 0.0
    name: str = ""


@dataclass
class Part:
    """An HDU: its bytes, and what it holds: `columns`, an `image`, or a reason to be refused."""

    content: bytes
    columns: list[Truth] = field(default_factory=list)
    image: Truth | None = None
    refused: str = ""
    padding: int = 0  # zeros that fill its last block


def card(key: str, value: Any) -> str:
    text = f"'{value:<8}'" if isinstance(value, str) else str(value)
    text = {True: "T", False: "F"}[value] if isinstance(value, bool) else text
    return f"{key:<8}= {text:>20}".ljust(80)


def filled(content: bytes, by: bytes = b"\0") -> bytes:
    return content + by * (-len(content) % BLOCK)


def header(cards: list[tuple[str, Any]]) -> bytes:
    text = "".join(card(*one) for one in cards) + "END".ljust(80)
    return filled(text.encode(), b" ")


def with_cards(content: bytes, cards: list[tuple[str, Any]]) -> bytes:
    """Return an HDU with more cards before its END."""
    end = content.index(b"END" + b" " * 77)
    text = content[:end] + "".join(card(*one) for one in cards).encode()
    data = content[-(-(end + 80) // BLOCK) * BLOCK :]
    return filled(text + b"END" + b" " * 77, b" ") + data


# values ----------------------------------------------------------------------------------------
def raw_numbers(rng: np.random.Generator, code: str, shape: tuple[int, ...]) -> np.ndarray:
    dtype = np.dtype(NUMBERS[code])
    if dtype.kind == "f":
        values = rng.normal(0, 1000, shape).astype(dtype)
        values[rng.random(shape) < 0.1] = rng.choice([np.nan, np.inf, -0.0, 1e30])
        return values
    limits = np.iinfo(dtype)
    values = rng.integers(limits.min, limits.max, shape, dtype.newbyteorder("="), endpoint=True)
    small = rng.random(shape) < 0.5
    return np.where(small, values % 7, values).astype(dtype)


def scaling(rng: np.random.Generator, code: str, how: str) -> tuple[float, float]:
    if how == "sign" and code in SIGN:
        return SIGN[code], 1
    if how == "offset":
        return int(rng.integers(-100, 100)), 1
    if how == "linear":
        return float(rng.integers(-50, 50)) / 4, float(rng.integers(1, 9)) / 8
    return 0, 1


def true_values(raw: np.ndarray, zero: float, scale: float) -> Truth:
    """Return ``zero + scale · raw`` in Python's exact integers where it is one."""
    if raw.dtype.kind != "f" and scale == 1 and zero == int(zero):
        exact = raw.astype(object) + int(zero)
        inside = all(-(2**63) <= int(v) < 2**64 for v in exact.ravel())
        return Truth(exact, refused="" if inside else "column_type")
    values = raw.astype(raw.dtype.newbyteorder("="))
    if (zero, scale) != (0, 1):
        values = values.astype(np.float64) * scale + zero
    return Truth(values)


def null_of(rng: np.random.Generator, raw: np.ndarray) -> int:
    return int(rng.choice(raw.ravel())) if raw.size and rng.random() < 0.8 else 99


# columns ---------------------------------------------------------------------------------------
LETTERS = np.frombuffer(b"abcXYZ019 _-.", "S1")


def texts(rng: np.random.Generator, shape: tuple[int, ...], width: int) -> np.ndarray:
    letters = rng.choice(LETTERS, (*shape, width)).view("u1")
    ends = rng.integers(0, width + 1, (*shape, 1))
    letters = np.where(np.arange(width) < ends, letters, rng.choice([0, 32]))
    return letters.astype("u1")


def stripped(letters: np.ndarray) -> Any:
    if not letters.shape[-1]:
        return np.full(letters.shape[:-1], "")
    rows = letters.reshape(-1, letters.shape[-1])
    flat = [bytes(row).split(b"\0")[0].decode().rstrip() for row in rows]
    return np.array(flat, dtype=object).reshape(letters.shape[:-1])


def column(rng, n: int, rows: int, spec: dict) -> tuple[list, np.ndarray, Truth, list[np.ndarray]]:
    """Return cards, the bytes of each row [rows, width], the truth, and lists for the heap."""
    code, repeat = spec["code"], spec["repeat"]
    cards: list[tuple[str, Any]] = []
    shape = (rows,) if repeat == 1 else (rows, repeat)
    if code[0] in "PQ":
        return heap_column(rng, n, rows, spec)
    if code in "CM":
        raw = rng.normal(size=(rows, 2 * repeat)).astype(">f4" if code == "C" else ">f8")
        return [(f"TFORM{n}", f"{repeat}{code}")], as_bytes(raw), Truth(refused="column_type"), []
    if code == "A":
        return text_column(rng, n, rows, spec)
    form = f"{repeat}{code}"
    if code == "L":
        raw = rng.choice(np.frombuffer(b"TTF\0" if spec["null"] else b"TF", "u1"), shape)
        truth = Truth(raw == ord("T"), raw == 0)
    elif code == "X":
        bits = rng.random((rows, repeat)) < 0.5
        raw = np.packbits(bits, axis=-1) if repeat else np.empty((rows, 0), "u1")
        truth = Truth(bits if repeat != 1 else bits[:, 0])
    else:
        raw = raw_numbers(rng, code, shape)
        zero, scale = scaling(rng, code, spec["scale"])
        truth = true_values(raw, zero, scale)
        if (zero, scale) != (0, 1) or spec["scale"] == "stated":
            cards += [(f"TZERO{n}", zero), (f"TSCAL{n}", scale)]
        if spec["null"] and code in "BIJK":
            null = null_of(rng, raw)
            cards.append((f"TNULL{n}", null))
            truth.nulls = raw == null
    if spec["tdim"] and repeat and code != "X" and repeat % 2 == 0:
        cards.append((f"TDIM{n}", f"({repeat // 2},2)"))
        truth.values = truth.values.reshape(rows, 2, repeat // 2)
        truth.nulls = None if truth.nulls is None else truth.nulls.reshape(rows, 2, repeat // 2)
    return [(f"TFORM{n}", form), *cards], as_bytes(raw), truth, []


def text_column(rng, n: int, rows: int, spec: dict):
    repeat, width = spec["repeat"], spec["width"]
    form, cards = f"{repeat}A", []
    if spec["tdim"] and repeat:
        letters = texts(rng, (rows, repeat), width)
        form, cards = f"{repeat * width}A", [(f"TDIM{n}", f"({width},{repeat})")]
    elif spec["scale"] == "linear" and repeat > 1:
        letters = texts(rng, (rows, repeat), width)
        form = f"{repeat * width}A{width}"  # rAw: substrings
    else:
        letters = texts(rng, (rows,), repeat)
    return [(f"TFORM{n}", form), *cards], as_bytes(letters), Truth(stripped(letters)), []


def heap_column(rng, n: int, rows: int, spec: dict):
    pointer, code = spec["code"]
    lengths = rng.integers(0, 5, rows)
    zero, scale = scaling(rng, code, spec["scale"]) if code in NUMBERS else (0, 1)
    cards = [(f"TFORM{n}", f"1{pointer}{code}({lengths.max(initial=0)})")]
    if (zero, scale) != (0, 1):
        cards += [(f"TZERO{n}", zero), (f"TSCAL{n}", scale)]
    lists, values = [], []
    refused = "column_type" if code in "XCM" else ""
    for length in lengths:
        if code == "A":
            raw = texts(rng, (), int(length))
            values.append(stripped(raw[None])[0])
        elif code == "L":
            raw = rng.choice(np.frombuffer(b"TF", "u1"), length)
            values.append(raw == ord("T"))
        else:
            raw = raw_numbers(rng, code if code in NUMBERS else "B", (int(length),))
            truth = true_values(raw, zero, scale)
            values.append(truth.values)
            refused = refused or truth.refused
        lists.append(raw)
    descriptors = np.zeros((rows, 2), ">i4" if pointer == "P" else ">i8")
    descriptors[:, 0] = lengths
    return cards, descriptors, Truth(values, refused=refused), lists


def as_bytes(raw: np.ndarray) -> np.ndarray:
    width = int(np.prod(raw.shape[1:])) * raw.itemsize
    return np.frombuffer(raw.tobytes(), "u1").reshape(len(raw), width)


def table(rng: np.random.Generator, rows: int, specs: list[dict]) -> Part:
    cards, bytes_of, truths, heap, names = [], [], [], b"", []
    if not any(spec["repeat"] or spec["code"][0] in "PQ" for spec in specs):
        specs = [{**specs[0], "repeat": 1}, *specs[1:]]  # a row of no bytes is refused
    heap_gap = int(rng.integers(0, 2)) * 16
    for n, spec in enumerate(specs, start=1):
        name = names[-1].upper() if spec["twin"] and names else f"col_{n}"
        names.append(name)
        own, raw, truth, lists = column(rng, n, rows, spec)
        for row, items in enumerate(lists):
            raw[row, 1] = len(heap)
            heap += items.tobytes()
        truth.name = name
        cards += [(f"TTYPE{n}", name), *own, (f"TUNIT{n}", "Jy")]
        bytes_of.append(raw if raw.dtype == np.uint8 else as_bytes(raw))
        truths.append(truth)
    lower = [name.lower() for name in names]
    for truth in truths:
        if lower.count(truth.name.lower()) > 1:
            truth.refused = "column_type"
    data = np.concatenate(bytes_of, axis=1) if bytes_of else np.empty((rows, 0), "u1")
    start = [
        ("XTENSION", "BINTABLE"), ("BITPIX", 8), ("NAXIS", 2), ("NAXIS1", data.shape[1]),
        ("NAXIS2", rows), ("PCOUNT", heap_gap + len(heap)), ("GCOUNT", 1),
        ("TFIELDS", len(specs)),
    ]  # fmt: skip
    gap = [("THEAP", data.size + heap_gap)] if heap_gap else []
    stored = data.tobytes() + b"\xff" * heap_gap + heap
    content = header(start + cards + gap) + filled(stored)
    return Part(content, truths, padding=-len(stored) % BLOCK)


def ascii_table(rng: np.random.Generator, rows: int, codes: list[str], nulls: bool) -> Part:
    cards, cells, truths, at = [], [], [], 1
    for n, code in enumerate(codes, start=1):
        width = {"I": 6, "A": 5, "F": 10, "E": 14, "D": 22}[code]
        none = (rng.random(rows) < 0.3) if nulls and code != "A" else np.zeros(rows, bool)
        if code == "A":
            letters = np.where(texts(rng, (rows,), width) == 0, 32, texts(rng, (rows,), width))
            letters = np.where(letters == 0, 32, letters).astype("u1")
            texts_of, truth = [bytes(row).decode() for row in letters], Truth(stripped(letters))
        else:
            if code == "I":
                values = rng.integers(-999, 9999, rows)
                texts_of = [f"{v:{width}d}" for v in values]
            else:
                form = {"F": f"{width}.2f", "E": f"{width}.6E", "D": f"{width}.14E"}[code]
                texts_of = [f"{v:{form}}" for v in rng.normal(0, 100, rows)]
                values = np.array([float(text) for text in texts_of])
                if code == "D":
                    texts_of = [text.replace("E", "D") for text in texts_of]
            texts_of = [
                "-".rjust(width) if null else t for t, null in zip(texts_of, none, strict=True)
            ]
            truth = Truth(values.astype(object) if code == "I" else values, none)
            if nulls:
                cards.append((f"TNULL{n}", "-"))
        form = f"{code}{width}" + {"F": ".2", "E": ".6", "D": ".14"}.get(code, "")
        cards += [(f"TTYPE{n}", f"a{n}"), (f"TFORM{n}", form), (f"TBCOL{n}", at)]
        truth.name = f"a{n}"
        truths.append(truth)
        cells.append(texts_of)
        at += width + 1
    lines = ["".join(f"{cell} " for cell in row) for row in zip(*cells, strict=True)]
    start = [("XTENSION", "TABLE"), ("BITPIX", 8), ("NAXIS", 2), ("NAXIS1", at - 1),
             ("NAXIS2", rows), ("PCOUNT", 0), ("GCOUNT", 1), ("TFIELDS", len(codes))]  # fmt: skip
    return Part(header(start + cards) + filled("".join(lines).encode(), b" "), truths)


# images ----------------------------------------------------------------------------------------
def written(hdu: Any, checksum: bool) -> bytes:
    stream = io.BytesIO()
    hdu.writeto(stream, checksum=checksum)
    return stream.getvalue()[BLOCK:]


def image(rng: np.random.Generator, spec: dict) -> Part:
    code = spec["code"]
    raw = raw_numbers(rng, code, tuple(spec["shape"]))
    zero, scale = scaling(rng, code, spec["scale"])
    cards = [("BZERO", zero), ("BSCALE", scale)] if (zero, scale) != (0, 1) else []
    truth = true_values(raw, zero, scale)
    truth.refused = truth.refused and "header_invalid"
    if spec["blank"] and code in "BIJK":
        null = null_of(rng, raw)
        cards.append(("BLANK", null))
        truth.nulls = raw == null
    if not cards:
        hdu = fits.ImageHDU(raw.astype(raw.dtype.newbyteorder("=")), name="IMAGE")
        hdu.header["LONGTEXT"] = "x'y " * int(rng.integers(1, 60)) + "end"
        hdu.header["HIERARCH ESO DET READ"] = float(rng.normal())
        return Part(written(hdu, spec["checksum"]), image=truth)
    start = [("XTENSION", "IMAGE"), ("BITPIX", {"E": -32, "D": -64}.get(code, 8 * raw.itemsize)),
             ("NAXIS", raw.ndim)]  # fmt: skip
    start += [(f"NAXIS{n}", size) for n, size in enumerate(reversed(raw.shape), start=1)]
    end = [("PCOUNT", 0), ("GCOUNT", 1)]
    content = header(start + end + cards) + filled(raw.tobytes())
    return Part(content, image=truth, padding=-raw.nbytes % BLOCK)


def tiles(rng: np.random.Generator, spec: dict) -> Part:
    kind, method = spec["kind"], spec["compression"]
    size = (16, 16) if method == "HCOMPRESS_1" else tuple(rng.integers(1, 14, 2).tolist())
    truth, cards, options = Truth(), [], {}
    if kind in ("f4", "f8"):
        data = rng.normal(100, 10, size).astype(kind)
        lossless = method in ("GZIP_1", "GZIP_2") and spec["lossless"]
        level = 0.0 if lossless else 16.0
        options = {"quantize_level": level, "quantize_method": int(rng.choice([-1, 1, 2])),
                   "dither_seed": int(rng.integers(1, 9999))}  # fmt: skip
        if spec["blank"]:
            data[rng.random(size) < 0.1] = np.nan
        truth = Truth(data, tolerance=0 if lossless else 4.0)
        if method in ("PLIO_1", "NOCOMPRESS", "HCOMPRESS_1"):
            method = "RICE_1"
    else:
        top = {"u1": 255, "i2": 30000, "i4": 2**23, "u2": 60000, "u4": 2**31 + 2**20}[kind]
        if method == "PLIO_1":
            kind, top = "i2", 4000
        data = rng.integers(0, min(top, 300) if rng.random() < 0.5 else top, size).astype(kind)
        raw = data.astype(object)
        truth = Truth(raw)
        if spec["blank"] and kind in ("i2", "i4", "u1"):
            blank = int(data.flat[0])
            cards, truth.nulls = [("BLANK", blank)], data == blank
    hdu = fits.CompImageHDU(data, compression_type=method, name="TILES", **options)
    checksum = spec["checksum"] and not cards
    return Part(with_cards(written(hdu, checksum), cards) if cards else written(hdu, checksum),
                image=truth)  # fmt: skip


def strange(which: str) -> Part:
    """HDUs that are refused by name: an unknown extension, a compressed table."""
    start = [("BITPIX", 8), ("NAXIS", 2), ("NAXIS1", 4), ("NAXIS2", 2), ("PCOUNT", 0),
             ("GCOUNT", 1)]  # fmt: skip
    if which == "foreign":
        content = header([("XTENSION", "FOREIGN"), *start]) + filled(b"12345678")
    else:
        more = [("TFIELDS", 1), ("TFORM1", "1J"), ("TTYPE1", "a"), ("ZTABLE", True)]
        content = header([("XTENSION", "BINTABLE"), *start, *more]) + filled(b"12345678")
    refused = {"ztable": "table_compressed"}.get(which, "hdu_wrong_type")
    return Part(content, refused=refused)


# files -----------------------------------------------------------------------------------------
def build(seed: int, hdus: list[tuple[str, Any]], tail: str) -> tuple[bytes, list[Part]]:
    """Return a file's bytes, and its HDUs behind an empty primary one."""
    rng = np.random.default_rng(seed)
    make = {"table": table, "ascii": ascii_table, "image": image, "tiles": tiles}
    parts = [strange(args) if kind == "strange" else make[kind](rng, *args) for kind, args in hdus]
    content = header([("SIMPLE", True), ("BITPIX", 8), ("NAXIS", 0), ("EXTEND", True)])
    content += b"".join(part.content for part in parts)
    content += {"zeros": b"\0" * 700, "block": b"\0" * 2 * BLOCK, "blanks": b" " * 90,
                "junk": rng.bytes(3000).replace(b"X", b"x")}.get(tail, b"")  # fmt: skip
    if tail == "cut padding":
        content = content[: len(content) - (parts[-1].padding if parts else 0)]
    return content, parts


def wrapped(content: bytes, how: str) -> bytes:
    """Return a file compressed as a whole."""
    if how == "members":
        return gzip.compress(content[:5000], 1) + gzip.compress(content[5000:], 1) + b"\0" * 7
    packers = {"gzip": lambda c: gzip.compress(c, 1), "bzip2": lambda c: bz2.compress(c, 1),
               "xz": lambda c: lzma.compress(c, preset=0),
               "zstandard": lambda c: pa.compress(c, "zstd", asbytes=True)}  # fmt: skip
    return packers.get(how, bytes)(content)
