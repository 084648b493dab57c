"""Mutations of pictures (PNG, JPEG, TIFF) and of Arrow streams: see `tests.fuzz_mutators`."""

from __future__ import annotations

import random
import struct
import zlib

from tests.fuzz_mutators import INTEGERS, _clipped, scratch, several

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


# PNG -------------------------------------------------------------------------------------------
def _chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], len(_SIGNATURE)
    while at + 8 <= len(content):
        size, name = struct.unpack_from(">I4s", content, at)
        found.append((name, content[at + 8 : at + 8 + size]))
        at += 12 + size
    return found


def _png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    return _SIGNATURE + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def png_head(content: bytes, rng: random.Random) -> bytes:
    """Change sides, depth, colour or interlacing; checksums are right."""
    chunks = _chunks(content)
    head = bytearray(chunks[0][1])
    kind = rng.randrange(3)
    if kind == 0:
        side = rng.choice((0, 1, 68, 70, 4096, 65_535, 2**31 - 1, 2**32 - 1))
        struct.pack_into(">I", head, rng.choice((0, 4)), side)
    elif kind == 1:
        head[8], head[9] = rng.choice((0, 1, 2, 4, 8, 16, 255)), rng.choice((0, 2, 3, 4, 6, 7))
    else:
        head[rng.randrange(len(head))] = rng.randrange(256)
    return _png([(b"IHDR", bytes(head)), *chunks[1:]])


def png_chunks(content: bytes, rng: random.Random) -> bytes:
    """Drop, repeat, exchange and add chunks, and change what they hold."""
    chunks = _chunks(content)
    at, other = rng.randrange(len(chunks)), rng.randrange(len(chunks))
    kind = rng.randrange(5)
    if kind == 0:
        del chunks[at]
    elif kind == 1:
        chunks[at:at] = [chunks[at]] * rng.choice((1, 2, 50))
    elif kind == 2:
        chunks[at], chunks[other] = chunks[other], chunks[at]
    elif kind == 3:
        chunks[at] = chunks[at][0], scratch(chunks[at][1], rng)
    else:
        chunks.insert(rng.randint(1, len(chunks)), _new_chunk(rng))
    return _png(chunks)


