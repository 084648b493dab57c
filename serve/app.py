"""The prediction service: POST a spectrum, cutout or alert, get the model's answer and its trust.

What a body holds follows from the bundle: the record type it was trained on. Two deployments:
`PredictionService` speaks HTTP (limits, decoding, refusals), `RecordModel` holds the network and
predicts batches that span requests. Started by ``skyray serve``, or on a cluster by ``serve deploy
serve/config.yaml``.
"""

# No postponed annotations here: Serve ships this class by value, and FastAPI must still find the
# types of its routes.
import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from serve.body import authorise, read_body
from serve.decoding import Decoders, Decoding, Upload
from serve.encode import ARROW_STREAM, arrow_answers, json_answers, refuse_unanswered
from serve.model import Answers, RecordModel
from serve.openapi import (
    READY_RESPONSES,
    describe,
    document,
    predict_documentation,
    predict_responses,
)
from serve.refusal import (
    Refusal,
    answer_bad_query,
    answer_fault,
    answer_http_error,
    answer_refusal,
)
from serve.settings import ServiceSettings, load_settings
from starlette.exceptions import HTTPException

import skyray
from skyray.bundles.bundle import read_bundle
from skyray.bundles.named import pinned
from skyray.cards import load_card
from skyray.families.base import DataInfo
from skyray.inference.serving import TOKEN_VARIABLE
from skyray.records import InvalidRecord, Record

_READY_TIMEOUT_S = 5
_CALLS_AT_ONCE = 4  # chunks of one large request in flight, so that it cannot fill the queue


