"""How large an Arrow IPC stream becomes in memory, found without inflating it.

Arrow may compress its buffers, and pyarrow has no limit on what it inflates, so a small body could
fill the memory. Every compressed buffer begins with its true length; where the buffers lie is
said by the message's flatbuffer (``Message.fbs`` of the Arrow format), of which only the few fields
needed are read here.
"""

from __future__ import annotations

import struct

import pyarrow as pa

_RECORD_BATCH, _DICTIONARY_BATCH = 3, 2


def inflated_bytes(stream: pa.Buffer | bytes) -> int:
    """Return the bytes of all buffers of an IPC stream once they are inflated.

    Raises
    ------
    ValueError
        If a message is damaged (pyarrow's own errors derive from it too).
    """
    total = 0
    reader = pa.ipc.MessageReader.open_stream(stream)
    while True:
        try:
            message = reader.read_next_message()
        except StopIteration:
            return total
        try:
            total += _message_bytes(bytes(message.metadata), message.body)
        except (struct.error, IndexError) as error:
            raise ValueError(f"damaged Arrow message: {error}") from None


def _message_bytes(metadata: bytes, body: pa.Buffer | None) -> int:
    message = _u32(metadata, 0)
    kind_at, header_at = _field(metadata, message, 1), _field(metadata, message, 2)
    kind = metadata[kind_at] if kind_at else 0
    if kind not in (_RECORD_BATCH, _DICTIONARY_BATCH) or not header_at or body is None:
        return 0
    batch = header_at + _u32(metadata, header_at)
    if kind == _DICTIONARY_BATCH:
        data_at = _field(metadata, batch, 1)
        batch = data_at + _u32(metadata, data_at)
    if not _field(metadata, batch, 3):  # no compression
        return body.size
    return _compressed_bytes(metadata, batch, memoryview(body))


def _compressed_bytes(metadata: bytes, batch: int, body: memoryview) -> int:
    at = _field(metadata, batch, 2)
    if not at:
        return 0
    vector = at + _u32(metadata, at)
    total = 0
    for number in range(_u32(metadata, vector)):
        offset, length = struct.unpack_from("<qq", metadata, vector + 4 + 16 * number)
        if length >= 8:
            (inflated,) = struct.unpack_from("<q", body, offset)
            total += length if inflated < 0 else inflated  # -1: this buffer is stored as it is
    return total


def _u32(data: bytes, at: int) -> int:
    return struct.unpack_from("<I", data, at)[0]


def _field(data: bytes, table: int, number: int) -> int:
    """Return where a field of a flatbuffer table lies; 0 where the table does not have it."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    if 4 + 2 * number >= struct.unpack_from("<H", data, vtable)[0]:
        return 0
    offset = struct.unpack_from("<H", data, vtable + 4 + 2 * number)[0]
    return table + offset if offset else 0
