"""Random Parquet, CSV and npz tables: ours agrees with other readers cell by cell, or refuses.

Parquet against pyarrow's own reading, CSV against Python's ``csv`` module, npz against what was
written. ``SKYRAY_EXAMPLES`` sets how many tables are made (``make differential``: 50,000).
"""

from __future__ import annotations

import csv
import datetime
import decimal
import io
import math
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skyray.readers.columns import Columns, open_columns, parquet_units
from skyray.readers.memory import memory_file
from skyray.records import InvalidRecord, attempt

EXAMPLES = int(os.environ.get("SKYRAY_EXAMPLES", "2000"))
SEEN: Counter[str] = Counter()
Random = np.random.Generator
IDS = [0, 7, 2**24, 2**24 + 1, 2**53 - 1, 2**53, 2**53 + 1, 2**63 - 1]
TEXTS = ["", " ", "007", "J1234.5+12", "a.b.c.png", "ß Å\n", '"q"', "NA", "nan", "1e5", "x,y", "#1"]


def pick(random: Random, choices: list) -> Any:
    return choices[int(random.integers(len(choices)))]


def integer(random: Random, bits: int, signed: bool) -> int:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    known = [n for n in (*IDS, low, high, high - 1) if low <= n <= high]
    if random.random() < 0.7:
        return pick(random, known)
    return int(random.integers(low, high, endpoint=True, dtype="i8" if signed else "u8"))


def real(random: Random, kind: type) -> float:
    value = pick(random, [0.0, -1.5, math.nan, math.inf, 3.0, 2**24, 2.0**53, random.normal()])
    with np.errstate(over="ignore"):
        return float(kind(value))


def text(random: Random) -> str:
    return pick(random, TEXTS) + str(random.integers(100)) * int(random.integers(2))


_UTC = datetime.UTC
SCALARS: dict[str, tuple[pa.DataType, Callable[[Random], Any]]] = {
    **{f"int{b}": (getattr(pa, f"int{b}")(), lambda r, b=b: integer(r, b, True))
       for b in (8, 16, 32, 64)},
    **{f"uint{b}": (getattr(pa, f"uint{b}")(), lambda r, b=b: integer(r, b, False))
       for b in (8, 16, 32, 64)},
    "half": (pa.float16(), lambda r: np.float16(real(r, np.float16))),
    "float": (pa.float32(), lambda r: real(r, np.float32)),
    "double": (pa.float64(), lambda r: real(r, np.float64)),
    "bool": (pa.bool_(), lambda r: bool(r.integers(2))),
    "string": (pa.string(), text),
    "large_string": (pa.large_string(), text),
    "string_view": (pa.string_view(), text),
    "dictionary": (pa.dictionary(pa.int8(), pa.string()), text),
    "binary": (pa.binary(), lambda r: text(r).encode()),
    "fixed": (pa.binary(4), lambda r: b"ab c"),
    "decimal": (pa.decimal128(20, 3), lambda r: decimal.Decimal(integer(r, 54, True)).scaleb(-3)),
    "date": (pa.date32(), lambda r: datetime.date(2024, 1, 1 + int(r.integers(28)))),
    "time": (pa.timestamp("us", "UTC"), lambda r: datetime.datetime(2024, 5, 1, tzinfo=_UTC)),
}  # fmt: skip
NUMBERS = [name for name in SCALARS if name.startswith(("int", "uint", "half", "float", "double"))]
LISTS = {
    "list": pa.list_, "large_list": pa.large_list, "fixed_list": lambda kind: pa.list_(kind, 3),
    "list_view": pa.list_view,
}  # fmt: skip


def parquet_column(random: Random, rows: int) -> pa.Array:
    """Return a column of any type, some of it null; a list, and a struct, of some."""
    blanks = random.random() < 0.5

    def maybe(make: Callable[[], Any]) -> Any:
        return None if blanks and random.random() < 0.3 else make()

    form = pick(random, ["scalar", "scalar", "scalar", "list", "struct"])
    if form == "scalar":
        kind, make = SCALARS[pick(random, list(SCALARS))]
        return pa.array([maybe(lambda: make(random)) for _ in range(rows)], kind)
    kind, make = SCALARS[pick(random, NUMBERS if random.random() < 0.8 else list(SCALARS))]
    if form == "struct":
        inner = pa.struct([("deep", pa.struct([("x", kind)]))])
        return pa.array(
            [maybe(lambda: {"deep": maybe(lambda: {"x": make(random)})}) for _ in range(rows)],
            inner,
        )
    name = pick(random, list(LISTS))
    size = 3 if name == "fixed_list" else int(random.integers(0, 5))
    cells = [maybe(lambda: [maybe(lambda: make(random)) for _ in range(size)]) for _ in range(rows)]
    plain = pa.array(cells, pa.list_(kind))
    return pa.array(cells, LISTS[name](kind)) if name != "list_view" else plain


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, float | np.floating):
        return found == expected or (found != found and expected != expected)
    return type(found) is type(expected) and found == expected


