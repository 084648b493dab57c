"""What the OpenAPI page says about the body and the answers of ``POST /predict``."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import TypeAdapter
from serve.decode import DECODERS
from serve.decode_alerts import AlertJSON, AlertsJSON
from serve.decode_images import CutoutJSON, CutoutsJSON
from serve.decode_json import SpectraJSON, SpectrumJSON
from serve.encode import ARROW_STREAM

_JSON = "application/json"
_BODIES: dict[str, TypeAdapter] = {
    "spectrum": TypeAdapter(SpectrumJSON | SpectraJSON),
    "cutout": TypeAdapter(CutoutJSON | CutoutsJSON),
    "alert": TypeAdapter(AlertJSON | AlertsJSON),
}
_DESCRIPTIONS = {
    "spectrum": """
One spectrum, or a batch, in; class probabilities, redshift ± error, whether the spectrum lies in
the training domain, and the model's version out.

    curl --data-binary @spec-0266-51602-0001.fits -H 'Content-Type: application/fits' \\
         http://127.0.0.1:8000/predict
""",
    "cutout": """
One image, or a batch, in; class probabilities, whether the image lies in the training domain, and
the model's version out.

    curl --data-binary @galaxy.jpg -H 'Content-Type: image/jpeg' http://127.0.0.1:8000/predict
""",
    "alert": """
One alert packet, or a batch, in; its calibrated score, whether the alert lies in the training
domain, and the model's version out. Metadata are computed from the packet as in training.

    curl --data-binary @packet.avro -H 'Content-Type: application/avro' \\
         http://127.0.0.1:8000/predict
""",
}

_SPECTRUM = {
    "object_id": "my-star-1",
    "medium": "vacuum",
    "wavelength": [3800.0, 3800.9, 3801.8, 3802.6],
    "flux": [12.1, 11.8, None, 12.4],
    "ivar": [1.9, 2.0, 0.0, 2.1],
}
_ANSWER = {
    "model_version": "redshift-sdss_dr16-3f2a9c",
    "refused": 1,
    "predictions": [
        {
            "object_id": "my-star-1",
            "label": "QSO_nan",
            "probabilities": {"STAR_A0": 0.001, "GALAXY_nan": 0.013, "QSO_nan": 0.986},
            "redshift": 2.184,
            "redshift_err": 0.006,
            "in_domain": True,
            "model_version": "redshift-sdss_dr16-3f2a9c",
        },
        {
            "object_id": "my-star-2",
            "error": {"reason": "ivar_empty", "detail": "expected some pixels with ivar > 0"},
        },
    ],
}
_EXAMPLES = {
    "one spectrum": {"summary": "arrays shortened; 100 good pixels needed", "value": _SPECTRUM},
    "a batch": {"value": {"spectra": [_SPECTRUM, {**_SPECTRUM, "object_id": "my-star-2"}]}},
}
_REFUSED = {"error": {"reason": "flux_not_finite", "detail": "expected finite flux …, found 3"}}

READY_RESPONSES: dict[int | str, dict[str, Any]] = {
    503: {"description": "No model replica is loaded."}
}
_STATUSES = {
    400: "The body is not what its content type says.",
    401: "Bearer token missing or wrong.",
    403: "A remote client of a service without a token.",
    408: "The body did not arrive in time.",
    413: "Body too large, or too many records.",
    415: "Content type unknown.",
    422: "The record (every record of the batch) cannot be used; the reason says why.",
    503: "Busy: try again after Retry-After seconds.",
    504: "The prediction took too long.",
}


def describe(record: str) -> str:
    """Return the page's introduction for a model of one record type."""
    return _DESCRIPTIONS[record]


def predict_documentation(record: str) -> dict[str, Any]:
    """Return ``openapi_extra`` for the route: its body in all content types, with examples."""
    schema = _BODIES[record].json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    binary = {"schema": {"type": "string", "format": "binary"}}
    content: dict[str, Any] = {kind: binary for kind in DECODERS[record].content_types}
    content[_JSON] = {"schema": schema}
    if record == "spectrum":
        content[_JSON]["examples"] = _EXAMPLES
    return {"requestBody": {"required": True, "content": content}}


def predict_responses(record: str) -> dict[int | str, dict[str, Any]]:
    """Return ``responses`` for the route, every status with an example."""
    refused = {_JSON: {"example": _REFUSED}}
    answered = {_JSON: {"example": _ANSWER} if record == "spectrum" else {}, ARROW_STREAM: {}}
    responses: dict[int | str, dict[str, Any]] = {
        code: {"description": text, "content": refused} for code, text in _STATUSES.items()
    }
    responses[200] = {"description": "One answer a record, in their order.", "content": answered}
    return responses


def document(http: FastAPI, record: str) -> FastAPI:
    """Complete the application's OpenAPI schema with the components of JSON bodies."""
    bodies = _BODIES[record].json_schema(ref_template="#/components/schemas/{model}")
    plain = http.openapi

    def openapi() -> dict[str, Any]:
        schema = plain()
        components = schema.setdefault("components", {}).setdefault("schemas", {})
        components.update(bodies.get("$defs", {}))
        return schema

    http.openapi = openapi
    return http
