"""Mutations that know a format's structure, so that they get past its first checks.

Each mutator takes bytes of a good file and a `random.Random`, and returns bytes: lengths, checksums
and compression are made right again around what was changed, in most cases.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import fastavro
from tests.hostile_avro import SYNC, number, text

Mutator = Callable[[bytes, random.Random], bytes]

INTEGERS = (0, 1, -1, 2, 7, 127, 255, 256, 2880, 65_535, 65_536, 10**6, 2**31 - 1, -(2**31), 2**31,
            2**32, 2**40, 2**53 + 1, 2**62, 2**63 - 1, -(2**63), 2**63, 10**30)  # fmt: skip
WORDS = ("", " ", "x", "nan", "-inf", "1e400", "-1e-400", "None", "é", "\0", "../../x", "'", '"',
         "T" * 300, "1/0", "0x10", "1_000", "٣", "\ud7ff", "2458000.5")  # fmt: skip


def several(*kinds: Mutator) -> Mutator:
    """One to four of these, one after the other."""

    def mutate(content: bytes, rng: random.Random) -> bytes:
        for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
            try:
                content = rng.choice(kinds)(content, rng)
            except (ValueError, IndexError, KeyError, struct.error, OSError, zlib.error,
                    EOFError, TypeError, AttributeError, zipfile.BadZipFile,
                    NotImplementedError, OverflowError, RuntimeError, csv.Error):  # fmt: skip
                content = scratch(content, rng)  # what an earlier mutation broke
        return content

    return mutate


# any bytes -------------------------------------------------------------------------------------
def scratch(content: bytes, rng: random.Random) -> bytes:
    """Change, cut, repeat or insert some bytes."""
    found = bytearray(content or b"\0")
    at = rng.randrange(len(found))
    kind = rng.randrange(6)
    if kind == 0:
        for _ in range(rng.randint(1, 16)):
            found[rng.randrange(len(found))] = rng.randrange(256)
    elif kind == 1:
        del found[at:]
    elif kind == 2:
        del found[at : at + rng.randint(1, 64)]
    elif kind == 3:
        found[at:at] = found[at : at + rng.randint(1, 4096)]
    elif kind == 4:
        found[at:at] = rng.randbytes(rng.randint(1, 64))
    else:
        form = rng.choice(("<i", ">i", "<q", ">q", "<h", ">h"))
        word = struct.pack(form, _clipped(rng.choice(INTEGERS), struct.calcsize(form)))
        found[at : at + len(word)] = word
    return bytes(found)


def _clipped(value: int, size: int) -> int:
    most = 1 << (8 * size - 1)
    return (value + most) % (2 * most) - most


# FITS ------------------------------------------------------------------------------------------
_KEYS = ("NAXIS", "NAXIS1", "NAXIS2", "NAXIS3", "BITPIX", "PCOUNT", "GCOUNT", "TFIELDS", "THEAP",
         "BSCALE", "BZERO", "BLANK", "BUNIT", "EXTNAME", "GROUPS", "CHECKSUM", "DATASUM", "CTYPE1",
         "CRVAL1", "CDELT1", "CRPIX1", "CD1_1", "SPECSYS", "ZIMAGE", "ZCMPTYPE", "ZBITPIX",
         "ZNAXIS", "ZNAXIS1", "ZTILE1", "RADESYS", "PLUG_RA", "OBJECT", "SIMPLE",
         "XTENSION", "EXTEND", "LONGSTRN", "CONTINUE", "COMMENT", "END", "INHERIT")  # fmt: skip
_FIELD_KEYS = ("TFORM", "TTYPE", "TUNIT", "TSCAL", "TZERO", "TNULL", "TDIM", "TDISP", "TBCOL")
_FORMS = ("E", "D", "J", "K", "I", "B", "L", "X", "A", "C", "M", "PE(9)", "QJ(9)", "PB", "0E",
          "9999999999E", "-1J", "2147483647D", "3A", "1PA", "999999999X", "Z", "1E1E")  # fmt: skip


def fits_cards(content: bytes, rng: random.Random) -> bytes:
    """Change the cards of one header; the blocks stay blocks."""
    start, end = rng.choice(_headers(content))
    cards = [content[at : at + 80] for at in range(start, end, 80)]
    cards = [card for card in cards if card.strip() and not card.startswith(b"END ")]
    for _ in range(rng.randint(1, 3)):
        _change_cards(cards, rng)
    blocks = b"".join(card[:80].ljust(80) for card in [*cards, b"END"])
    return content[:start] + blocks.ljust(-(-len(blocks) // 2880) * 2880) + content[end:]


def _headers(content: bytes) -> list[tuple[int, int]]:
    found = []
    for start in range(0, len(content), 2880):
        if content[start : start + 8] in (b"SIMPLE  ", b"XTENSION"):
            last = next((at for at in range(start, len(content), 80)
                         if content[at : at + 8] == b"END     "), start)  # fmt: skip
            found.append((start, (last // 2880 + 1) * 2880))
    return found or [(0, 2880)]


def _change_cards(cards: list[bytes], rng: random.Random) -> None:
    at = rng.randrange(len(cards))
    kind = rng.randrange(8)
    if kind <= 2:
        key = cards[at][:8]
        cards[at] = key + b"= " + _fits_value(rng)
    elif kind == 3:
        cards.insert(at, _fits_key(rng) + b"= " + _fits_value(rng))
    elif kind == 4:
        cards[at] = _fits_key(rng) + cards[at][8:]
    elif kind == 5:
        del cards[at]
    elif kind == 6:
        other = rng.randrange(len(cards))
        cards[at], cards[other] = cards[other], cards[at]
    else:
        cards[at:at] = [cards[at]] * rng.choice((1, 2, 400))


def _fits_key(rng: random.Random) -> bytes:
    key = rng.choice(_KEYS)
    if rng.random() < 0.5:
        key = f"{rng.choice(_FIELD_KEYS)}{rng.randint(1, 8)}"
    return key.encode().ljust(8)


def _fits_value(rng: random.Random) -> bytes:
    kind = rng.randrange(4)
    if kind == 0:
        return str(rng.choice(INTEGERS)).rjust(20).encode()
    if kind == 1:
        return f"'{rng.choice(_FORMS):<8}'".encode()
    if kind == 2:
        word = rng.choice((*WORDS, "Jy", "nm", "10**(-17)erg", "AWAV", "TOPOCENT", "COADD"))
        return f"'{word}'".encode("utf-8", "replace")[:70]
    return rng.choice((b"T", b"F", b"1.5E300", b"-1.0D-9", b"1E", b"NaN", b"(1,2)", b"/", b"1 / x"))


def fits_data(content: bytes, rng: random.Random) -> bytes:
    """Change numbers behind a header: special floats, and pointers of heaps."""
    found = bytearray(content)
    _, end = rng.choice(_headers(content))
    for _ in range(rng.randint(1, 32)):
        at = rng.randrange(end, max(end + 1, len(found) - 8))
        form = rng.choice((">f", ">d", ">i", ">q"))
        values = INTEGERS if form[1] in "iq" else (0.0, -1.0, float("nan"), float("inf"), 1e38)
        value = rng.choice(values)
        value = _clipped(value, struct.calcsize(form)) if form[1] in "iq" else value
        found[at : at + struct.calcsize(form)] = struct.pack(form, value)
    return bytes(found)


def fits_hdus(content: bytes, rng: random.Random) -> bytes:
    """Drop, repeat, exchange or cut HDUs."""
    starts = [start for start, _ in _headers(content)] + [len(content)]
    hdus = [content[a:b] for a, b in itertools.pairwise(starts)]
    at, other = (rng.randrange(len(hdus)) for _ in range(2))
    kind = rng.randrange(5)
    if kind == 0:
        del hdus[at]
    elif kind == 1:
        hdus[at:at] = [hdus[at]] * rng.choice((1, 3, 200))
    elif kind == 2:
        hdus[at], hdus[other] = hdus[other], hdus[at]
    elif kind == 3:
        hdus[at] = hdus[at][: rng.randrange(len(hdus[at])) // 2880 * 2880]
    else:
        hdus.append(rng.choice((bytes(2880), b" " * 2880, rng.randbytes(999))))
    return b"".join(hdus)[: 1 << 23]


def packed(content: bytes, rng: random.Random) -> bytes:
    """Gzip it, and damage that or not."""
    found = gzip.compress(content, 1)
    return scratch(found, rng) if rng.random() < 0.5 else found


fits = several(fits_cards, fits_cards, fits_cards, fits_data, fits_hdus, scratch)
fits_packed = several(fits_cards, fits_data, fits_hdus, packed)


# trees: JSON, Avro schemas -----------------------------------------------------------------------
def leaf(rng: random.Random) -> Any:
    kind = rng.randrange(8)
    if kind == 0:
        return rng.choice(INTEGERS)
    if kind == 1:
        return rng.choice((0.0, -1.5, 1e308, 5e-324, 1e-17))
    if kind == 2:
        return rng.choice(WORDS)
    if kind == 3:
        return rng.choice((None, True, False))
    if kind == 4:
        return rng.choice(([], {}, [[]], [None], {"": {}}, [[1, 2], [3]], {"jd": []}))
    if kind == 5:
        return [rng.choice((0, "", None, [], {}))] * rng.choice((1, 2, 300))
    if kind == 6:
        deep: Any = 1
        for _ in range(rng.choice((3, 50, 900))):
            deep = [deep] if rng.random() < 0.5 else {"type": deep}
        return deep
    return {rng.choice(WORDS): leaf(rng) for _ in range(3)}


def change_tree(tree: Any, rng: random.Random) -> Any:
    """Replace, drop, repeat or rename something somewhere in a tree."""
    node, places = tree, []
    while isinstance(node, dict | list) and node:
        keys = list(node) if isinstance(node, dict) else range(len(node))
        key = rng.choice(keys)
        places.append((node, key))
        node = node[key]
    if not places:
        return leaf(rng)
    node, key = rng.choice(places)
    kind = rng.randrange(5)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, list):
        node[key:key] = [node[key]] * rng.choice((1, 2, 100))
    elif kind == 2 and isinstance(node, dict):
        node[rng.choice((*WORDS, *list(node)))] = node.pop(key)
    else:
        node[key] = leaf(rng)
    return tree


def json_tree(content: bytes, rng: random.Random) -> bytes:
    tree = change_tree(json.loads(content), rng)
    return json.dumps(tree, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


json_text = several(json_tree, json_tree, json_tree, scratch)


# Avro ------------------------------------------------------------------------------------------
def _avro_parts(content: bytes) -> tuple[dict[str, bytes], int, bytes]:
    """Return metadata, number of records and inflated block of a container of one block."""
    stream = io.BytesIO(content)
    stream.seek(4)
    meta = fastavro.schemaless_reader(stream, {"type": "map", "values": "bytes"})
    stream.seek(16, io.SEEK_CUR)
    count, size = (fastavro.schemaless_reader(stream, "long") for _ in range(2))
    block = stream.read(size)
    if meta.get("avro.codec") == b"deflate":
        block = zlib.decompress(block, -15)
    return meta, count, block


def _avro_container(meta: dict[str, bytes], count: int, block: bytes) -> bytes:
    if meta.get("avro.codec") == b"deflate":
        deflate = zlib.compressobj(1, zlib.DEFLATED, -15)
        block = deflate.compress(block) + deflate.flush()
    entries = b"".join(text(name.encode()) + text(value) for name, value in meta.items())
    header = b"Obj\x01" + number(len(meta)) + entries + b"\0" + SYNC
    return header + number(count) + number(len(block)) + block + SYNC


def avro_schema(content: bytes, rng: random.Random) -> bytes:
    meta, count, block = _avro_parts(content)
    schema = json.loads(meta["avro.schema"])
    for _ in range(rng.randint(1, 3)):
        schema = change_tree(schema, rng)
    if rng.random() < 0.3:
        schema = _retyped(schema, rng)
    meta["avro.schema"] = json.dumps(schema).encode("utf-8", "replace")
    return _avro_container(meta, count, block)


def _retyped(schema: Any, rng: random.Random) -> Any:
    kinds = ("null", "long", "double", "float", "string", "bytes", "boolean", "int", "alert",
             {"type": "array", "items": "null"}, {"type": "map", "values": "long"},
             {"type": "fixed", "name": "f", "size": 2**30}, ["null", "long"])  # fmt: skip
    written = json.dumps(schema)
    old = rng.choice(('"double"', '"long"', '"string"', '"bytes"', '"null"'))
    return json.loads(written.replace(old, json.dumps(rng.choice(kinds)), rng.randint(1, 5)))


def avro_block(content: bytes, rng: random.Random) -> bytes:
    """Change the records: bytes, and numbers of any length."""
    meta, count, block = _avro_parts(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(block))
        word = number(_clipped(rng.choice(INTEGERS), 8))
        block = rng.choice((block[:at] + word + block[at + 1 :], scratch(block, rng)))
    return _avro_container(meta, count, block)


def avro_counts(content: bytes, rng: random.Random) -> bytes:
    meta, count, block = _avro_parts(content)
    if rng.random() < 0.5:
        meta["avro.codec"] = rng.choice((b"null", b"deflate", b"snappy", b"zstandard", b"\xff"))
    else:
        count = _clipped(rng.choice(INTEGERS), 8)
    return _avro_container(meta, count, block)


avro = several(avro_schema, avro_schema, avro_block, avro_block, avro_counts, scratch)
