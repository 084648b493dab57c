"""Records: the grid, every check of a spectrum with its reason, schemas and tensor columns."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from skyray.records import (
    SPLITS,
    Grid,
    InvalidRecord,
    Spectrum,
    StatementCount,
    alert_schema,
    check_spectrum,
    check_table,
    cutout_schema,
    ivar_fault,
    spectrum_schema,
    statements_text,
    tensor_array,
    tensor_type,
    tensor_values,
)

SIZE = 300


def good() -> Spectrum:
    return Spectrum(
        object_id="1-2-3",
        wavelength=np.linspace(4000.0, 5000.0, SIZE),
        flux=np.ones(SIZE, dtype=np.float32),
        ivar=np.ones(SIZE, dtype=np.float32),
        mask=np.zeros(SIZE, dtype=bool),
        source="file.fits",
        extra={"plate": 7, "snr": "the record's own wins"},
    )


def edited(name: str, where, value) -> Spectrum:
    array = np.array(getattr(good(), name))
    array[where] = value
    return replace(good(), **{name: array})


def test_good_spectrum_passes():
    check_spectrum(good())


EVERY = slice(None)


@pytest.mark.parametrize(
    ("spectrum", "reason"),
    [
        (replace(good(), flux=np.ones(SIZE - 1)), "shape_mismatch"),
        (replace(good(), mask=np.zeros(3, dtype=bool)), "shape_mismatch"),
        (replace(good(), **{n: np.ones((2, 2)) for n in ("wavelength", "flux", "ivar", "mask")}),
         "shape_mismatch"),
        (replace(good(), **{n: np.ones(1) for n in ("wavelength", "flux", "ivar", "mask")}),
         "too_short"),
        (edited("wavelength", 4, np.nan), "wavelength_not_finite"),
        (edited("wavelength", 0, -1.0), "wavelength_not_finite"),
        (edited("wavelength", 4, 4000.0), "wavelength_not_increasing"),
        (replace(good(), wavelength=good().wavelength[::-1]), "wavelength_decreasing"),
        (edited("ivar", 3, np.nan), "ivar_not_finite"),
        (edited("ivar", 3, np.inf), "ivar_not_finite"),
        (edited("ivar", 3, -1e-9), "ivar_negative"),
        (edited("ivar", EVERY, 0.0), "ivar_empty"),
        (edited("flux", 3, np.nan), "flux_not_finite"),
        (edited("flux", 3, -np.inf), "flux_infinite"),
        (edited("flux", EVERY, np.nan), "flux_all_nan"),
        (edited("flux", EVERY, 0.0), "flux_all_zero"),
        (edited("mask", slice(99, None), True), "too_few_good_pixels"),
        (edited("mask", EVERY, True), "too_few_good_pixels"),
    ],
)  # fmt: skip
def test_reasons(spectrum, reason):
    with pytest.raises(InvalidRecord) as refusal:
        check_spectrum(spectrum)
    assert refusal.value.reason == reason
    assert (refusal.value.source, refusal.value.object_id) == ("file.fits", "1-2-3")
    assert "expected" in refusal.value.detail


def test_rubbish_where_nothing_was_measured_is_allowed():
    check_spectrum(replace(edited("flux", 3, np.nan), mask=edited("mask", 3, True).mask))
    check_spectrum(replace(edited("flux", 3, np.nan), ivar=edited("ivar", 3, 0.0).ivar))


def test_fluxes_whose_sum_is_beyond_their_type_are_finite():
    check_spectrum(edited("flux", EVERY, 3e38))


def test_number_of_good_pixels_is_the_callers():
    spectrum = edited("mask", slice(50, None), True)
    check_spectrum(spectrum, min_good_pixels=50)
    with pytest.raises(InvalidRecord, match="≥ 51 good pixels, found 50"):
        check_spectrum(spectrum, min_good_pixels=51)


def test_order_names_the_pixel():
    with pytest.raises(InvalidRecord, match="at pixel 9"):
        check_spectrum(edited("wavelength", 10, 4001.0))


def test_ivar_fault_of_good_values():
    assert ivar_fault(np.array([0.0, 1.0])) is None


def test_invalid_record_survives_pickling():
    error = InvalidRecord("flux_nan", "detail", "file.fits", "1")
    again = pickle.loads(pickle.dumps(error))
    assert (again.reason, again.detail, again.source, again.object_id) == (
        "flux_nan", "detail", "file.fits", "1")  # fmt: skip
    assert str(again) == "file.fits: flux_nan: detail"


def test_fields_are_what_cards_cut_on():
    fields = good().fields()
    assert fields["plate"] == 7
    assert np.isnan(fields["snr"])  # `extra` cannot hide a field of the record
    assert fields["object_id"] == "1-2-3"


@pytest.mark.parametrize(
    ("grid", "first", "last"),
    [
        (Grid("linear", 3600.0, 0.8, 7781), 3600.0, 9824.0),
        (Grid("log10", 3.55, 1e-4, 4700), 10**3.55, 10 ** (3.55 + 0.4699)),
    ],
)
def test_grid(grid, first, last):
    wavelength = grid.wavelength()
    assert wavelength.dtype == np.float64
    assert wavelength.shape == (grid.size,)
    assert (wavelength[0], wavelength[-1]) == (pytest.approx(first), pytest.approx(last))
    assert Grid(**grid.to_dict()) == grid


@pytest.mark.parametrize("wrong", [("log", 1, 1, 5), ("linear", 1, 0, 5), ("linear", 1, 1, 1)])
def test_grid_refuses(wrong):
    with pytest.raises(ValueError, match="expected"):
        Grid(*wrong)


@given(
    st.sampled_from([(3,), (2, 4), (3, 5, 5)]).flatmap(
        lambda shape: arrays(np.float32, (7, *shape), elements=st.floats(-1e6, 1e6, width=32))
    )
)
def test_tensor_round_trip(values):
    column = tensor_array(values, pa.float32())
    assert column.type == tensor_type(pa.float32(), values.shape[1:])
    assert column.type.permutation is None  # Ray's sort and groupby fail with one
    np.testing.assert_array_equal(tensor_values(column), values)
    pieces = pa.chunked_array([column[:3], column[3:]])
    np.testing.assert_array_equal(tensor_values(pieces), values)


def test_tensor_of_no_rows():
    empty = pa.chunked_array([], type=tensor_type(pa.float32(), (4,)))
    assert tensor_values(empty).shape == (0, 4)


def table(grid: Grid, **change) -> pa.Table:
    schema = spectrum_schema(grid)
    values = {
        f.name: tensor_array(np.zeros((2, grid.size)), f.type.value_type)
        if isinstance(f.type, pa.FixedShapeTensorType)
        else pa.array(["train", "test"] if f.name == "split" else [None, None], f.type)
        for f in schema
    }
    for name in ("observation_id", "object_id", "object_key", "label", "source"):
        values[name] = pa.array(["a", "b"])
    return pa.table({**values, **change})


def test_table_of_the_schema_passes():
    grid = Grid("linear", 1.0, 1.0, 4)
    check_table(table(grid), spectrum_schema(grid))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ra": pa.array([1, 2])}, "column_type"),
        ({"label": pa.array(["a", None])}, "column_null"),
        ({"split": pa.array(["train", "holdout"])}, "split_unknown"),
    ],
)
def test_table_faults(change, reason):
    grid = Grid("linear", 1.0, 1.0, 4)
    with pytest.raises(InvalidRecord) as refusal:
        check_table(table(grid, **change), spectrum_schema(grid))
    assert refusal.value.reason == reason


def test_missing_column_and_other_grid():
    grid = Grid("linear", 1.0, 1.0, 4)
    with pytest.raises(InvalidRecord, match=r"column_missing.*flux"):
        check_table(table(grid).drop_columns("flux"), spectrum_schema(grid))
    with pytest.raises(InvalidRecord, match="column_type"):
        check_table(table(grid), spectrum_schema(Grid("linear", 1.0, 1.0, 5)))


def test_schemas_of_the_other_records():
    cutout = cutout_schema(["g", "r"], 64, 48)
    assert cutout.field("image").type == tensor_type(pa.float32(), [2, 64, 48])
    alert = alert_schema(63, ["a", "b", "c"])
    assert alert.field("triplet").type == tensor_type(pa.float32(), [3, 63, 63])
    assert alert.field("metadata").type == tensor_type(pa.float32(), [3])
    assert SPLITS == ("train", "validation", "test")


def test_statements_are_counted_by_what_was_decided():
    count = StatementCount()
    for medium, rows in (("air: TUCD1", 3), ("vacuum: card", 2), ("air: TUCD1", 1)):
        count.add(statements_text({"medium": medium, "flux_unit": "Jy: TUNIT2"}), rows)
    count.add(statements_text({}), 7)
    assert count.snapshot() == {
        "flux_unit": {"Jy: TUNIT2": 6}, "medium": {"air: TUCD1": 4, "vacuum: card": 2},
    }  # fmt: skip


def test_statements_are_bounded_whatever_a_reader_says():
    count = StatementCount()
    for n in range(500):
        many = {f"decision {n} {k}": "x" * 9_999 for k in range(99)}
        count.add(statements_text({"velocity": f"{n} km/s: VELOSYS", **many}), 1)
    found = count.snapshot()
    assert sum(found["velocity"].values()) == 500
    assert max(len(found), *(len(counts) for counts in found.values())) <= 26
    assert len(statements_text(many)) < 20_000