def _new_chunk(rng: random.Random) -> tuple[bytes, bytes]:
    bomb = zlib.compress(bytes(1 << 22), 9)
    return rng.choice((
        (b"PLTE", rng.randbytes(rng.choice((3, 768, 769)))), (b"tRNS", rng.randbytes(6)),
        (b"iCCP", b"x\0\0" + bomb), (b"zTXt", b"x\0\0" + bomb), (b"gAMA", bytes(4)),
        (b"eXIf", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"),
        (b"acTL", bytes(8)), (b"fcTL", rng.randbytes(26)), (b"sBIT", b"\x01\x01\x01"),
        (b"IDAT", rng.randbytes(20)), (b"\xff\0AB", b""),
    ))  # fmt: skip


def png_pixels(content: bytes, rng: random.Random) -> bytes:
    """Change rows and their filters, and how many there are; compression is right."""
    chunks = _chunks(content)
    packed = b"".join(data for name, data in chunks if name == b"IDAT")
    rows = zlib.decompressobj().decompress(packed, 1 << 20)
    rows = rng.choice((rows, rows * 30, rows[: len(rows) // 2], scratch(rows, rng)))
    others = [chunk for chunk in chunks if chunk[0] != b"IDAT"]
    return _png([*others[:-1], (b"IDAT", zlib.compress(rows, 1)), others[-1]])


png = several(png_head, png_chunks, png_pixels, scratch)


# JPEG ------------------------------------------------------------------------------------------
def jpeg_segments(content: bytes, rng: random.Random) -> bytes:
    """Change one segment before the scan: sides, tables, lengths."""
    segments, at = [], 2
    while at + 4 <= len(content) and content[at] == 0xFF and content[at + 1] != 0xDA:
        size = struct.unpack_from(">H", content, at + 2)[0]
        segments.append((content[at : at + 2], content[at + 4 : at + 2 + size]))
        at += 2 + size
    which = rng.randrange(len(segments))
    marker, data = segments[which]
    kind = rng.randrange(5)
    if kind == 0:
        frames = [n for n, (m, _) in enumerate(segments) if m[1] in (0xC0, 0xC1, 0xC2)]
        which = rng.choice(frames)
        marker, frame = segments[which]
        data = bytearray(frame)
        struct.pack_into(">H", data, rng.choice((1, 3)), rng.choice((0, 1, 70, 4096, 65_535)))
    elif kind == 1:
        data = scratch(data, rng)
    elif kind == 2:
        marker = bytes([0xFF, rng.choice((0xC0, 0xC2, 0xC4, 0xC9, 0xCC, 0xDB, 0xDD, 0xE1, 0xEE))])
    elif kind == 3:
        segments.insert(which, (marker, data))
    segments[which] = marker, bytes(data)
    if kind == 4:
        del segments[which]
    written = [m + struct.pack(">H", min(len(d) + 2, 65_535)) + d[:65_533] for m, d in segments]
    return content[:2] + b"".join(written) + content[at:]


jpeg = several(jpeg_segments, jpeg_segments, scratch)


# TIFF ------------------------------------------------------------------------------------------
def tiff_entries(content: bytes, rng: random.Random) -> bytes:
    """Change an entry of the first directory: tag, type, count, value."""
    order = "<" if content[:2] == b"II" else ">"
    at = struct.unpack_from(f"{order}I", content, 4)[0]
    count = struct.unpack_from(f"{order}H", content, at)[0]
    found = bytearray(content)
    place = at + 2 + 12 * rng.randrange(count)
    kind = rng.randrange(4)
    if kind == 0:
        tag = rng.choice((254, 256, 257, 258, 259, 262, 273, 277, 278, 279, 284, 317, 322, 323,
                          324, 330, 338, 339, 34665, 42113))  # fmt: skip
        struct.pack_into(f"{order}H", found, place, tag)
    elif kind == 1:
        struct.pack_into(f"{order}H", found, place + 2, rng.choice((0, 1, 2, 3, 4, 5, 12, 16)))
    else:
        value = rng.choice((*INTEGERS, 5, 6, 7, 8, 32773, 50000)) % (1 << 32)
        struct.pack_into(f"{order}I", found, place + rng.choice((4, 8, 8)), value)
    if rng.random() < 0.1:
        struct.pack_into(f"{order}I", found, at + 2 + 12 * count, at)  # a page that is the next one
    return bytes(found)


tiff = several(tiff_entries, tiff_entries, tiff_entries, scratch)


# Arrow -----------------------------------------------------------------------------------------
def _messages(content: bytes) -> list[tuple[bytes, bytes]]:
    """Return the messages of an IPC stream: metadata and body."""
    found, at = [], 0
    while at + 8 <= len(content):
        size = struct.unpack_from("<i", content, at + 4)[0]
        if size <= 0:
            break
        metadata = content[at + 8 : at + 8 + size]
        body = _body_bytes(metadata)
        at += 8 + size
        found.append((metadata, content[at : at + body]))
        at += body
    return found


def _body_bytes(metadata: bytes) -> int:
    table = struct.unpack_from("<I", metadata, 0)[0]
    vtable = table - struct.unpack_from("<i", metadata, table)[0]
    if struct.unpack_from("<H", metadata, vtable)[0] <= 10:
        return 0
    offset = struct.unpack_from("<H", metadata, vtable + 10)[0]
    return struct.unpack_from("<q", metadata, table + offset)[0] if offset else 0


def _stream(messages: list[tuple[bytes, bytes]]) -> bytes:
    written = (b"\xff\xff\xff\xff" + struct.pack("<i", len(m)) + m + body for m, body in messages)
    return b"".join(written) + b"\xff\xff\xff\xff\0\0\0\0"


def arrow_metadata(content: bytes, rng: random.Random) -> bytes:
    """Change words of the flatbuffers: lengths, offsets, types, counts of rows."""
    messages = _messages(content)
    which = rng.randrange(len(messages))
    metadata = bytearray(messages[which][0])
    for _ in range(rng.randint(1, 3)):
        form = rng.choice(("<b", "<h", "<i", "<q"))
        size = struct.calcsize(form)
        value = _clipped(rng.choice((*INTEGERS, *range(24))), size)
        struct.pack_into(form, metadata, rng.randrange(0, len(metadata) - 8, size), value)
    messages[which] = bytes(metadata), messages[which][1]
    return _stream(messages)


def arrow_body(content: bytes, rng: random.Random) -> bytes:
    """Change buffers: numbers, offsets of lists, and the lengths before compressed ones."""
    messages = _messages(content)
    which = rng.choice([n for n, (_, body) in enumerate(messages) if body])
    body = bytearray(messages[which][1])
    for _ in range(rng.randint(1, 6)):
        form = rng.choice(("<i", "<q", "<f", "<d"))
        values = INTEGERS if form[1] in "iq" else (float("nan"), float("inf"), -1.0, 1e38)
        value = rng.choice(values)
        value = _clipped(value, struct.calcsize(form)) if form[1] in "iq" else value
        struct.pack_into(form, body, rng.randrange(0, len(body) - 8, 8), value)
    messages[which] = messages[which][0], bytes(body)
    return _stream(messages)


def arrow_messages(content: bytes, rng: random.Random) -> bytes:
    messages = _messages(content)
    at, other = rng.randrange(len(messages)), rng.randrange(len(messages))
    kind = rng.randrange(4)
    if kind == 0:
        del messages[at]
    elif kind == 1:
        messages[at:at] = [messages[at]] * rng.choice((1, 2, 60))
    elif kind == 2:
        messages[at], messages[other] = messages[other], messages[at]
    else:
        messages[at] = messages[at][0], scratch(messages[at][1], rng)
    return _stream(messages)


arrow = several(arrow_metadata, arrow_metadata, arrow_body, arrow_messages, scratch)
