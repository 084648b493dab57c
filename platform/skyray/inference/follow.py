"""Follow a stream of survey files or messages, score them as they come, and lose none.

Delivery is at least once, the result holds everything once: a batch is written as one file, whole
or not at all, before the source is told; what is delivered again after a crash is recognised by
its observation and content, and counted. Packets that cannot be used are kept with their reason,
those of a stream with their bytes.

Layout::

    OUT/scored/*.parquet     one row an object: identity, predictions, model version, source, digest
    OUT/refused/*.parquet    source, observation_id, object_id, reason, detail, digest, content
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from typing import Any

import pyarrow as pa
import ray

from skyray.bundles.bundle import Predictor, read_bundle
from skyray.bundles.named import located
from skyray.cards import Card, load_card
from skyray.inference.follow_ledger import DIGEST, FollowResult, Ledger
from skyray.inference.predict import IDENTITY
from skyray.inference.streams import Message, Source, decoded, open_source, with_registry
from skyray.records import InvalidRecord, Record, each_or_all
from skyray.runtime import bounded, places
from skyray.runtime.progress import Row, task

_RESTARTS = 3  # of a scorer whose node is lost


@ray.remote
class Scorer:
    """Reads and scores batches of messages; one of the pool."""

    def __init__(self, bundle: str, card: str, bounds: bounded.Bounds, keeps: bool, threads: int):
        import torch

        torch.set_num_threads(threads)
        self._predictor = Predictor.from_bundle(bundle)
        self._card = Card.model_validate_json(card)
        self._decode = partial(decoded, card, self._predictor.info)
        self._bounds, self._keeps = bounds, keeps

    def score(self, messages: list[Message]) -> tuple[pa.Table | None, list[dict[str, Any]]]:
        """Return the predictions of all usable records, and why the others are not.

        Raises
        ------
        RegistryDown
            The schemas of messages cannot be had now; the messages are to be delivered again.
        """
        records: list[Record] = []
        about: list[dict[str, Any]] = []
        refused: list[dict[str, Any]] = []
        sizes = [len(message.content) for message in messages]
        decoded = bounded.each(self._decode, messages, sizes, self._bounds)
        for message, found in zip(messages, decoded, strict=True):
            told = {
                "source": message.source, "delivery": message.digest,
                "content": None if self._keeps else message.content,
            }  # fmt: skip
            for item, digest in [(found, "")] if isinstance(found, InvalidRecord) else found:
                if isinstance(item, InvalidRecord):
                    refused.append(_refusal(item, told))
                else:
                    records.append(item)
                    about.append({**told, DIGEST: digest})
        scored: list[pa.Table] = []
        answers = each_or_all(self._predict, records) if records else []
        for answer, told in zip(answers, about, strict=True):
            if isinstance(answer, InvalidRecord):
                refused.append(_refusal(answer, told))
            else:
                scored.append(_delivered(answer, told))
        return (pa.concat_tables(scored) if scored else None), refused

    def _predict(self, records: Sequence[Record]) -> list[pa.Table]:
        """Return a table of one row a record."""
        table = self._predictor.predict_records(records)
        rows = [
            {
                **r.fields(),
                "observation_id": r.observation_id or r.object_id,
                "object_key": self._card.key_of(r.fields()),
            }
            for r in records
        ]
        for column in reversed(IDENTITY[self._predictor.info.record][1:]):
            if column.name not in table.column_names:
                values = pa.array([row[column.name] for row in rows])
                table = table.add_column(1, column.name, values)
        return [table.slice(row, 1) for row in range(len(records))]


def _delivered(answer: pa.Table, told: dict[str, Any]) -> pa.Table:
    for name in ("source", DIGEST, "delivery"):
        answer = answer.append_column(name, pa.array([told[name]], pa.string()))
    return answer.append_column("content", pa.array([told["content"]], pa.large_binary()))


def _refusal(error: InvalidRecord, told: dict[str, Any]) -> dict[str, Any]:
    return {
        "source": told["source"],
        "observation_id": error.object_id,
        "object_id": error.object_id,
        "reason": error.reason,
        "detail": error.detail[:1000],
        DIGEST: told["delivery"],
        "content": told["content"],
    }


def follow(
    bundle: str,
    source: str,
    out: str,
    *,
    card: str | None = None,
    workers: int = 1,
    batch: int = 128,
    wait_s: float = 2.0,
    idle_s: float | None = None,
    most: int | None = None,
    use_gpu: bool = False,
    progress: bool = True,
) -> FollowResult:
    """Score a stream until it is interrupted; Ray must have been started.

    Parameters
    ----------
    source : str
        Folder (or URI of one) that survey files arrive in, or
        ``kafka://HOST:PORT/TOPIC?group=NAME&schema.registry.url=URL`` (both optional).
    card : str, optional
        Card of the stream; default: the bundle's own.
    workers : int
        Scorers at work at once, one CPU (or GPU) each.
    batch : int
        Deliveries scored and written together.
    wait_s : float
        How long to wait for deliveries before looking again.
    idle_s : float, optional
        Stop after so long without a delivery; default: never.
    most : int, optional
        Stop after so many deliveries.
    """
    bundle = located(bundle)
    chosen = with_registry(load_card(card or read_bundle(bundle)["data"]["card"]), source)
    ledger = Ledger(places.absolute(out))
    following = open_source(source, chosen, ledger.sources)
    place = Scorer.options(
        num_cpus=1, num_gpus=1 if use_gpu else 0, max_restarts=_RESTARTS, max_task_retries=_RESTARTS
    )
    text = chosen.model_dump_json()
    uri = places.absolute(bundle)
    bounds = bounded.Bounds.of_environment()
    pool = [place.remote(uri, text, bounds, following.keeps, 1) for _ in range(workers)]
    with closing(following), task("follow", unit="object", show=progress) as shown:
        pump = _Pump(following, ledger, deque(pool), shown)
        last = time.monotonic()
        while True:
            wanted = batch if most is None else min(batch, most - pump.taken)
            if pump.take(wanted, wait_s):
                last = time.monotonic()
            elif not pump.running:
                idle = idle_s is not None and time.monotonic() - last >= idle_s
                if idle or wanted == 0:
                    return pump.total


class _Pump:
    """Moves deliveries from the source through the scorers into the ledger, in order."""

    def __init__(self, source: Source, ledger: Ledger, pool: deque, shown: Row):
        self.source, self.ledger, self.pool, self.shown = source, ledger, pool, shown
        self.running: deque[tuple[Any, Any, list[Message]]] = deque()
        self.taken = 0
        self.total = FollowResult(ledger.out, 0, 0, 0)

    def take(self, wanted: int, wait_s: float) -> bool:
        """Start a batch if there is one and a scorer is free, finish the oldest one if not."""
        messages = self.source.poll(wanted, wait_s) if self.pool and wanted else []
        if messages:
            self.taken += len(messages)
            scorer = self.pool.popleft()
            self.running.append((scorer.score.remote(messages), scorer, messages))
        if self.running and not (messages and self.pool):
            self._finish()
        return bool(messages)

    def _finish(self) -> None:
        answer, scorer, messages = self.running.popleft()
        done = self.ledger.write(*ray.get(answer))
        self.source.done(messages)
        self.pool.append(scorer)
        self.total = self.total.plus(done)
        more = f"{self.total.refused:,} refused, {self.total.repeated:,} repeated"
        self.shown.advance(done.scored, more)
