"""Schemas of messages that carry only a number: from a registry, or from a folder.

A folder may hold

- ``NUMBER.avsc`` (or ``.json``): the schema of that number;
- the files of Rubin's ``lsst.alert.packet`` in any arrangement: there, schema 900 is
  ``lsst.v9_0.alert.avsc``, and types that it names lie beside it.
"""

from __future__ import annotations

import json
import os
import posixpath
from typing import Any

from pyarrow import fs

from skyray.readers.avro_schema import MAX_SCHEMA_BYTES
from skyray.records import InvalidRecord, NotNow

_TIMEOUT_S = 20
_NAMED = ("record", "error", "enum", "fixed")


class RegistryDown(NotNow):
    """The registry does not answer: no fault of the message, which has to be read again."""


def schemas_at(place: str | None) -> FolderSchemas | RegistrySchemas | None:
    """Return the schemas at the URL of a registry (``http…``), or in a folder of any filesystem."""
    if not place:
        return None
    if place.startswith(("http://", "https://")):
        return RegistrySchemas(place)
    return FolderSchemas(place)


class RegistrySchemas:
    """A schema registry that speaks Confluent's protocol; asked once for each number."""

    def __init__(self, url: str):
        self.url = url
        self._client: Any = None
        self._known: dict[int, bytes] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None}

    def text(self, number: int) -> bytes:
        """Return a schema's JSON.

        Raises
        ------
        InvalidRecord
            ``schema_unknown``: the registry has no such number.
        RegistryDown
            It does not answer.
        """
        if number not in self._known:
            self._known[number] = self._asked(number)
        return self._known[number]

    def _asked(self, number: int) -> bytes:
        from confluent_kafka.schema_registry import SchemaRegistryClient
        from confluent_kafka.schema_registry.error import SchemaRegistryError

        if self._client is None:
            self._client = SchemaRegistryClient({"url": self.url, "timeout": _TIMEOUT_S})
        try:
            schema = self._client.get_schema(number)
            known: dict[str, Any] = {}
            self._referenced(schema, known)
        except SchemaRegistryError as error:
            if error.http_status_code != 404:
                raise RegistryDown(f"{self.url}: schema {number}: {error}") from None
            raise InvalidRecord("schema_unknown", f"{self.url}: schema {number}: {error}") from None
        except Exception as error:  # of the HTTP client underneath, whichever it is
            raise RegistryDown(f"{self.url}: {type(error).__name__}: {error}") from None
        return _text(_loaded(schema.schema_str), known)

    def _referenced(self, schema: Any, known: dict[str, Any]) -> None:
        for reference in schema.references or ():
            found = self._client.get_version(reference.subject, reference.version).schema
            if reference.name not in known:
                known[reference.name] = _loaded(found.schema_str)
                self._referenced(found, known)


class FolderSchemas:
    """A folder of ``.avsc`` files, looked through when the first number is asked for."""

    def __init__(self, folder: str):
        self.folder = folder
        self._known: dict[int, bytes] = {}

    def text(self, number: int) -> bytes:
        """Return a schema's JSON; raises `InvalidRecord` (``schema_unknown``)."""
        if number not in self._known:
            self._known[number] = self._found(number)
        return self._known[number]

    def _found(self, number: int) -> bytes:
        if "://" in self.folder:
            filesystem, root = fs.FileSystem.from_uri(self.folder)
        else:
            filesystem, root = fs.LocalFileSystem(), os.path.abspath(self.folder)
        wanted = (f"{number}.avsc", f"{number}.json",
                  f"lsst.v{number // 100}_{number % 100}.alert.avsc")  # fmt: skip
        listed = filesystem.get_file_info(
            fs.FileSelector(root, recursive=True, allow_not_found=True)
        )
        paths = {
            posixpath.basename(info.path): info.path
            for info in sorted(listed, key=lambda info: info.path)
            if info.is_file and info.size <= MAX_SCHEMA_BYTES
        }
        name = next((name for name in wanted if name in paths), None)
        if name is None:
            detail = f"{self.folder}: schema {number}: expected {' or '.join(wanted)}, found none"
            raise InvalidRecord("schema_unknown", detail)
        beside = posixpath.dirname(paths[name])
        known = {}
        for path in paths.values():
            if path.endswith(".avsc") and posixpath.dirname(path) == beside and path != paths[name]:
                schema = _loaded(_read(filesystem, path))
                if isinstance(schema, dict) and isinstance(schema.get("name"), str):
                    known[_full(schema["name"], schema.get("namespace", ""))] = schema
        return _text(_loaded(_read(filesystem, paths[name])), known)


def _read(filesystem: fs.FileSystem, path: str) -> bytes:
    with filesystem.open_input_file(path) as stream:
        return stream.read()


def _loaded(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRecord("avro_schema", f"expected JSON, found: {error}"[:200]) from None


def _text(schema: Any, known: dict[str, Any]) -> bytes:
    return json.dumps(_inlined(schema, known, "", set())).encode()


def _inlined(schema: Any, known: dict[str, Any], space: str, seen: set[str]) -> Any:
    """Return a schema with every type that `known` defines written out where it is first named."""
    if isinstance(schema, str):
        full = next((n for n in (_full(schema, space), schema) if n in known and n not in seen), "")
        return _inlined(known[full], known, "", seen) if full else schema
    if isinstance(schema, list):
        return [_inlined(part, known, space, seen) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = dict(schema)
    if schema.get("type") in _NAMED and isinstance(schema.get("name"), str):
        full = _full(schema["name"], str(schema.get("namespace", space)))
        seen.add(full)
        space = full.rpartition(".")[0]
    for key in ("items", "values"):
        if key in found:
            found[key] = _inlined(found[key], known, space, seen)
    if isinstance(schema.get("type"), dict | list):
        found["type"] = _inlined(schema["type"], known, space, seen)
    if isinstance(schema.get("fields"), list):
        found["fields"] = [
            {**field, "type": _inlined(field.get("type"), known, space, seen)}
            if isinstance(field, dict)
            else field
            for field in schema["fields"]
        ]
    return found


def _full(name: str, space: str) -> str:
    return f"{space}.{name}" if space and "." not in name else name
