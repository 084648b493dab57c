"""Schemas of Avro containers, checked before anything is decoded by them.

A schema is a grammar that its author chose, and a decoder follows it wherever it leads: types that
hold themselves, without end or to the end of the stack; types of types, a few bytes that stand for
a billion values; arrays of items that take no bytes, of any count. All these are refused here. What
is accepted is written anew, with nothing in it but what decoding needs: notes to the library, such
as "already parsed", do not reach it.

Source: Apache Avro 1.11 specification, "Schema Declaration" and "Names".
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

MAX_SCHEMA_BYTES = 1 << 20  # Rubin's have 26,000
MAX_DEPTH = 32  # Rubin's have 7
MAX_NODES = 20_000  # after names are replaced by what they stand for; Rubin's have 2,500
MAX_FIXED_BYTES = 64 << 20

_LEAST = {"null": 0, "boolean": 1, "int": 1, "long": 1, "float": 4, "double": 8, "bytes": 1,
          "string": 1}  # fmt: skip
MAX_DIGITS = 1_000  # of a decimal: to turn a long one into digits takes for ever
_LOGICAL = {
    "int": ("date", "time-millis"),
    "long": ("time-micros", "timestamp-millis", "timestamp-micros", "local-timestamp-millis",
             "local-timestamp-micros"),
    "string": ("uuid",),
}  # fmt: skip


class BadSchema(ValueError):
    """A schema that is not followed; says where, what was expected and what was found."""


@dataclass(frozen=True)
class Node:
    """A type of an accepted schema.

    Attributes
    ----------
    kind : str
        A primitive's name, or record, enum, fixed, union, array, map.
    schema : Any
        The type as it is handed to the decoder.
    least : int
        Bytes that a value takes at least.
    values : int
        Objects that a value becomes at most, arrays and maps counted without their items.
    nodes, depth : int
        Types within this one and levels of them, itself included.
    parts : tuple of Node
        Fields, branches or items.
    size : int
        Bytes of a fixed, symbols of an enum; of bytes that are a decimal: how many there may be.
    name : str
        Of the record at the top: its full name as it was written.
    """

    kind: str
    schema: Any
    least: int
    values: int = 1
    nodes: int = 1
    depth: int = 1
    parts: tuple[Node, ...] = ()
    size: int = 0
    name: str = ""


def check_schema(text: bytes) -> Node:
    """Return the record type that a container's ``avro.schema`` describes.

    Raises
    ------
    BadSchema
        For what is no schema of a record; for types that hold themselves, unions in unions, array
        items or map values that may take no bytes; beyond `MAX_SCHEMA_BYTES`, `MAX_DEPTH` and
        `MAX_NODES`.
    """
    if len(text) > MAX_SCHEMA_BYTES:
        raise BadSchema(f"expected at most {MAX_SCHEMA_BYTES:,} bytes, found {len(text):,}")
    try:
        schema = json.loads(text)
        found = _Checker().node(schema, "", "schema", 1)
    except BadSchema:
        raise
    except (ValueError, RecursionError) as error:  # RecursionError: JSON within JSON within JSON …
        raise BadSchema(f"expected JSON, found {type(error).__name__}: {error}"[:200]) from None
    if found.kind != "record":
        raise BadSchema(f"expected a record, found {found.kind}")
    space = schema.get("namespace")
    return replace(found, name=_full_name(schema["name"], space if isinstance(space, str) else ""))


class _Checker:
    """Walks a schema; knows the types that were given names so far."""

    def __init__(self):
        self._named: dict[str, Node | None] = {}  # None: in the midst of its own definition

    def node(self, schema: Any, namespace: str, path: str, depth: int) -> Node:
        if depth > MAX_DEPTH:
            _refuse(path, f"at most {MAX_DEPTH} levels of types", "more")
        if isinstance(schema, str):
            return self._by_name(schema, namespace, path)
        if isinstance(schema, list):
            return self._union(schema, namespace, path, depth)
        kind = schema.get("type") if isinstance(schema, dict) else None
        if isinstance(kind, dict | list):
            return self.node(kind, namespace, path, depth + 1)
        if kind in ("record", "error", "enum", "fixed"):
            return self._definition(schema, namespace, path, depth)
        if kind in ("array", "map"):
            return self._items(kind, schema, namespace, path, depth)
        if not isinstance(kind, str):
            _refuse(path, "a type", schema)
        found = self._by_name(kind, namespace, path)
        logical = schema.get("logicalType")
        if logical == "decimal" and found.kind == "bytes":
            return _decimal(found, schema, path)
        if isinstance(logical, str) and logical in _LOGICAL.get(found.kind, ()):
            return replace(found, schema={"type": found.kind, "logicalType": logical})
        return found

    def _by_name(self, name: str, namespace: str, path: str) -> Node:
        if name in _LEAST:
            return Node(name, name, _LEAST[name])
        for full in (_full_name(name, namespace), name):
            if full in self._named:
                found = self._named[full]
                if found is None:
                    _refuse(path, "no type that holds itself", name)
                return replace(found, schema=found.schema["name"])
        _refuse(path, "a primitive type or one defined before", name)

    def _union(self, branches: list, namespace: str, path: str, depth: int) -> Node:
        if not branches:
            _refuse(path, "a union of at least one type", branches)
        parts = [self.node(branch, namespace, path, depth + 1) for branch in branches]
        if any(part.kind == "union" for part in parts):
            _refuse(path, "no union within a union", branches)
        least = 1 + min(part.least for part in parts)
        schema = [part.schema for part in parts]
        return _joined("union", schema, least, max(p.values for p in parts), parts, path)

    def _items(self, kind: str, schema: dict, namespace: str, path: str, depth: int) -> Node:
        key = "items" if kind == "array" else "values"
        if key not in schema:
            _refuse(path, f"{kind} with {key}", schema)
        part = self.node(schema[key], namespace, f"{path}[]", depth + 1)
        if part.least == 0:
            _refuse(path, f"{key} that take at least one byte", part.kind)
        return _joined(kind, {"type": kind, key: part.schema}, 1, 1, [part], path)

    def _definition(self, schema: dict, namespace: str, path: str, depth: int) -> Node:
        name = schema.get("name")
        if not isinstance(name, str) or not name:
            _refuse(path, f"{schema['type']} with a name", name)
        given = schema.get("namespace", namespace)
        full = _full_name(name, given if isinstance(given, str) else "")
        if full in self._named:
            _refuse(path, "a name that is not taken", full)
        short = f"type{len(self._named)}"  # names of types do not reach the records
        self._named[full] = None
        if schema["type"] in ("record", "error"):
            found = self._record(schema, short, full.rpartition(".")[0], path, depth)
        elif schema["type"] == "enum":
            found = _enum(schema, short, path)
        else:
            found = _fixed(schema, short, path)
            if schema.get("logicalType") == "decimal":
                found = _decimal(found, schema, path)
        self._named[full] = found
        return found

    def _record(self, schema: dict, short: str, namespace: str, path: str, depth: int) -> Node:
        fields, names, parts = schema.get("fields"), [], []
        if not isinstance(fields, list):
            _refuse(path, "record with a list of fields", fields)
        for field in fields:
            name = field.get("name") if isinstance(field, dict) else None
            if not isinstance(name, str) or "type" not in field:
                _refuse(path, "a field with name and type", field)
            names.append(name)
            parts.append(self.node(field["type"], namespace, f"{path}.{name}", depth + 1))
        if len(set(names)) < len(names):
            _refuse(path, "fields of different names", sorted(names))
        listed = [{"name": name, "type": part.schema}
                  for name, part in zip(names, parts, strict=True)]  # fmt: skip
        clean = {"type": "record", "name": short, "fields": listed}
        values = 1 + sum(part.values for part in parts)
        return _joined("record", clean, sum(part.least for part in parts), values, parts, path)


def _enum(schema: dict, short: str, path: str) -> Node:
    symbols = schema.get("symbols")
    if not isinstance(symbols, list) or not all(isinstance(text, str) for text in symbols):
        _refuse(path, "enum with a list of symbols", symbols)
    clean = {"type": "enum", "name": short, "symbols": symbols}
    return Node("enum", clean, 1, size=len(symbols))


def _fixed(schema: dict, short: str, path: str) -> Node:
    size = schema.get("size")
    if type(size) is not int or not 0 <= size <= MAX_FIXED_BYTES:
        _refuse(path, f"fixed with a size of 0–{MAX_FIXED_BYTES:,}", size)
    return Node("fixed", {"type": "fixed", "name": short, "size": size}, size, size=size)


def _decimal(found: Node, schema: dict, path: str) -> Node:
    """Return a type as the decimal it is said to be; what is no valid one stays bytes."""
    precision, scale = schema.get("precision"), schema.get("scale", 0)
    if type(precision) is not int or type(scale) is not int or not 0 <= scale <= precision > 0:
        return found
    if precision > MAX_DIGITS:
        _refuse(path, f"decimal of at most {MAX_DIGITS:,} digits", precision)
    most = math.ceil((precision * math.log2(10) + 1) / 8) + 1
    if found.kind == "fixed" and found.size > MAX_DIGITS:
        _refuse(path, f"decimal of at most {MAX_DIGITS:,} bytes", found.size)
    about = {"logicalType": "decimal", "precision": precision, "scale": scale}
    base = found.schema if isinstance(found.schema, dict) else {"type": "bytes"}
    size = found.size if found.kind == "fixed" else most
    return replace(found, schema={**base, **about}, size=size)


def _joined(
    kind: str, schema: Any, least: int, values: int, parts: Sequence[Node], path: str
) -> Node:
    nodes = 1 + sum(part.nodes for part in parts)
    depth = 1 + max((part.depth for part in parts), default=0)
    if nodes > MAX_NODES:
        _refuse(path, f"at most {MAX_NODES:,} types", f"{nodes:,}")
    if depth > MAX_DEPTH:
        _refuse(path, f"at most {MAX_DEPTH} levels of types", depth)
    return Node(kind, schema, least, values, nodes, depth, tuple(parts))


def _full_name(name: str, namespace: str) -> str:
    return f"{namespace}.{name}" if namespace and "." not in name else name


def _refuse(path: str, expected: str, found: Any):
    raise BadSchema(f"{path[-100:]}: expected {expected}, found {str(found)[:80]}")
