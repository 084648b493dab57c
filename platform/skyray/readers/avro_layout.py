"""Where an Avro value ends, found before it is decoded: nothing in it may count further than it is.

A decoder that meets a count of 2⁶² begins to count. Here every length, count, block size, branch
and symbol is held against the bytes that are there, and the number of values against a limit, at a
fraction of the cost of decoding, since nothing is made of what is read.

Source: Apache Avro 1.11 specification, "Binary Encoding".
"""

from __future__ import annotations

from collections.abc import Callable

from skyray.readers.avro_schema import Node

MAX_VALUES = 1_000_000  # of one record; an alert with 2,000 earlier detections has 250,000

# (bytes, where the value starts, [values that may still come]) → where it ends
Measure = Callable[[bytes, int, list[int]], int]

_FIXED = {"null": 0, "boolean": 1, "float": 4, "double": 8}


class Damaged(ValueError):
    """Bytes that are no value of their type."""


def value_end(measure: Measure, content: bytes, start: int, values: int = MAX_VALUES) -> int:
    """Return where the value that begins at `start` ends, at most the end of `content`.

    Raises
    ------
    Damaged
        For a value that reaches further, counts that cannot be, or more than `values` values in
        its arrays and maps.
    """
    try:
        end = measure(content, start, [values])
    except IndexError:
        end = len(content) + 1
    if end > len(content):
        raise Damaged(f"expected a value within {len(content) - start} bytes, found a longer one")
    return end


def measure_of(node: Node) -> Measure:
    """Return the function that finds the end of a type's values."""
    if node.kind in _FIXED:
        return _skip(_FIXED[node.kind])
    if node.kind == "fixed":
        return _skip(node.size)
    if node.kind in ("int", "long"):
        return _integer
    if node.kind == "bytes" and node.size:
        return _decimal(node.size)
    if node.kind in ("bytes", "string"):
        return _text
    if node.kind == "enum":
        return _symbol(node.size)
    parts = [measure_of(part) for part in node.parts]
    if node.kind == "union":
        return _branch(node, parts)
    if node.kind == "record":
        return _fields(parts)
    return _items(node.kind == "map", node.parts[0], parts[0])


def _skip(size: int) -> Measure:
    return lambda content, at, left: at + size


def _integer(content: bytes, at: int, left: list[int]) -> int:
    for end in range(at, at + 10):
        if content[end] < 128:
            return end + 1
    raise Damaged("expected an integer of at most 10 bytes, found a longer one")


def _text(content: bytes, at: int, left: list[int]) -> int:
    size, at = _long(content, at)
    if size < 0:
        raise Damaged(f"expected a length of at least 0, found {size}")
    return at + size


def _decimal(most: int) -> Measure:
    def measure(content: bytes, at: int, left: list[int]) -> int:
        size, at = _long(content, at)
        if not 0 <= size <= most:
            raise Damaged(f"expected a decimal of at most {most} bytes, found {size}")
        return at + size

    return measure


def _symbol(count: int) -> Measure:
    def measure(content: bytes, at: int, left: list[int]) -> int:
        index, at = _long(content, at)
        if not 0 <= index < count:
            raise Damaged(f"expected one of {count} symbols, found number {index}")
        return at

    return measure


def _branch(node: Node, parts: list[Measure]) -> Measure:
    count = len(parts)
    # Most fields of alerts are nullable numbers: the byte that says which, and how far it leads.
    steps = {2 * number: 1 + _FIXED[part.kind] for number, part in enumerate(node.parts[:64])
             if part.kind in _FIXED}  # fmt: skip

    def measure(content: bytes, at: int, left: list[int]) -> int:
        step = steps.get(content[at])
        if step is not None:
            return at + step
        index, at = _long(content, at)
        if not 0 <= index < count:
            raise Damaged(f"expected one of {count} types, found number {index}")
        return parts[index](content, at, left)

    return measure


def _fields(parts: list[Measure]) -> Measure:
    def measure(content: bytes, at: int, left: list[int]) -> int:
        for part in parts:
            at = part(content, at, left)
        return at

    return measure


def _items(keyed: bool, item: Node, part: Measure) -> Measure:
    least, values = item.least + keyed, item.values + keyed

    def measure(content: bytes, at: int, left: list[int]) -> int:
        while True:
            count, at = _long(content, at)
            if count == 0:
                return at
            size = None
            if count < 0:  # a block that also says how long it is
                size, at = _long(content, at)
            start, count = at, abs(count)
            if count * least > len(content) - at:
                detail = f"expected items within {max(len(content) - at, 0)} bytes, found {count}"
                raise Damaged(detail)
            left[0] -= count * values
            if left[0] < 0:
                raise Damaged("expected fewer values in a record, found more than the limit")
            for _ in range(count):
                if keyed:
                    at = _text(content, at, left)
                at = part(content, at, left)
            if size is not None and at - start != size:
                raise Damaged(f"expected items of {size} bytes, found {at - start}")

    return measure


def _long(content: bytes, at: int) -> tuple[int, int]:
    """Return a number of at most 64 bits, zig-zag and variable in length, and where it ends."""
    byte = content[at]
    if byte < 128:
        return (byte >> 1) ^ -(byte & 1), at + 1
    end = _integer(content, at, [])
    value = 0
    for byte in reversed(content[at:end]):
        value = value << 7 | byte & 127
    if value >> 64:
        raise Damaged("expected a number of 64 bits, found a larger one")
    return (value >> 1) ^ -(value & 1), end