@serve.deployment
@serve.ingress()
class PredictionService:
    """HTTP side of the service."""

    def __init__(
        self,
        model: serve.handle.DeploymentHandle,
        settings: ServiceSettings,
        token: str,
        record: str,
    ):
        self._model, self._settings, self._token = model, settings, token
        self._record = record
        self._page = Path(__file__).with_name("explorer.html").read_text(encoding="utf-8")
        self._in_flight = 0
        self._decoders = Decoders(settings)
        self._decoding: Decoding | None = None
        self._loading = asyncio.Lock()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the HTTP application; Ray Serve calls this once in every replica."""
        http = FastAPI(
            title="skyray", version=skyray.__version__, description=describe(self._record)
        )
        http.add_exception_handler(Refusal, answer_refusal)
        http.add_exception_handler(HTTPException, answer_http_error)
        http.add_exception_handler(RequestValidationError, answer_bad_query)
        http.add_exception_handler(Exception, answer_fault)
        http.add_api_route("/", self.explorer, include_in_schema=False)
        http.add_api_route("/health", self.health)
        http.add_api_route("/ready", self.ready, responses=READY_RESPONSES)
        http.add_api_route("/model", self.model)
        http.add_api_route(
            "/predict",
            self.predict,
            methods=["POST"],
            openapi_extra=predict_documentation(self._record),
            responses=predict_responses(self._record),
        )
        return document(http, self._record)

    async def explorer(self) -> HTMLResponse:
        policy = "default-src 'self' 'unsafe-inline'; img-src 'self' data:"
        return HTMLResponse(self._page, headers={"Content-Security-Policy": policy})

    async def health(self) -> JSONResponse:
        """Liveness: the HTTP replica answers."""
        return JSONResponse({"status": "ok"})

    async def ready(self) -> JSONResponse:
        """Readiness: a model replica is loaded and answers."""
        about = await self._ask_model(_READY_TIMEOUT_S)
        return JSONResponse({"status": "ready", "model_version": about["version"]})

    async def model(self, request: Request) -> JSONResponse:
        """What the model is: family, data it was trained on, classes, grid, metrics, version."""
        authorise(request, self._token)
        return JSONResponse((await self._ask_model(_READY_TIMEOUT_S))["describe"])

    async def predict(
        self, request: Request, spectrum: bool = False, detail: bool = False, name: str = ""
    ) -> Response:
        """Answer for records what the model was made for (see `/model`).

        `spectrum=true` also returns each spectrum as the service understood it, `detail=true` the
        arrays a model can add (a reconstruction); `name`, which may be left out, is the file name
        of an upload: its content says what it is.
        """
        authorise(request, self._token)
        with self._one_more():
            limits = self._settings
            body = await read_body(request, limits.max_body_bytes, limits.body_timeout_s)
            items = await self._decode(request.headers.get("content-type", ""), body, name)
            items, table = await self._predict(items, detail)
            items, table = refuse_unanswered(items, table)
            return await asyncio.to_thread(_respond, request, items, table, spectrum)

    @contextmanager
    def _one_more(self) -> Iterator[None]:
        """Count a request in, or refuse it: a full house answers at once instead of queueing."""
        if self._in_flight >= self._settings.max_in_flight:
            raise Refusal(503, "busy", f"{self._in_flight} requests are being worked on")
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    async def _decode(self, content_type: str, body: bytes, name: str):
        if self._decoding is None:
            async with self._loading:
                self._decoding = await self._what_decides()
        return await self._decoders.decode(self._decoding, Upload(content_type, body, name))

    async def _what_decides(self) -> Decoding:
        limits = self._settings
        about = await self._ask_model(limits.predict_timeout_s)
        data = DataInfo.from_dict(about["data"])
        card = load_card(limits.card or data.card)
        return Decoding(card, data, limits.max_records, limits.max_body_bytes)

    async def _predict(
        self, items: list[Record | InvalidRecord], detail: bool
    ) -> tuple[list[Record | InvalidRecord], pa.Table | None]:
        """Predict in chunks that fit a batch; return the items, and a table of those answered."""
        records = [item for item in items if not isinstance(item, InvalidRecord)]
        size = self._settings.max_batch_size
        gate = asyncio.Semaphore(_CALLS_AT_ONCE)

        async def call(chunk: list[Record]) -> Answers:
            async with gate:
                return await self._ask(
                    self._model.predict.remote(chunk, detail), self._settings.predict_timeout_s
                )

        chunks = [records[start : start + size] for start in range(0, len(records), size)]
        found = await asyncio.gather(*(call(chunk) for chunk in chunks))
        answers = iter([answer for answers in found for answer in answers])
        items = [i if isinstance(i, InvalidRecord) else _refused(i, next(answers)) for i in items]
        tables = [a for answers in found for a in answers if not isinstance(a, InvalidRecord)]
        return items, pa.concat_tables(tables) if tables else None

    async def _ask_model(self, timeout_s: float) -> dict[str, Any]:
        return await self._ask(self._model.about.remote(), timeout_s, late=503)

    async def _ask(self, response, timeout_s: float, late: int = 504) -> Any:
        try:
            return await asyncio.wait_for(_result(response), timeout_s)
        except TimeoutError:
            response.cancel()
            raise Refusal(
                late, "model_timeout", f"no answer from the model within {timeout_s:g} s"
            ) from None
        except BackPressureError:
            raise Refusal(503, "busy", "the model's queue is full") from None
        except (DeploymentUnavailableError, RayActorError) as error:
            text = f"no model replica: {type(error).__name__}"
            raise Refusal(503, "model_unavailable", text) from None


def _refused(record: Record, answer: pa.Table | InvalidRecord) -> Record | InvalidRecord:
    return answer if isinstance(answer, InvalidRecord) else record


async def _result(response) -> Any:
    return await response


def _respond(request: Request, items, table: pa.Table | None, with_spectrum: bool) -> Response:
    refused = [item for item in items if isinstance(item, InvalidRecord)]
    if len(refused) == len(items):
        answers = json_answers(items, None) if len(items) > 1 else None
        first = refused[0]
        raise Refusal(422, first.reason, first.detail, answers)
    if ARROW_STREAM in request.headers.get("accept", ""):
        return Response(arrow_answers(items, table), media_type=ARROW_STREAM)
    answers = json_answers(items, table, with_spectrum)
    version = next((a["model_version"] for a in answers if "model_version" in a), None)
    return JSONResponse({"model_version": version, "refused": len(refused), "predictions": answers})


def app(args: dict[str, Any]) -> serve.Application:
    """Build the application from the arguments of `ServiceSettings`."""
    settings = load_settings(args)
    # An alias may move while the service runs: all replicas hold the version it means now.
    settings = settings.model_copy(update={"bundle": pinned(settings.bundle)})
    model = RecordModel.options(
        ray_actor_options={
            "num_cpus": settings.cpus_per_replica,
            "num_gpus": settings.gpus_per_replica,
        },
        max_ongoing_requests=settings.max_ongoing,
        max_queued_requests=settings.max_queued,
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": settings.target_ongoing,
        },
    )
    # The service refuses beyond max_in_flight itself, with a reason and Retry-After; Serve's own
    # limit stands a little above it.
    service = PredictionService.options(
        num_replicas=settings.http_replicas,
        ray_actor_options={"num_cpus": 0.25},
        max_ongoing_requests=settings.max_in_flight * 4,
        max_queued_requests=settings.max_in_flight * 4,
    )
    token = os.environ.get(TOKEN_VARIABLE, "")
    record = read_bundle(settings.bundle)["data"]["record"]
    return service.bind(model.bind(settings), settings, token, record)
