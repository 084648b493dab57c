"""What a table says about its columns beside their values: units, UCDs, comments.

FITS: TUNITn, TUCDn, TUTYPn, TCTYPn, TCOMMn, TDESCn (FITS Standard 4.0; IVOA and ESO conventions).
Parquet: the metadata of its fields (``unit``, ``ucd``, ``utype``, ``description``). Of both, what
astropy writes beside them (`serialized_columns`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import NoReturn

import pyarrow as pa

from skyray.readers.fits_bytes import Hdu
from skyray.readers.fits_keywords import Keywords
from skyray.readers.fits_table import Table
from skyray.readers.serialized_columns import comment_text, described_columns
from skyray.readers.units import parse_unit
from skyray.records import InvalidRecord

_FITS_KEYS = {"unit": "TUNIT", "ucd": "TUCD", "utype": "TUTYP", "ctype": "TCTYP"}
_FITS_COMMENTS = ("TCOMM", "TDESC")
_PARQUET_KEYS = {"unit": ("unit", "units"), "ucd": ("ucd",), "utype": ("utype",),
                 "comment": ("description", "comment")}  # fmt: skip
_ASTROPY = "astropy's description of columns"


@dataclass(frozen=True)
class ColumnFacts:
    """What is stated about one column; empty where nothing is.

    ``origin`` says where its unit is stated: ``TUNIT2``, ``Parquet metadata``; ``mask`` is the
    column that says where this one's values are none.
    """

    name: str = ""
    unit: str = ""
    ucd: str = ""
    utype: str = ""
    ctype: str = ""
    comment: str = ""
    origin: str = ""
    mask: str = ""

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


def fits_facts(header: Keywords, names: Collection[str] | None = None) -> Facts:
    """Return what the header of a FITS table states of its columns, or of those named.

    Raises
    ------
    InvalidRecord
        ``header_invalid`` where it states two units, or two of another fact, of one column, or
        where astropy's description cannot be read; ``unit_conflict`` where that says another unit.
    """
    found, count = {}, header.get("TFIELDS")
    asked = None if names is None else {name.lower() for name in names}
    for n in range(1, (count if type(count) is int else 0) + 1):
        name = str(header.get(f"TTYPE{n}", "")).strip()
        if asked is None or name.lower() in asked:
            found.setdefault(name.lower(), _fits_column(header, n, name))
    return Facts(found, any_case=True)


def column_facts(table: Table, name: str) -> ColumnFacts:
    """Return what a FITS table states of one of its columns, as `fits_facts` of all.

    Looked for once for tables that share their header.
    """
    header = table.hdu.own_header()
    known = header.own.facts
    if name not in known:
        known[name] = _fits_column(header, table.layout.column(name).number, name)
    return known[name]


def image_facts(hdu: Hdu, inherits: bool = False) -> ColumnFacts:
    """Return what the HDU of an image states of its numbers; or the primary HDU for it."""
    header = hdu.inherited_header() if inherits else hdu.own_header()
    unit, ucd = (str(header.get(key, "")).strip() for key in ("BUNIT", "UCD"))
    return ColumnFacts(hdu.name, unit, ucd, origin=f"BUNIT of {hdu.name or hdu.index}")


def _fits_column(header: Keywords, n: int, name: str) -> ColumnFacts:
    words = (*_FITS_KEYS.values(), *_FITS_COMMENTS)
    found = header.among(tuple(f"{word}{n}" for word in words))
    told = {word: str(found.get(f"{word}{n}", "")).strip() for word in words}
    stated = {key: told[word] for key, word in _FITS_KEYS.items()}
    comment = "; ".join(told[word] for word in _FITS_COMMENTS if told[word])
    facts = ColumnFacts(name, **stated, comment=comment, origin=f"TUNIT{n}")
    text, (hdu, _) = comment_text(header.own), header.headers[0]
    described = _described(text, lambda detail: hdu.refuse("header_invalid", detail))
    return _merged(facts, described.get(name), hdu.refuse, "header_invalid")


def parquet_facts(schema: pa.Schema, source: str, names: Collection[str]) -> Facts:
    """Return what a Parquet file's metadata state of the columns named.

    Raises
    ------
    InvalidRecord
        ``parquet_invalid`` where astropy's description cannot be read, or says other than a field;
        ``unit_conflict`` where it says another unit.
    """

    def refuse(reason: str, detail: str) -> NoReturn:
        raise InvalidRecord(reason, detail, source)

    found = {}
    text = (schema.metadata or {}).get(b"table_meta_yaml", b"")
    described = _described(text, lambda detail: refuse("parquet_invalid", detail))
    for column in (one for one in schema if one.name in names):
        stated = {
            key.decode("utf-8", "replace").lower(): value.decode("utf-8", "replace")
            for key, value in (column.metadata or {}).items()
        }
        values = {
            key: next((str(stated[w]).strip() for w in words if stated.get(w)), "")
            for key, words in _PARQUET_KEYS.items()
        }
        facts = ColumnFacts(column.name, **values, origin="Parquet metadata")
        facts = _merged(facts, described.get(column.name), refuse, "parquet_invalid")
        if facts != ColumnFacts(column.name, origin=facts.origin):
            found[column.name] = facts
    return Facts(found)


def _described(text: bytes, refuse: Callable[[str], NoReturn]) -> Mapping[str, Mapping[str, str]]:
    try:
        return described_columns(text) if text else {}
    except ValueError as error:
        refuse(f"expected {_ASTROPY}, {error}")


def _merged(
    facts: ColumnFacts, described: Mapping[str, str] | None, refuse: Callable, reason: str
) -> ColumnFacts:
    """Return facts with what astropy says besides; what contradicts is refused."""
    if not described:
        return facts
    changed = {}
    for key, theirs in described.items():
        ours = getattr(facts, key)
        if key == "comment":
            theirs = "; ".join(dict.fromkeys(text for text in (ours, theirs) if text))
        elif ours and ours != theirs and not (key == "unit" and _same_unit(ours, theirs)):
            expected = f"{facts.name}: expected {key} {ours!r}, as {facts.origin} says"
            refuse("unit_conflict" if key == "unit" else reason,
                   f"{expected}, found {theirs!r} in {_ASTROPY}")  # fmt: skip
        if key != "unit" or not ours:
            changed[key] = theirs
    if "unit" in changed:
        changed["origin"] = _ASTROPY
    return replace(facts, **changed)


def _same_unit(one: str, other: str) -> bool:
    unit = parse_unit(one)
    return unit is not None and unit == parse_unit(other)
