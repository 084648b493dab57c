"""What a table says about its columns beside their values: units, UCDs, comments.

FITS: TUNITn, TUCDn, TUTYPn, TCTYPn, TCOMMn, TDESCn (FITS Standard 4.0; IVOA and ESO conventions).
Parquet: the metadata of its fields (``unit``, ``ucd``, ``utype``, ``description``) and the
description that astropy leaves in the schema (``table_meta_yaml``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import yaml

from skyray.readers.fits_bytes import Hdu
from skyray.readers.fits_keywords import Keywords
from skyray.readers.fits_table import Table

_FITS_KEYS = {"unit": "TUNIT", "ucd": "TUCD", "utype": "TUTYP", "ctype": "TCTYP"}
_FITS_COMMENTS = ("TCOMM", "TDESC")
_PARQUET_KEYS = {"unit": ("unit", "units"), "ucd": ("ucd",), "utype": ("utype",),
                 "comment": ("description", "comment")}  # fmt: skip
_MAX_YAML_BYTES = 1 << 20


@dataclass(frozen=True)
class ColumnFacts:
    """What is stated about one column; empty where nothing is.

    ``origin`` says where its unit is stated: ``TUNIT2``, ``field metadata``.
    """

    name: str = ""
    unit: str = ""
    ucd: str = ""
    utype: str = ""
    ctype: str = ""
    comment: str = ""
    origin: str = ""

    def told(self) -> dict[str, str]:
        """Return all but the origin by name, as `medium_said` takes it."""
        names = ("name", "unit", "ucd", "utype", "ctype", "comment")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Facts:
    """The facts of a table's columns, looked up by name; in FITS in any case."""

    columns: Mapping[str, ColumnFacts] = field(default_factory=dict)
    any_case: bool = False

    def of(self, name: str | None) -> ColumnFacts:
        """Return what is stated of a column; nothing but its name where nothing is."""
        key = (name or "").lower() if self.any_case else name or ""
        return self.columns.get(key) or ColumnFacts(name or "")


def fits_facts(header: Keywords) -> Facts:
    """Return what the header of a FITS table states of its columns.

    Raises
    ------
    InvalidRecord
        ``header_invalid`` where it states two units, or two of another fact, of one column.
    """
    found = {}
    count = header.get("TFIELDS")
    for n in range(1, (count if type(count) is int else 0) + 1):
        name = _text(header, f"TTYPE{n}")
        found.setdefault(name.lower(), _fits_column(header, n, name))
    return Facts(found, any_case=True)


def column_facts(table: Table, name: str) -> ColumnFacts:
    """Return what a FITS table states of one of its columns, as `fits_facts` of all."""
    return _fits_column(table.hdu.own_header(), table.layout.column(name).number, name)


def image_facts(hdu: Hdu, inherits: bool = False) -> ColumnFacts:
    """Return what the HDU of an image states of its numbers; or the primary HDU for it."""
    header = hdu.inherited_header() if inherits else hdu.own_header()
    unit, ucd = _text(header, "BUNIT"), _text(header, "UCD")
    return ColumnFacts(hdu.name, unit, ucd, origin=f"BUNIT of {hdu.name or hdu.index}")


def _fits_column(header: Keywords, n: int, name: str) -> ColumnFacts:
    words = (*_FITS_KEYS.values(), *_FITS_COMMENTS)
    found = header.among(tuple(f"{word}{n}" for word in words))
    told = {word: str(found.get(f"{word}{n}", "")).strip() for word in words}
    stated = {key: told[word] for key, word in _FITS_KEYS.items()}
    comment = "; ".join(told[word] for word in _FITS_COMMENTS if told[word])
    return ColumnFacts(name, **stated, comment=comment, origin=f"TUNIT{n}")


def _text(header: Keywords, key: str) -> str:
    return str(header.get(key, "")).strip()


def parquet_facts(schema: pa.Schema) -> Facts:
    """Return what a Parquet file's metadata state of its columns."""
    found = {}
    described = _astropy_columns(schema.metadata or {})
    for column in schema:
        stated = {
            key.decode("utf-8", "replace").lower(): value.decode("utf-8", "replace")
            for key, value in (column.metadata or {}).items()
        } or described.get(column.name, {})
        values = {
            key: next((str(stated[w]).strip() for w in words if stated.get(w)), "")
            for key, words in _PARQUET_KEYS.items()
        }
        if any(values.values()):
            found[column.name] = ColumnFacts(column.name, **values, origin="Parquet metadata")
    return Facts(found)


class _PlainLoader(yaml.SafeLoader):
    """Reads the tags of other libraries as the plain values they hold."""


def _plain(loader: yaml.SafeLoader, _suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node)
    return loader.construct_scalar(node)


_PlainLoader.add_multi_constructor("", _plain)


def _astropy_columns(metadata: Mapping[bytes, bytes]) -> dict[str, dict[str, Any]]:
    """Return what astropy's ``table_meta_yaml`` says of columns: ``unit``, ``description``."""
    text = metadata.get(b"table_meta_yaml", b"")
    if not text or len(text) > _MAX_YAML_BYTES or b"&" in text:  # no anchors: they may multiply
        return {}
    try:
        columns = yaml.load(text, Loader=_PlainLoader)["datatype"]
        return {str(c["name"]): _flat(c) for c in columns if isinstance(c, dict)}
    except (yaml.YAMLError, KeyError, TypeError, RecursionError, ValueError):
        return {}


def _flat(column: Mapping[str, Any]) -> dict[str, Any]:
    unit = column.get("unit")
    return {**column, "unit": unit.get("unit", "") if isinstance(unit, dict) else unit}
