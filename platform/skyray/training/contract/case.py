"""What the contracts are tried on: a family, bound to a small recipe and a few mock objects."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from skyray.data.dataset import table_to_columns
from skyray.data.rows import columns_of, row_of, schema_of
from skyray.families.base import Columns, DataInfo, Example, Family, Recipe
from skyray.records import Record, describe_schema, tensor_array
from skyray.simulate.base import make_simulator


class BrokenContract(AssertionError):
    """A family does not keep what it promises.

    Attributes
    ----------
    family, contract : str
        Who, and what: ``transform``, ``stage flow: loss`` …
    expected, found : str
        What the contract asks for, and what the family does.
    """

    def __init__(self, family: str, contract: str, expected: str, found: str):
        super().__init__(f"family {family!r}: {contract}: expected {expected}; found {found}")
        self.family, self.contract = family, contract
        self.expected, self.found = expected, found

    def __reduce__(self):  # exceptions with several arguments do not pickle by themselves
        return type(self), (self.family, self.contract, self.expected, self.found)


class Asked(Mapping):
    """Columns as a prepared table gives them: read when asked for, `names` says which were."""

    def __init__(self, columns: Mapping[str, Any]):
        self._columns = columns
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        values = self._columns[name]
        self.names.add(name)
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


class Case:
    """A family on one example: its mock records as a dataset holds them and as a request brings.

    Parameters
    ----------
    family_type : type of Family
    example : Example
    seed : int
        Of the mock survey.
    """

    def __init__(self, family_type: type[Family], example: Example, seed: int = 0):
        self.family_type, self.recipe, self.card = family_type, example.recipe, example.card
        self.records = list(example.records) or _mock_records(example, seed)
        rows = [row_of(self.card, record, apply_cuts=False) for record in self.records]
        self.dataset = _as_dataset(rows, schema_of(self.card))
        self.info = _info(example, rows)
        self.contract = ""

    @property
    def rows(self) -> int:
        return len(self.records)

    def family(self, recipe: Recipe | None = None) -> Family:
        """Return the family bound to a recipe (default: the example's) and to the mock's data."""
        return self.family_type(recipe or self.recipe, self.info)

    @cached_property
    def served(self) -> Columns:
        """The columns a request brings, read-only as Arrow's are."""
        return _frozen(columns_of(self.records, self.info))

    def columns(self, training: bool, rows: Sequence[int] | np.ndarray | None = None) -> Columns:
        """Return what the family's transform asks for, of the dataset or of a request."""
        source = self.dataset if training else self.served
        chosen = slice(None) if rows is None else np.asarray(rows, dtype=int)
        names = self.family().columns(training)
        return _frozen({name: source[name][chosen] for name in names})

    def inputs(self, training: bool, rows: Sequence[int] | np.ndarray | None = None) -> Columns:
        """Return the transformed rows."""
        return self.family().transform(self.columns(training, rows), training=training)

    def asked(self, training: bool, rows: Sequence[int] | np.ndarray | None = None) -> Columns:
        """Return all that a bundle's answer is made from."""
        columns, family = self.columns(training, rows), self.family()
        made = family.transform(columns, training=training)
        more = family.answer_inputs(columns)
        self.require(not set(more) & set(made), "answer_inputs: names of its own", sorted(more))
        count = len(next(iter(columns.values())))
        for name, values in more.items():
            self.require(len(values) == count, f"{name}: {count} rows", np.shape(values))
        return {**made, **more}

    # saying what is broken ------------------------------------------------------------------
    @contextmanager
    def checking(self, contract: str) -> Iterator[None]:
        """Name the contract under check; what the family raises meanwhile breaks it."""
        outer, self.contract = self.contract, contract
        try:
            yield
        except BrokenContract:
            raise
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
            raise self.broken("no error", found) from error
        self.contract = outer

    def require(self, holds: bool, expected: str, found: Any) -> None:
        """Raise `BrokenContract` of the contract under check unless it holds."""
        if not holds:
            raise self.broken(expected, found)

    def require_equal(self, found: Columns, expected: Columns, what: str) -> None:
        """Require the same names, dtypes and values, bit by bit."""
        self.require(set(found) == set(expected), f"{what}: {sorted(expected)}", sorted(found))
        for name, values in expected.items():
            same = found[name].dtype == values.dtype and found[name].shape == values.shape
            self.require(
                same, f"{what}: {name} of {values.dtype} {values.shape}",
                f"{found[name].dtype} {found[name].shape}",
            )  # fmt: skip
            if not same_values(found[name], values):
                difference = _first_difference(found[name], values)
                raise self.broken(f"{what}: the same {name}, bit by bit", difference)

    def broken(self, expected: str, found: Any) -> BrokenContract:
        name = getattr(self.family_type, "name", self.family_type.__name__)
        return BrokenContract(str(name), self.contract, expected, str(found))


def same_values(a: np.ndarray, b: np.ndarray) -> bool:
    """Return whether two arrays hold the same; NaN is the same as NaN."""
    return bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))


