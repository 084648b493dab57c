"""Headers of FITS HDUs: keywords, and the numbers that say where data lie.

Whatever says how many bytes there are to read is checked here before it is used: that it is an
integer, within bounds, and said once. An HDU so never ends before its own header does.

Source: FITS Standard 4.0 (Pence et al. 2010, A&A 524, A42; version of 2018), sections 4.2 to 4.4.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from functools import cached_property, lru_cache
from typing import Any

import astropy.io.fits

MAX_AXES = 32  # numpy's own limit before version 2; the standard's is 999
MAX_DATA_BYTES = 1 << 50
MAX_FIELDS = 999
IMAGE_TYPES = {8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
CARD = 80

_VALUE = re.compile(rb"\s*(?:'((?:[^']|'')*)'|([^/\s]+))")
_INTEGER = re.compile(r"[+-]?\d{1,400}")
_REAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(E[+-]?\d+)?")
_KEPT_BYTES = 8 << 20  # of headers kept for the next file that has the same
_LONGEST_KEPT = 128 << 10


class BadHeader(ValueError):
    """A keyword whose value is not what the standard allows; names it, and both values."""


class Header:
    """The cards of one HDU, searched on demand; of a keyword given twice the first counts.

    Long strings (CONTINUE) are joined and ESO's ``HIERARCH`` keywords found, with or without that
    word before them. Text is ASCII by the standard; UTF-8 is understood, other bytes are escaped.
    """

    def __init__(self, block: bytes):
        self.block = block
        self.layout: Any = None  # once `table_layout` was asked for it
        self.facts: dict[str, Any] = {}  # what `column_facts` was asked for
        self._values: dict[str, tuple[int, Any]] = {}  # keyword → where its card lies, value

    @staticmethod
    def of(block: bytes) -> Header:
        """Return the header of these cards: one for all HDUs that share them."""
        return _KEPT.header(block) if len(block) <= _LONGEST_KEPT else Header(block)

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a keyword (upper case) as str, bool, int or float."""
        value = self._stated(key)[1]
        return default if value is None else value

    def number(self, key: str) -> float:
        """Return the value of a numeric keyword, NaN without one."""
        value = self.get(key)
        return float(value) if type(value) in (int, float) else float("nan")

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """Return an integer keyword within ``low`` to ``high``; `default` where there is none.

        Raises
        ------
        BadHeader
            For another value, none without a default, or two that differ.
        """
        value = self.only(key)
        if type(value) is int and low <= value <= high:
            return value
        if default is not None and self._find(key) < 0:
            return default
        raise BadHeader(f"{key}: expected an integer {low}–{high}, found {self._shown(key)}")

    def factor(self, key: str, default: float) -> float:
        """Return a finite real keyword (BZERO, TSCALn …); `default` where there is none.

        Raises
        ------
        BadHeader
            For a value that is no number, or two that differ.
        """
        value = self.only(key)
        if type(value) is int or (type(value) is float and math.isfinite(value)):
            return value
        if self._find(key) < 0:
            return default
        raise BadHeader(f"{key}: expected a number, found {self._shown(key)}")

    def text(self, key: str, default: str = "") -> str:
        """Return a keyword's text; `default` where there is none.

        Raises
        ------
        BadHeader
            For a value that is no text, or two that differ.
        """
        value = self.only(key)
        if isinstance(value, str):
            return value
        if self._find(key) < 0 or not self._shown(key).strip("' "):
            return default
        raise BadHeader(f"{key}: expected text, found {self._shown(key)}")

    def states(self, key: str) -> bool:
        """Return whether a keyword is given with a value, of whatever type."""
        return self._find(key) >= 0 and bool(self._shown(key).strip("' "))

    def given(self, keys: tuple[str, ...]) -> list[str]:
        """Return which of these keywords, of at most 8 letters, are given."""
        index = self._index
        return [key for key, prefix in _prefixes(keys) if prefix in index]

    def scale(self, zero: str, scale: str) -> tuple[float, float]:
        """Return the offset and the factor, not 0, that two keywords give: BZERO and BSCALE."""
        factor = self.factor(scale, 1)
        if factor == 0:
            raise BadHeader(f"{scale}: expected a number other than 0, found {factor}")
        return self.factor(zero, 0), factor

    @cached_property
    def name(self) -> str:
        """EXTNAME in upper case, '' where there is none."""
        return str(self.get("EXTNAME", "")).upper()

    @cached_property
    def compressed(self) -> str:
        """What a binary table holds in compressed tiles: ``image``, ``table`` or nothing."""
        if self.get("XTENSION") != "BINTABLE":
            return ""
        return next((kind for kind in ("image", "table") if self.get(f"Z{kind.upper()}")), "")

    @cached_property
    def random_groups(self) -> bool:
        """Whether the primary HDU holds random groups (section 6)."""
        return self.get("GROUPS") is True and self.get("NAXIS1") == 0 and self._find("SIMPLE") == 0

    @cached_property
    def data_bytes(self) -> int:
        """Size of the data behind this header, at least 0.

        Raises
        ------
        BadHeader
            Where BITPIX, NAXIS, NAXISn, PCOUNT or GCOUNT are no integers of their range.
        """
        axes = self.integer("NAXIS", 0, MAX_AXES)
        bits = self.integer("BITPIX", -64, 64, default=None if axes else 8)
        if bits not in IMAGE_TYPES:
            raise BadHeader(f"BITPIX: expected one of {sorted(IMAGE_TYPES)}, found {bits}")
        sizes = [self.integer(f"NAXIS{n + 1}", 0, MAX_DATA_BYTES) for n in range(axes)]
        extra = self.integer("PCOUNT", 0, MAX_DATA_BYTES, default=0)
        groups = self.integer("GCOUNT", 1, MAX_DATA_BYTES, default=1)
        self.integer("TFIELDS", 0, MAX_FIELDS, default=0)  # astropy counts up to it
        width = abs(bits) // 8
        # An axis of 0 must not hide from numpy's integers how long the others are.
        if width * groups * (extra + math.prod(size or 1 for size in sizes)) > MAX_DATA_BYTES:
            raise BadHeader(
                f"NAXISn, PCOUNT, GCOUNT: expected at most {MAX_DATA_BYTES:,} bytes of data, "
                f"found BITPIX {bits}, axes {sizes}, PCOUNT {extra}, GCOUNT {groups}"
            )
        if self.random_groups:
            sizes = sizes[1:]
        return width * groups * (extra + math.prod(sizes)) if axes else 0

    def astropy(self) -> astropy.io.fits.Header:
        """Return these cards as astropy has them, for its WCS."""
        return astropy.io.fits.Header.fromstring(self.block.decode("latin-1"))

    def only(self, key: str) -> Any:
        """Return the value of a keyword by which others are understood, None without one.

        Raises
        ------
        BadHeader
            For two that differ.
        """
        first, value = self._stated(key)
        if first < 0:
            return value
        for again in self._repeats(first):
            if self._value(again) != value:
                found = f"{value!r} and {self._value(again)!r}"
                raise BadHeader(f"{key}: expected one value, found {found}")
        return value

    def check_once(self, keywords: re.Pattern[str]) -> None:
        """Raise `BadHeader` for one of these keywords that is given twice, and differently."""
        for prefix in self._again:
            key = prefix.decode("ascii", "replace").rstrip("= ")
            if prefix.endswith(b"=") and keywords.fullmatch(key):
                self.only(key)

    def _stated(self, key: str) -> tuple[int, Any]:
        """Return where the card of a keyword lies, -1 where there is none, and its value."""
        if key not in self._values:
            at = self._find(key)
            self._values[key] = at, None if at < 0 else self._value(at)
        return self._values[key]

    def _value(self, at: int) -> Any:
        start = self.block.find(b"=", at) + 1 if self.block.startswith(b"HIERARCH", at) else at + 9
        value = _parse_value(self.block[start : at + CARD])
        while isinstance(value, str) and value.endswith("&"):
            at += CARD
            if not self.block.startswith(b"CONTINUE  ", at):
                break
            more = _parse_value(self.block[at + 10 : at + CARD])
            if not isinstance(more, str):
                break
            value = value[:-1] + more
        return value

    def _find(self, key: str) -> int:
        """Return where the card of a keyword lies, -1 where there is none."""
        if len(key) > 8 or " " in key:
            return self._hierarchy.get(key.removeprefix("HIERARCH ").strip(), -1)
        return self._index.get(key.encode("ascii", "replace").ljust(8) + b"=", -1)

    @cached_property
    def _index(self) -> dict[bytes, int]:
        """Where each keyword is given first; all at once, as looking for one that is not there
        costs a fifth of it."""
        block, last = self.block, (len(self.block) - 1) // CARD * CARD
        return {block[at : at + 9]: at for at in range(last, -1, -CARD)}

    def _repeats(self, first: int) -> list[int]:
        """Return where the keyword of a card is given again."""
        prefix = self.block[first : first + 9]
        if prefix == b"HIERARCH ":
            words = self._words(first)
            later = range(first + CARD, len(self.block), CARD)
            return [at for at in later if self._words(at) == words]
        if self.block.find(prefix, first + CARD) < 0:
            return []
        return [at for at in self._again.get(prefix, []) if at > first]

    @cached_property
    def _again(self) -> dict[bytes, list[int]]:
        found: dict[bytes, list[int]] = {}
        for at in range(0, len(self.block), CARD):
            prefix = self.block[at : at + 9]
            if self._index[prefix] != at:
                found.setdefault(prefix, []).append(at)
        return found

    @cached_property
    def _hierarchy(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for at in range(0, len(self.block), CARD):
            if words := self._words(at):
                found.setdefault(words, at)
        return found

    def _words(self, at: int) -> str:
        """Return the keyword of a HIERARCH card, '' for another card."""
        if not self.block.startswith(b"HIERARCH ", at):
            return ""
        words = self.block[at + 9 : at + CARD].partition(b"=")[0].split()
        return b" ".join(words).decode("ascii", "replace").upper()

    def _shown(self, key: str) -> str:
        at = self._find(key)
        text = self.block[at + 9 : at + CARD].decode("ascii", "replace")
        return "none" if at < 0 else repr(text.partition("/")[0].strip())


@lru_cache(maxsize=4096)
def _prefixes(keys: tuple[str, ...]) -> list[tuple[str, bytes]]:
    return [(key, key.encode("ascii", "replace").ljust(8) + b"=") for key in keys]


class _KeptHeaders:
    """The headers seen last, as long as they are together no larger than a limit."""

    def __init__(self):
        self._headers: OrderedDict[bytes, Header] = OrderedDict()
        self._bytes = 0

    def header(self, block: bytes) -> Header:
        found = self._headers.pop(block, None)
        if found is None:
            found = Header(block)
            self._bytes += len(block)
            while self._bytes > _KEPT_BYTES:
                self._bytes -= len(self._headers.popitem(last=False)[0])
        self._headers[found.block] = found  # the last one asked for
        return found


_KEPT = _KeptHeaders()


def decode_text(text: bytes) -> str:
    """Return bytes as text, different bytes as different text: UTF-8, others escaped."""
    return text.decode("utf-8", "backslashreplace")


def _parse_value(text: bytes) -> Any:
    match = _VALUE.match(text)
    if match is None:
        return None
    if match[1] is not None:
        return decode_text(match[1].replace(b"''", b"'").rstrip())
    word = match[2].decode("ascii", "replace")
    if word in ("T", "F"):
        return word == "T"
    if _INTEGER.fullmatch(word):
        return int(word)
    word = word.upper().replace("D", "E")
    return float(word) if _REAL.fullmatch(word) else None
