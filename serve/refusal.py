"""How the service says no: one exception, one JSON shape."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

RETRY_AFTER_S = 1


class Refusal(Exception):
    """A request that is answered with an error status.

    Parameters
    ----------
    status : int
        HTTP status: 4xx where the request is at fault, 503 or 504 where the service is busy.
    reason : str
        Stable slug for programs, e.g. ``"body_too_large"``.
    detail : str
        What was expected and what was found, for a person.
    items : list of dict, optional
        Answers for the single spectra where a whole batch was refused.
    """

    def __init__(self, status: int, reason: str, detail: str, items: list | None = None):
        super().__init__(f"{status} {reason}: {detail}")
        self.status, self.reason, self.detail = status, reason, detail
        self.items = items

    def __reduce__(self):  # exceptions with several arguments do not pickle by themselves
        return type(self), (self.status, self.reason, self.detail, self.items)

    def response(self) -> JSONResponse:
        """Return the JSON answer; 503 carries Retry-After, 401 the scheme it wants."""
        content: dict[str, Any] = {"error": {"reason": self.reason, "detail": self.detail}}
        if self.items is not None:
            content["predictions"] = self.items
        headers = {}
        if self.status == 503:
            headers["Retry-After"] = str(RETRY_AFTER_S)
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.status in (408, 413):
            headers["Connection"] = "close"  # the rest of the body is not wanted
        return JSONResponse(content, status_code=self.status, headers=headers)


async def answer_refusal(_request: Request, refusal: Refusal) -> JSONResponse:
    """FastAPI's handler for `Refusal`."""
    return refusal.response()


async def answer_http_error(_request: Request, error: HTTPException) -> JSONResponse:
    """FastAPI's handler for unknown paths and methods: the same shape as a `Refusal`."""
    reason = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    response = Refusal(error.status_code, reason, str(error.detail)).response()
    response.headers.update(error.headers or {})
    return response


async def answer_fault(_request: Request, error: Exception) -> JSONResponse:
    """FastAPI's handler for what is the service's own fault; its traceback is in the log."""
    return Refusal(500, "internal_error", f"{type(error).__name__} in the service").response()


async def answer_bad_query(_request: Request, error: RequestValidationError) -> JSONResponse:
    """FastAPI's handler for query parameters of the wrong type."""
    lines = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
    return Refusal(400, "query_invalid", "; ".join(lines)[:300]).response()
