"""Keywords by which values are understood: those of an HDU, and the primary's where it is silent.

`Header` finds what a card says. Here it is asked for what changes a value (a unit, an axis, a
medium), so that a keyword that an HDU states twice, and differently, is refused by name.

Source: FITS Standard 4.0, sections 4.1.2.3 and appendix K (INHERIT).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from skyray.readers.fits_header import BadHeader, Header

if TYPE_CHECKING:
    from skyray.readers.fits_bytes import Hdu

# What describes the data of its own HDU and no other's: unit, scale, axes, band, zero point.
_OF_ITS_DATA = re.compile(
    r"BUNIT|BSCALE|BZERO|BLANK|DC-FLAG|COEFF\d|WCSAXES.?|MAGZ\w*|ZERO\w*|PHOT\w*|ZP"
    r"|C(TYPE|UNIT|RVAL|RPIX|DELT|ROTA)\d+.?|(CD|PC|PV|PS)\d+_\d+.?|(WAT\d|LTM\d|LTV)_?\d+"
    r"|(BAND|FILT|PLANE|CHAN)\w*|(HIERARCH )?ESO INS FILT.*"
)


@dataclass(frozen=True)
class Keywords:
    """Headers of HDUs, asked one after another; the first that states a keyword counts."""

    headers: tuple[tuple[Hdu, Header], ...]

    @property
    def own(self) -> Header:
        """The header of the HDU itself."""
        return self.headers[0][1]

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a keyword (upper case) as `Header.get`.

        Raises
        ------
        InvalidRecord
            ``header_invalid`` where a header states it twice, and differently.
        """
        for number, (hdu, header) in enumerate(self.headers):
            try:
                value = header.only(key)
            except BadHeader as error:
                hdu.refuse("header_invalid", str(error))
            if value is not None and not (number and hdu.size and _OF_ITS_DATA.fullmatch(key)):
                return value
        return default

    def over(self, other: Keywords) -> Keywords:
        """Return these keywords, and others' where these are silent."""
        return Keywords(self.headers + other.headers)

    def among(self, keys: tuple[str, ...]) -> dict[str, Any]:
        """Return those of these keywords, of at most 8 letters, that have a value; as `get`."""
        given = {key: self.get(key) for _, header in self.headers for key in header.given(keys)}
        return {key: value for key, value in given.items() if value is not None}

    def number(self, key: str) -> float:
        """Return the value of a numeric keyword, NaN without one."""
        value = self.get(key)
        return float(value) if type(value) in (int, float) else float("nan")

    def states(self, key: str) -> bool:
        """Return whether a keyword is given with a value, of whatever type."""
        return self.get(key) not in (None, "")
