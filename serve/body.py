"""Reading a request body: never more than allowed, never longer than allowed."""

from __future__ import annotations

import asyncio
import hmac

from serve.refusal import Refusal
from starlette.requests import ClientDisconnect, Request

from skyray.inference.serving import LOOPBACK


async def read_body(request: Request, max_bytes: int, timeout_s: float) -> bytes:
    """Return the body of a request.

    Raises
    ------
    Refusal
        413 as soon as more than `max_bytes` are announced or have arrived; 408 if the body is not
        complete after `timeout_s`; 400 for an empty one or a bad Content-Length.
    """
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal():
        raise Refusal(400, "bad_content_length", f"expected a number, found {announced[:40]!r}")
    if int(announced) > max_bytes:
        raise _too_large(max_bytes)
    try:
        async with asyncio.timeout(timeout_s):
            body = await _collect(request, max_bytes)
    except TimeoutError:
        raise Refusal(
            408, "body_timeout", f"expected the whole body within {timeout_s:g} s"
        ) from None
    except ClientDisconnect:
        raise Refusal(400, "client_left", "the client closed the connection") from None
    if not body:
        raise Refusal(400, "body_empty", "expected a spectrum in the body, found nothing")
    return body


async def _collect(request: Request, max_bytes: int) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
    return bytes(body)


def _too_large(max_bytes: int) -> Refusal:
    return Refusal(413, "body_too_large", f"expected at most {max_bytes:,} bytes")


def authorise(request: Request, token: str) -> None:
    """Let a request pass if it carries the token, or comes from this machine and none is set.

    Raises
    ------
    Refusal
        401 for a missing or wrong bearer token; 403 for a remote client of a service without one.
    """
    if not token:
        client = request.client.host if request.client else ""
        if client in LOOPBACK:
            return
        raise Refusal(
            403, "token_not_configured", "this service has no token and answers its own host only"
        )
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    good = hmac.compare_digest(given.strip().encode(), token.encode())
    if scheme.lower() != "bearer" or not good:
        raise Refusal(401, "token_wrong", "expected the header Authorization: Bearer TOKEN")
