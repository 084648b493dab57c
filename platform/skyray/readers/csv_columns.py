"""CSV → columns. Cells are read as text; a column becomes numbers where nothing is lost by it.

So an integer never passes through a float (a column with blanks, integers beyond 2⁵³ among
decimals), and a name keeps its zeros (``007``). What delimits cells is seen in the header; lines
that begin with ``#`` before it are comments, and the last of them is the header where the first
line without is numbers already (as ``numpy.savetxt`` writes it).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from skyray.records import InvalidRecord

_DELIMITERS = (",", "\t", ";", "|")
_BOM = b"\xef\xbb\xbf"
_BLANK = pa.array(["", "NA", "N/A", "n/a", "nan", "NaN", "NAN", "null", "NULL", "None", "--"])
_INTEGER = r"^-?(0|[1-9][0-9]*)$"
_ZEROS_FIRST = r"^[+-]?0[0-9]+$"
_LONG_INTEGER = r"^[+-]?[0-9]{16,}(\.0*)?$"  # a float may not hold it
_FLOAT = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$|^[+-]?([iI]nf|[iI]nfinity)$"
_TRUTH = pa.array(["true", "false"])


def csv_columns(
    content: bytes, path: str, text: Collection[str] | None = ()
) -> dict[str, pa.Array]:
    """Return the columns of a CSV file: int64, uint64, float64, bool or text, with nulls.

    A cell without quotes and without content is null; in a column of numbers so are ``NA``, ``nan``
    and their like.

    Parameters
    ----------
    text : collection of str, or None for all
        Columns that stay text, as they are written: names.

    Raises
    ------
    InvalidRecord
        ``csv_invalid``: not UTF-8, rows of differing length, a name that comes twice, or ECSV,
        whose header states types and units that would be lost.
    """
    if content.removeprefix(_BOM).startswith(b"# %ECSV"):
        raise InvalidRecord(
            "csv_invalid",
            "expected plain CSV, found ECSV, which states types and units: write it as a FITS "
            "table or Parquet with astropy",
            path,
        )
    body, names, delimiter = _header(content, path)
    try:
        table = pa.csv.read_csv(
            pa.BufferReader(body),
            read_options=pa.csv.ReadOptions(column_names=[str(n) for n in range(len(names))]),
            parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(
                column_types={str(n): pa.string() for n in range(len(names))},
                strings_can_be_null=True, quoted_strings_can_be_null=False, null_values=[""],
            ),
        )  # fmt: skip
    except pa.ArrowException as error:
        raise InvalidRecord("csv_invalid", str(error)[:300], path) from None
    columns = (column.combine_chunks() for column in table.columns)
    return {
        name: column if text is None or name in text else _typed(column)
        for name, column in zip(names, columns, strict=True)
    }


def _header(content: bytes, path: str) -> tuple[pa.Buffer, list[str], str]:
    """Return what follows the header, the columns' names and what delimits cells."""
    start, comment = len(_BOM) if content.startswith(_BOM) else 0, b""
    while (line := _line(content, start)).lstrip()[:1] == b"#" or (line and not line.strip()):
        comment = line if line.strip() else comment
        start += len(line)
    end = start
    try:
        delimiter = _delimiter(line.decode())
        reader = csv.reader(_decoded(content, start), delimiter=delimiter, strict=True)
        names = next(reader, [])
        for _ in range(reader.line_num):
            end += len(_line(content, end))
        above = comment.decode().strip().lstrip("#").strip()
        above = next(csv.reader([above], delimiter=delimiter), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidRecord("csv_invalid", f"header: {error}"[:300], path) from None
    if any(map(_is_number, names)) and len(above) == len(names) and not any(map(_is_number, above)):
        names, end = above, start
    names = [name.strip() for name in names]
    if b"\0" in content[:end] or not any(names) or len(set(names)) < len(names):
        found = f"{names[:40]}" if names else "none"
        detail = f"expected a header of UTF-8 names, each once; found {found}"
        raise InvalidRecord("csv_invalid", detail, path)
    return pa.py_buffer(content).slice(end), names, delimiter


def _line(content: bytes, start: int) -> bytes:
    """Return the line from a place on, with its end (LF, CR LF, or CR alone)."""
    ends = [at + 1 for end in (b"\n", b"\r") if (at := content.find(end, start)) >= 0]
    if not ends:
        return content[start:]
    end = min(ends)
    if content[end - 1 : end + 1] == b"\r\n":
        end += 1
    return content[start:end]


def _decoded(content: bytes, start: int) -> io.TextIOWrapper:
    stream = io.BytesIO(content)
    stream.seek(start)
    return io.TextIOWrapper(stream, encoding="utf-8", newline="")


def _delimiter(header: str) -> str:
    many = {d: len(next(csv.reader([header], delimiter=d), [])) for d in _DELIMITERS}
    return "," if many[","] > 1 else max(_DELIMITERS, key=lambda d: many[d])


def number_of(text: str) -> int | float:
    """Return the number that a cell holds, an integer exactly.

    Raises
    ------
    ValueError
        For anything else, also for what only Python calls a number: ``1_0``, digits of other
        scripts.
    """
    if "_" not in text and text.isascii():
        for kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                continue
    raise ValueError(f"expected a number, found {text[:80]!r}")


def _is_number(text: str) -> bool:
    try:
        number_of(text)
    except ValueError:
        return False
    return True


def _typed(column: pa.StringArray) -> pa.Array:
    """Return text as numbers or truth values where every cell is one, exactly."""
    cells = pc.utf8_trim_whitespace(column)
    cells = pc.if_else(pc.is_in(cells, _BLANK), pa.scalar(None, pa.string()), cells)
    known = cells.drop_null()

    def every(pattern: str) -> bool:
        return pc.all(pc.match_substring_regex(known, pattern)).as_py()

    def some(pattern: str) -> bool:
        return pc.any(pc.match_substring_regex(known, pattern)).as_py()

    if not len(known):
        return column
    try:
        if every(_INTEGER):
            return _cast_integers(cells)
        if every(_FLOAT) and not some(_ZEROS_FIRST) and not some(_LONG_INTEGER):
            plain = pc.replace_substring_regex(cells, r"^\+", "")
            return pc.cast(plain, pa.float64())
    except pa.ArrowInvalid:  # beyond 64 bits
        return column
    lower = pc.utf8_lower(known)
    if pc.all(pc.is_in(lower, _TRUTH)).as_py():
        return pc.equal(pc.utf8_lower(cells), "true")
    return column


def _cast_integers(cells: pa.StringArray) -> pa.Array:
    try:
        return pc.cast(cells, pa.int64())
    except pa.ArrowInvalid:
        return pc.cast(cells, pa.uint64())
