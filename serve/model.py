"""The model replica: one predictor, fed with batches that span requests."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from ray import serve
from serve.settings import ServiceSettings

from skyray.records import InvalidRecord, Record

Answer = pa.Table | InvalidRecord


@serve.deployment
class RecordModel:
    """Holds one `Predictor`; calls that arrive together are predicted together.

    A call carries up to `max_batch_size` records that were checked before. Separate from the HTTP
    replica, so that decoding scales on CPUs and this scales on its own, on GPUs where there are.
    """

    def __init__(self, settings: ServiceSettings):
        import torch

        from skyray.bundles.bundle import Predictor

        torch.set_num_threads(settings.threads)
        device = "cuda" if settings.gpus_per_replica else "cpu"
        self._predictor = Predictor.from_bundle(settings.bundle, device)
        self._predict_together.set_max_batch_size(settings.max_batch_size)
        self._predict_together.set_batch_wait_timeout_s(settings.batch_wait_s)

    def about(self) -> dict[str, Any]:
        """Return what clients and the HTTP replica need to know about the model."""
        predictor = self._predictor
        return {
            "data": predictor.info.to_dict(),
            "version": predictor.version,
            "describe": predictor.describe(),
        }

    async def predict(self, records: list[Record], detail: bool = False) -> Answer:
        """Return the predictions of `records`, or why they cannot be predicted."""
        if detail:  # arrays for one person's eyes; not worth a batch
            return (await asyncio.to_thread(predict_calls, self._with_detail, [records]))[0]
        return await self._predict_together(records)

    def _with_detail(self, records: list[Record]) -> pa.Table:
        return self._predictor.predict_records(records, detail=True)

    @serve.batch(batch_size_fn=lambda calls: sum(len(records) for records in calls))
    async def _predict_together(self, calls: list[list[Record]]) -> list[Answer]:
        return await asyncio.to_thread(predict_calls, self._predictor.predict_records, calls)


def predict_calls(predict, calls: Sequence[Sequence[Record]]) -> list[Answer]:
    """Predict several calls in one go; return one table a call.

    If the predictor refuses a record, each call is predicted on its own, so that the refusal
    reaches only the call it belongs to.
    """
    try:
        table = predict([record for records in calls for record in records])
    except InvalidRecord:
        return [_predict_alone(predict, records) for records in calls]
    tables, start = [], 0
    for records in calls:
        tables.append(table.slice(start, len(records)))
        start += len(records)
    return tables


def _predict_alone(predict, records: Sequence[Record]) -> Answer:
    try:
        return predict(list(records))
    except InvalidRecord as refused:
        return refused
