"""The model replica: one predictor, fed with batches that span requests."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from ray import serve
from serve.settings import ServiceSettings

from skyray.records import InvalidRecord, Record, each_or_all

Answers = list[pa.Table | InvalidRecord]  # one a record: a row, or why there is none


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

    async def predict(self, records: list[Record], detail: bool = False) -> Answers:
        """Return the prediction of each record, or why it cannot be predicted."""
        if detail:  # arrays for one person's eyes; not worth a batch
            return (await asyncio.to_thread(predict_calls, self._with_detail, [records]))[0]
        return await self._predict_together(records)

    def _with_detail(self, records: list[Record]) -> pa.Table:
        return self._predictor.predict_records(records, detail=True)

    @serve.batch(batch_size_fn=lambda calls: sum(len(records) for records in calls))
    async def _predict_together(self, calls: list[list[Record]]) -> list[Answers]:
        return await asyncio.to_thread(predict_calls, self._predictor.predict_records, calls)


def predict_calls(predict, calls: Sequence[Sequence[Record]]) -> list[Answers]:
    """Predict several calls in one go; return the answers of each.

    A record on which the predictor fails is the only one without an answer, in its call and in
    those that came with it.
    """

    def rows(records: Sequence[Record]) -> list[pa.Table]:
        table = predict(list(records))
        return [table.slice(row, 1) for row in range(len(records))]

    together = [record for records in calls for record in records]
    answers = iter(each_or_all(rows, together) if together else [])
    return [[next(answers) for _ in records] for records in calls]
