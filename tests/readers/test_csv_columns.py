"""CSV cells stay exact: integers never pass a float, names keep their zeros, dialects are seen."""

from __future__ import annotations

import pyarrow as pa
import pytest

from skyray.readers.csv_columns import csv_columns
from skyray.records import InvalidRecord


def read(text: str | bytes, *names: str) -> dict[str, list]:
    content = text if isinstance(text, bytes) else text.encode()
    return {n: c.to_pylist() for n, c in csv_columns(content, "a.csv", names).items()}


@pytest.mark.parametrize(
    ("cells", "kind", "values"),
    [
        (["39627547165298689", "", "NA"], pa.int64(), [39627547165298689, None, None]),
        (["18446744073709551615", "0"], pa.uint64(), [2**64 - 1, 0]),
        (["1.5", "nan", "-inf", "2"], pa.float64(), [1.5, None, float("-inf"), 2.0]),
        (["1.5", "9007199254740993"], pa.string(), ["1.5", "9007199254740993"]),
        (["99999999999999999999"], pa.string(), ["99999999999999999999"]),
        (["007", "8"], pa.string(), ["007", "8"]),
        (["0x10"], pa.string(), ["0x10"]),
        (["１"], pa.string(), ["１"]),
        (["True", "false", "--"], pa.bool_(), [True, False, None]),
        (["NA", "star"], pa.string(), ["NA", "star"]),
        ([" 7", "8 "], pa.int64(), [7, 8]),
    ],
)
def test_a_column_is_of_numbers_where_nothing_is_lost(cells, kind, values):
    text = "x,n\n" + "".join(f"{cell},1\n" for cell in cells)
    column = csv_columns(text.encode(), "a.csv")["x"]
    assert (column.type, column.to_pylist()) == (kind, values)


def test_names_stay_as_they_are_written():
    text = "id,n\n007,1\n+5,2\n 6,3\n1e5,4\n39627547165298689,5\n"
    assert read(text, "id")["id"] == ["007", "+5", " 6", "1e5", "39627547165298689"]


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffra,dec\n1.5,2\n", "ra;dec\n1.5;2\n", "ra\tdec\r\n1.5\t2\r\n", "ra|dec\r1.5|2\r",
        "# by hand, 2024\n#\n\nra,dec\n1.5,2\n", "# ra,dec\n1.5,2\n", "ra, dec\n1.5,2",
        "#ra;dec\n1.5;2",
    ],
)  # fmt: skip
def test_dialects(text):
    assert read(text) == {"ra": [1.5], "dec": [2]}


def test_quotes_hold_newlines_and_delimiters_and_the_empty_text():
    assert read('"a\nb",c\n"x,""y\n",""\n,z\n') == {"a\nb": ['x,"y\n', None], "c": ["", "z"]}


@pytest.mark.parametrize(
    "content",
    [
        b"# %ECSV 1.0\n# ---\n# datatype:\n# - {name: ra, unit: rad, datatype: float64}\nra\n1.5\n",
        b"\xef\xbb\xbf# %ECSV 1.0\n# ---\nra\n1.5\n",
        "ra,dec\n1,2\n".encode("utf-16"), "ra,größe\n1,2\n".encode("latin-1"),
        "ra,name\n1,größe\n".encode("latin-1"), b"ra,ra\n1,2\n", b"ra,dec\n1,2\n3\n", b"\n\n",
        b"# nothing\n", b'ra,"dec\n1,2\n', b"\x00\x01\x02",
    ],
)  # fmt: skip
def test_what_cannot_be_read_for_certain_is_refused(content):
    with pytest.raises(InvalidRecord, match="csv_invalid"):
        read(content)