def agree(columns: Columns, name: str, row: int, expected: Any) -> None:
    """Compare a cell, as a scalar, an array and a name, with what another reader says."""
    if isinstance(expected, bytes):
        expected = expected.rstrip(b"\0 ").decode()
    if isinstance(expected, list):
        return agree_list(columns, name, row, expected)
    found = columns.scalar(name, row)
    assert same(found, expected), (name, row, found, expected)
    SEEN["read"] += 1
    agree_name(columns, name, row, expected)


def agree_list(columns: Columns, name: str, row: int, expected: list) -> None:
    numbers = all(isinstance(v, int | float | np.floating | None) for v in expected)
    found = attempt(lambda: columns.array(name, row))
    if isinstance(found, InvalidRecord):
        SEEN[f"refused: {found.reason}"] += 1
        mixed = None in expected and any(isinstance(v, bool | int) for v in expected)
        assert found.reason == "column_type"
        assert mixed or not numbers or not [v for v in expected if v is not None], expected
        return
    wanted = [math.nan if v is None else v for v in expected]
    assert len(found) == len(wanted)
    assert all(same(a, float(b)) if isinstance(b, float | np.floating) else a == b
               for a, b in zip(found.tolist(), wanted, strict=True)), (found, wanted)  # fmt: skip
    SEEN["read"] += 1


def agree_name(columns: Columns, name: str, row: int, expected: Any) -> None:
    """An identifier is exact, or refused."""
    found = attempt(lambda: columns.identifier(name, row))
    if isinstance(found, InvalidRecord):
        SEEN[f"refused: {found.reason}"] += 1
        if found.reason == "id_not_exact":
            assert isinstance(expected, float | np.floating)
            assert not float(expected).is_integer() or abs(expected) >= 2**11
        else:
            assert found.reason == "field_invalid"
            nothing = expected is None or (isinstance(expected, str) and not expected.strip())
            assert (
                nothing
                or not isinstance(expected, int | str | decimal.Decimal)
                or isinstance(expected, bool)
            )
        return
    SEEN["read"] += 1
    if isinstance(expected, float | np.floating):
        assert abs(expected) < 2**53
        assert int(found) == expected
    elif isinstance(expected, decimal.Decimal):
        assert decimal.Decimal(found) == expected
    else:
        assert found == str(expected)


def compare_parquet(random: Random) -> None:
    rows = int(random.integers(1, 5))
    made = {f"c{n}": parquet_column(random, rows) for n in range(int(random.integers(1, 5)))}
    table, stream = pa.table(made), io.BytesIO()
    try:
        pq.write_table(
            table, stream, row_group_size=100 if "view" in str(table.schema.types) else 3,
            compression=pick(random, ["zstd", "snappy", "none", "gzip"]),
            use_dictionary=bool(random.integers(2)), store_schema=bool(random.integers(2)),
            data_page_version=pick(random, ["1.0", "2.0"]),
        )  # fmt: skip
    except pa.ArrowIndexError:  # pyarrow cannot write a dictionary of no values
        return
    names = {n if not pa.types.is_struct(c.type) else f"{n}.deep.x" for n, c in made.items()}
    file, first = memory_file(stream.getvalue(), "a.parquet"), 0
    try:
        theirs = pq.read_table(io.BytesIO(stream.getvalue())).to_pydict()
    except pa.ArrowInvalid:  # lists of one size with nulls among them
        with pytest.raises(InvalidRecord, match="parquet_invalid"):
            [list(open_columns(file, unit, names)) for unit in parquet_units(file)]
        SEEN["refused: parquet_invalid"] += 1
        return
    for unit in parquet_units(file):
        for columns in open_columns(file, unit, names):
            count = columns.rows(next(iter(names)))
            for name in sorted(names):
                root, *path = name.split(".")
                for row in range(count):
                    expected = theirs[root][first + row]
                    for part in path:
                        expected = None if expected is None else expected[part]
                    agree(columns, name, row, expected)
            first += count
    assert first == rows


NUMERALS = [
    "1", "-2", "0", "00042", "+5", "1.5", "1e5", ".5", "5.", "inf", "nan", "NA", "", "--", "N/A",
    "9007199254740993", "9007199254740993.0", "18446744073709551615", "99999999999999999999",
    "true", "False", "0x10", "1_000", "１", " 7", "7 ",
]  # fmt: skip


