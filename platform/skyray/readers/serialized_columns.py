"""What astropy writes about a table's columns beside them: units, descriptions, masks, as YAML.

In Parquet it stands in the schema (``table_meta_yaml``), in FITS in COMMENT cards. Some of it is
said nowhere else: a unit that FITS has no word for, a description that names the medium, and which
column holds another's mask. Columns of one unit share it by an anchor, ``unit: &id001``; only the
nodes of YAML are looked at, to a fixed depth, so that whatever its anchors are nothing multiplies.

Source: astropy.io.misc.parquet, astropy.io.fits.connect, astropy.table.meta (ECSV 1.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import yaml

from skyray.readers.fits_header import CARD, Header

_MAX_BYTES = 1 << 20
_BEGIN, _END = "--BEGIN-ASTROPY-SERIALIZED-COLUMNS--", "--END-ASTROPY-SERIALIZED-COLUMNS--"
_CARD_BEGIN = f"COMMENT {_BEGIN}".encode()
_CUT = 71  # characters of a line that goes on in the next, with the backslash at its end


@lru_cache(maxsize=64)
def described_columns(text: bytes) -> Mapping[str, Mapping[str, str]]:
    """Return name → ``unit``, ``ucd``, ``utype``, ``comment``, ``mask`` (a column), where stated.

    Raises
    ------
    ValueError
        For what is not astropy's description of columns, or longer than 1 MiB.
    """
    if len(text) > _MAX_BYTES:
        raise ValueError(f"found {len(text):,} bytes, more than {_MAX_BYTES:,}")
    try:
        root = _fields(yaml.compose(text, Loader=yaml.SafeLoader))
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"found {type(error).__name__}: {str(error)[:200]}") from None
    columns, found = root.get("datatype"), {}
    for node in columns.value if isinstance(columns, yaml.SequenceNode) else [None]:
        one = _fields(node)
        name, meta = _text(one.get("name")), _fields(one.get("meta"))
        if not name:
            raise ValueError("found no list of names under datatype")
        unit = _fields(one.get("unit")).get("unit") or one.get("unit")
        stated = {"unit": unit, "comment": one.get("description"),
                  "ucd": meta.get("ucd"), "utype": meta.get("utype")}  # fmt: skip
        found[name] = {key: _text(value) for key, value in stated.items() if _text(value)}
    for name, node in _fields(_fields(root.get("meta")).get("__serialized_columns__")).items():
        parts = _fields(node)
        mask, data = _fields(parts.get("mask")), _fields(parts.get("data") or parts.get("value"))
        if "name" in mask:
            found.setdefault(_text(data.get("name")) or name, {})["mask"] = _text(mask["name"])
    return found


def comment_text(header: Header) -> bytes:
    """Return the description in the COMMENT cards of a FITS table, b'' where there is none."""
    start = header.block.find(_CARD_BEGIN)
    if start < 0 or start % CARD:
        return b""
    lines, line = [], ""
    for at in range(start + CARD, len(header.block), CARD):
        card = header.block[at : at + CARD].decode("utf-8", "replace")
        text = card[8:].rstrip()
        if not card.startswith("COMMENT ") or text == _END:
            break
        goes_on = len(text) == _CUT and text.endswith("\\")
        line += text[:-1] if goes_on else text
        if not goes_on:
            lines.append(line)
            line = ""
    return "\n".join([*lines, line]).encode()


def _fields(node: yaml.Node | None) -> dict[str, yaml.Node]:
    """Return the entries of a mapping, also an ordered one (``!!omap``); none of others."""
    if isinstance(node, yaml.SequenceNode):
        pairs = [p for one in node.value if isinstance(one, yaml.MappingNode) for p in one.value]
    else:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
    found = {key.value: value for key, value in pairs if isinstance(key, yaml.ScalarNode)}
    if "<<" in found:
        raise ValueError("found a merge key, <<")
    return found


def _text(node: yaml.Node | None) -> str:
    plain = isinstance(node, yaml.ScalarNode) and not node.tag.endswith(":null")
    return node.value.strip() if plain else ""