def plain(value: Any) -> Any:
    """Return a value as JSON brings it back; raises TypeError where JSON cannot hold it."""
    return json.loads(json.dumps(value))


def survives(value: Any) -> bool:
    """Return whether a value of JSON types is the same after JSON has kept it."""
    return _alike(value, plain(value))


def _alike(value: Any, back: Any) -> bool:
    if isinstance(value, Mapping):
        return set(value) == set(back) and all(_alike(v, back[k]) for k, v in value.items())
    if isinstance(value, list | tuple):
        return len(value) == len(back) and all(map(_alike, value, back))
    return value == back or value != value  # NaN, which our JSON keeps


def _first_difference(found: np.ndarray, expected: np.ndarray) -> str:
    same = found == expected
    if found.dtype.kind == "f":
        same |= np.isnan(found) & np.isnan(expected)
    at = tuple(int(i) for i in np.argwhere(~same)[0])
    return f"{found[at]!r} for {expected[at]!r} at {list(at)}"


def _mock_records(example: Example, seed: int) -> list[Record]:
    survey = make_simulator(example.card, seed)
    labels = example.card.classes
    return [survey.record(labels[i % len(labels)], i // len(labels)) for i in range(example.rows)]


def _as_dataset(rows: list[dict[str, Any]], schema: pa.Schema) -> Columns:
    """Return rows as a dataset gives them back: through its own Arrow types."""
    arrays = []
    for field in schema:
        values = [row[field.name] for row in rows]
        if isinstance(field.type, pa.FixedShapeTensorType):
            arrays.append(tensor_array(np.stack(values), field.type.value_type))
        else:
            arrays.append(pa.array(values, type=field.type))
    return _frozen(table_to_columns(pa.Table.from_arrays(arrays, schema=schema)))


def _info(example: Example, rows: list[dict[str, Any]]) -> DataInfo:
    card = example.card
    counts: dict[str, Counter] = {}
    for row in rows:
        counts.setdefault(row["split"], Counter())[row["label"]] += 1
    return DataInfo(
        card=card.name, record=card.record, classes=tuple(card.classes), coarse=dict(card.coarse),
        fingerprint="0" * 64, grid=card.grid.grid() if card.grid else None,
        counts={split: dict(found) for split, found in counts.items()},
        min_good_pixels=card.min_good_pixels, bands=tuple(card.bands or ()),
        image_size=card.image_size, image_fit=card.image_fit,
        pixel_scale_arcsec=card.pixel_scale_arcsec,
        features=tuple(describe_schema(schema_of(card)).get("features", ())),
    )  # fmt: skip


def _frozen(columns: Columns) -> Columns:
    """Return read-only views: Arrow's memory cannot be written, and a family must not try."""
    views = {name: np.asarray(values).view() for name, values in columns.items()}
    for values in views.values():
        values.flags.writeable = False
    return views
