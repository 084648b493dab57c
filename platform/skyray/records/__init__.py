"""The three records skyray knows: Spectrum, Cutout and Alert; their Arrow schemas and checks.

A *record* is one object as read from a survey file. Readers yield records, ``ingest`` writes them
as Arrow rows, and everything downstream reads only those rows.
"""

from skyray.records.alert import STAMPS, Alert, alert_schema, check_alert
from skyray.records.boundary import NotNow, attempt, each_or_all, refusal_of, to_the_end
from skyray.records.columns import (
    SCHEMA_VERSION,
    SPLITS,
    InvalidRecord,
    check_table,
    describe_schema,
    tensor_array,
    tensor_type,
    tensor_values,
)
from skyray.records.cutout import Cutout, check_cutout, cutout_schema
from skyray.records.spectrum import (
    Grid,
    Spectrum,
    as_float32,
    check_spectrum,
    ivar_fault,
    spectrum_schema,
    trusted,
)
from skyray.records.statements import StatementCount, statements_text

Record = Spectrum | Cutout | Alert

__all__ = [
    "SCHEMA_VERSION", "SPLITS", "STAMPS", "Alert", "Cutout", "Grid", "InvalidRecord", "NotNow",
    "Record", "Spectrum", "StatementCount", "alert_schema", "as_float32", "attempt", "check_alert",
    "check_cutout", "check_spectrum", "check_table", "cutout_schema", "describe_schema",
    "each_or_all", "ivar_fault", "refusal_of", "spectrum_schema", "statements_text",
    "tensor_array", "tensor_type", "tensor_values", "to_the_end", "trusted",
]  # fmt: skip