def compare_csv(random: Random) -> None:
    """Write a CSV by hand, in one of its dialects; what a cell says is kept, or its number."""
    rows, count = int(random.integers(1, 5)), int(random.integers(1, 5))
    pool = TEXTS if random.random() < 0.3 else list(
        random.choice(NUMERALS, int(random.integers(1, 4)))
    )  # fmt: skip
    cells = [[str(pick(random, pool)) for _ in range(count)] for _ in range(rows)]
    names = [pick(random, ["ra", "Å", "object id", 'q"']) + str(n) for n in range(count)]
    if count == 1:
        cells = [row if row[0].strip() else ["x"] for row in cells]  # a blank line is no row
    delimiter = pick(random, [",", ",", ";", "\t", "|"]) if count > 1 else ","
    ending = pick(random, ["\n", "\r\n"])
    stream = io.StringIO(newline="")
    quoting = pick(random, [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    writer = csv.writer(stream, delimiter=delimiter, lineterminator=ending, quoting=quoting)
    writer.writerows([names, *cells])
    head = pick(random, ["", "", "# a comment, of; two\n# lines\n"])
    bom = "\ufeff" if random.random() < 0.3 else ""
    content = (bom + head + stream.getvalue()).encode()
    text_columns = {names[0]}
    (columns,) = open_columns(memory_file(content, "a.csv"), 0, set(names), text=text_columns)
    assert columns.rows(names[0]) == rows, content
    for column, name in enumerate(names):
        for row in range(rows):
            cell, found = cells[row][column], columns.scalar(name, row)
            agree_cell(cell, found, name in text_columns)
            SEEN["read"] += 1


def agree_cell(cell: str, found: Any, is_text: bool) -> None:
    """A cell is its text, or exactly the number it writes; a blank is none."""
    if found is None:
        assert cell.strip() in ("", "NA", "nan", "--", "N/A")
        assert not is_text or cell == ""
    elif isinstance(found, str):
        assert found == cell
    else:
        assert not is_text
        if isinstance(found, bool):
            assert cell.strip().lower() == str(found).lower()
        elif isinstance(found, int):
            assert str(found) == cell.strip()
        else:
            assert same(found, float(cell))
            written = decimal.Decimal(cell.strip())
            exact = not written.is_finite() or written != written.to_integral_value()
            assert exact or decimal.Decimal(found) == written


NPZ = [
    "i1", "u1", "<i8", ">i8", "<u8", ">u8", "f2", "<f4", ">f4", "<f8", ">f8", "?", "U5", "S5",
    "M8[s]", "c8", "O",
]  # fmt: skip


def compare_npz(random: Random) -> None:
    rows, kind = int(random.integers(1, 5)), np.dtype(pick(random, NPZ))
    values = [pick(random, [0, 1, 7, 100]) for _ in range(rows)]
    if kind.kind in "iu" and kind.itemsize == 8:
        values = [integer(random, 64, kind.kind == "i") for _ in range(rows)]
    texts = [str(value) for value in values]
    column = np.array(texts, kind) if kind.kind in "US" else np.array(values).astype(kind)
    shape = pick(random, ["scalar", "scalar", "array", "one"])
    if shape == "array":
        column = np.repeat(column[:, None], 3, axis=1)
    elif shape == "one":
        column = column[0, ...]
    stream = io.BytesIO()
    (np.savez if random.random() < 0.5 else np.savez_compressed)(stream, a=column, b=values)
    found = attempt(lambda: list(open_columns(memory_file(stream.getvalue(), "a.npz"), 0, {"a"})))
    if isinstance(found, InvalidRecord):
        assert found.reason == "npz_invalid"
        assert kind.kind == "O"
        SEEN["refused: npz_invalid"] += 1
        return
    (columns,) = found
    for row in range(rows):
        if shape == "array":
            expected = column[row].tolist()
            if kind.kind in "fiub":
                agree_list(columns, "a", row, expected)
            else:
                with pytest.raises(InvalidRecord, match="column_type"):
                    columns.array("a", row)
                SEEN["refused: column_type"] += 1
            continue
        cell = column[()] if shape == "one" else column[row]
        expected = str(cell) if kind.kind == "M" else cell.item()
        agree(columns, "a", row, expected)


@pytest.mark.parametrize(
    ("compare", "share"), [(compare_parquet, 1.0), (compare_csv, 1.0), (compare_npz, 1.0)]
)
def test_ours_agrees_with_independent_readers_or_refuses(compare, share, capsys):
    SEEN.clear()
    examples = int(EXAMPLES * share)
    for seed in range(examples):
        compare(np.random.default_rng(seed))
    refused = {name: count for name, count in sorted(SEEN.items()) if name != "read"}
    with capsys.disabled():
        print(f"\n{compare.__name__}: {examples} tables, {SEEN['read']} values read, 0 disagree, "
              f"{refused}")  # fmt: skip
    assert SEEN["read"] > 0.6 * SEEN.total()
