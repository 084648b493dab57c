"""JSON body → records, and the schema that documents spectra."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import from_json
from serve.refusal import Refusal
from serve.uploads import too_many

from skyray.readers.column_facts import ColumnFacts
from skyray.readers.spectrum_values import Meaning, ascending, decide
from skyray.readers.table_options import WavelengthOptions
from skyray.records import InvalidRecord, Record, Spectrum, attempt
from skyray.transforms.spectra import median_snr

_Item = TypeVar("_Item", bound=BaseModel)
MAX_PIXELS = 200_000
_MAX_FIELDS = 64  # of an item: each that is unknown is a fault of its own
# A list is refused at its first fault: a fault takes a thousand times the memory of a number.
Pixels = Annotated[list[float | None], Field(fail_fast=True, max_length=MAX_PIXELS)]


class SpectrumJSON(BaseModel):
    """One spectrum. Arrays have one length; null stands for a value that was not measured."""

    model_config = ConfigDict(extra="forbid")

    wavelength: Pixels = Field(description="Å, strictly increasing or decreasing")
    flux: Pixels = Field(description="1e-17 erg/s/cm²/Å (any linear unit serves the classifier)")
    ivar: Pixels | None = Field(None, description="inverse variance of flux; 0 = not measured")
    error: Pixels | None = Field(None, description="standard deviation of flux, instead of ivar")
    mask: Annotated[list[bool], Field(fail_fast=True, max_length=MAX_PIXELS)] | None = Field(
        None, description="true = bad pixel"
    )
    object_id: Annotated[str, Field(max_length=200)] | int = ""
    redshift: float | None = Field(None, description="for models that need it; others ignore it")
    medium: Literal["vacuum", "air"] = Field(description="what the wavelengths are measured in")

    @model_validator(mode="after")
    def _one_noise(self):
        if (self.ivar is None) == (self.error is None):
            raise ValueError("expected either ivar or error")
        return self


class SpectraJSON(BaseModel):
    """Several spectra in one request."""

    model_config = ConfigDict(extra="forbid")

    spectra: list[SpectrumJSON] = Field(min_length=1)


def decode_json(body: bytes, max_records: int) -> list[Spectrum | InvalidRecord]:
    """Return the spectra of a JSON body: one spectrum, or ``{"spectra": [...]}``.

    Raises
    ------
    Refusal
        400, naming the first fields that are not as documented.
    """
    return json_records(body, SpectrumJSON, "spectra", _to_spectrum, max_records)


def json_records(
    body: bytes,
    model: type[_Item],
    key: str,
    make: Callable[[_Item, int], Record | InvalidRecord],
    max_records: int,
) -> list[Record | InvalidRecord]:
    """Return the records of a JSON body: one item, or a list of them in the field `key`.

    An item of a list that is not as documented is refused in its place, the others are read.

    Raises
    ------
    Refusal
        400, naming the first fields that are not as documented, of what holds one item or no list;
        413 for more than `max_records`.
    """
    try:
        value = from_json(body)
    except ValueError as error:
        raise Refusal(400, "not_json", str(error)[:300]) from None
    if not isinstance(value, dict) or key not in value:
        found = _item(model, value, 0)
        if isinstance(found, InvalidRecord):
            raise Refusal(400, found.reason, found.detail)
        return [attempt(lambda: make(found, 0), _source(0))]
    if list(value) != [key] or not isinstance(value[key], list) or not value[key]:
        fields = sorted(value)[:20]
        detail = f"expected {key}, a list of at least one, and nothing else; found {fields}"
        raise Refusal(400, "json_invalid", detail[:600])
    if len(value[key]) > max_records:
        raise too_many(max_records)

    def record(item: Any, row: int) -> Record | InvalidRecord:
        found = _item(model, item, row)
        return found if isinstance(found, InvalidRecord) else make(found, row)

    return [
        attempt(lambda item=item, row=row: record(item, row), _source(row))
        for row, item in enumerate(value[key])
    ]


def _item(model: type[_Item], value: Any, row: int) -> _Item | InvalidRecord:
    if isinstance(value, dict) and len(value) > _MAX_FIELDS:
        detail = f"expected at most {_MAX_FIELDS} fields, found {len(value):,}"
        return InvalidRecord("json_invalid", detail, _source(row))
    try:
        return model.model_validate(value)
    except ValidationError as error:
        return InvalidRecord("json_invalid", _explain(error), _source(row))


def _source(row: int) -> str:
    return f"request[{row}]"


def _explain(error: ValidationError) -> str:
    def line(item: dict) -> str:
        return f"{'.'.join(str(part) for part in item['loc']) or 'body'}: {item['msg']}"

    found = error.errors(include_url=False, include_input=False, include_context=False)
    more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
    return ("; ".join(line(item) for item in found[:3]) + more)[:600]


def _to_spectrum(item: SpectrumJSON, row: int) -> Spectrum | InvalidRecord:
    is_error = item.ivar is None
    return build_spectrum(
        _meaning(item.medium, is_error),
        wavelength=np.array(item.wavelength, dtype=np.float64),
        flux=np.array(item.flux, dtype=np.float64),
        noise=np.array(item.error if is_error else item.ivar, dtype=np.float64),
        mask=None if item.mask is None else np.array(item.mask, dtype=bool),
        object_id=str(item.object_id) or str(row),
        source=_source(row),
        redshift=float("nan") if item.redshift is None else item.redshift,
    )


@lru_cache(maxsize=4)
def _meaning(medium: str, is_error: bool) -> Meaning:
    """Return what the numbers of a JSON body mean: Å, and fluxes as they are."""
    facts = {name: ColumnFacts(name) for name in ("flux", "noise")}
    facts["wavelength"] = ColumnFacts("wavelength", unit="Angstrom", origin="request")
    axis = WavelengthOptions(column="wavelength")
    return decide("request", None, facts, axis, medium, None, is_error)


def build_spectrum(
    meaning: Meaning,
    *,
    wavelength: np.ndarray,
    flux: np.ndarray,
    noise: np.ndarray,
    mask: np.ndarray | None,
    object_id: str,
    source: str,
    redshift: float = float("nan"),
) -> Spectrum | InvalidRecord:
    """Return a record from a client's arrays [L], as readers make one from a file's.

    A standard deviation of 0 or NaN marks an unmeasured pixel; a negative one is refused.
    """
    mask = np.zeros(flux.shape, dtype=bool) if mask is None else mask
    shapes = [array.shape for array in (wavelength, flux, noise, mask)]
    if len(set(shapes)) > 1:
        detail = f"expected one length of wavelength, flux, noise and mask, found {shapes}"
        return InvalidRecord("shape_mismatch", detail, source, object_id)
    if meaning.noise_is_error:
        if (noise < 0).any():
            return InvalidRecord("error_negative", "expected error ≥ 0", source, object_id)
        noise = np.where(np.isfinite(noise), noise, 0.0)

    def arrays() -> tuple[np.ndarray, ...]:
        axis = meaning.wavelength(wavelength)
        return ascending(axis, *meaning.flux(axis, flux, noise, mask), mask)

    with np.errstate(all="ignore"):  # absurd values become inf or NaN and are refused by name
        made = attempt(arrays, source, object_id)
        if isinstance(made, InvalidRecord):
            return made
        return Spectrum(
            object_id, *made, redshift=redshift, snr=median_snr(*made[1:]), survey="request",
            source=source, statements=meaning.statements,
        )  # fmt: skip
