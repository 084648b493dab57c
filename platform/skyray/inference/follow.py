"""Follow a stream of survey files or messages, score them as they come, and lose none.

Delivery is at least once, the result holds everything once: a batch is written as one file, whole
or not at all, before the source is told; what is delivered again after a crash is recognised by
its object_id and left out. Packets that cannot be used are kept with their reason.

Layout::

    OUT/scored/*.parquet     one row an object: identity, predictions, model version, source
    OUT/refused/*.parquet    source, observation_id, object_id, reason, detail
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa
import ray
from pyarrow.parquet import write_table
from tqdm import tqdm

from skyray.bundles.bundle import Predictor, read_bundle
from skyray.cards import Card, load_card
from skyray.config import ConfigError
from skyray.data.outcomes import REFUSAL_FIELDS
from skyray.data.rows import admit
from skyray.inference.predict import IDENTITY
from skyray.readers import foreign_arrow
from skyray.readers.base import make_reader
from skyray.readers.memory import memory_file
from skyray.readers.read_records import read_records
from skyray.records import InvalidRecord, Record, each_or_all
from skyray.runtime import places

SCORED, REFUSED = "scored", "refused"
_RESTARTS = 3  # of a scorer whose node is lost


@dataclass(frozen=True)
class Message:
    """One delivery: where it came from, and its bytes."""

    source: str
    content: bytes


class Source(Protocol):
    """What can be followed."""

    def poll(self, most: int, wait_s: float) -> list[Message]:
        """Return up to `most` deliveries; none after `wait_s` seconds without any."""

    def done(self, messages: Sequence[Message]) -> None:
        """Take note that these are safe: they need not be delivered again."""

    def close(self) -> None:
        """Let go of the stream; what is not safe is delivered to the next who follows."""


class FolderSource:
    """New files of a folder, in the order of their names, without those `known` already.

    Files must appear whole (written aside and renamed), as brokers' archives do.
    """

    def __init__(self, card: Card, folder: str, known: Iterable[str] = ()):
        self._reader = make_reader(card.reader, card.reader_options)
        self._folder = places.absolute(folder)
        self._seen = set(known)

    def poll(self, most: int, wait_s: float) -> list[Message]:
        deadline = time.monotonic() + wait_s
        while True:
            filesystem, _ = places.resolve(self._folder)
            new = [
                path
                for path, _ in places.list_files(self._folder)
                if path not in self._seen and self._reader.claims(path)
            ][:most]
            if new or time.monotonic() >= deadline:
                self._seen.update(new)
                return [Message(path, _read(filesystem, path)) for path in new]
            time.sleep(min(0.5, wait_s))

    def done(self, messages: Sequence[Message]) -> None:
        """Nothing to note: files of a finished batch are known by what was written."""

    def close(self) -> None:
        """Nothing is held."""


def _read(filesystem, path: str) -> bytes:
    with filesystem.open_input_file(path) as stream:
        return stream.read()


class KafkaSource:
    """A Kafka topic as a consumer group; offsets are committed after a batch has been written.

    Parameters
    ----------
    uri : str
        ``kafka://HOST:PORT/TOPIC?group=NAME``; further query parameters are passed to the client
        (``security.protocol=SASL_SSL`` …).
    """

    def __init__(self, uri: str):
        try:
            from confluent_kafka import Consumer
        except ImportError:
            raise ConfigError(
                f"{uri}: needs the Kafka client: pip install 'skyray[kafka]'"
            ) from None
        parts = urlsplit(uri)
        topic = parts.path.strip("/")
        if not parts.netloc or not topic:
            raise ConfigError(f"{uri}: expected kafka://HOST:PORT/TOPIC?group=NAME")
        options = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        settings = {
            "group.id": options.pop("group", "skyray"),
            "auto.offset.reset": "earliest",
            **options,
            "bootstrap.servers": parts.netloc,
            "enable.auto.commit": False,
        }
        self._consumer = Consumer(settings)
        self._consumer.subscribe([topic])
        self._offsets: dict[str, Any] = {}

    def poll(self, most: int, wait_s: float) -> list[Message]:
        found = []
        for message in self._consumer.consume(most, timeout=wait_s):
            if message.error():
                if message.error().retriable() or not message.error().fatal():
                    continue
                raise RuntimeError(f"kafka: {message.error()}")
            source = f"{message.topic()}/{message.partition()}/{message.offset()}"
            self._offsets[source] = message
            found.append(Message(source, message.value() or b""))  # None: a tombstone
        return found

    def done(self, messages: Sequence[Message]) -> None:
        from confluent_kafka import TopicPartition

        ends: dict[tuple[str, int], int] = {}
        for message in messages:
            kept = self._offsets.pop(message.source)
            place = (kept.topic(), kept.partition())
            ends[place] = max(ends.get(place, 0), kept.offset() + 1)
        positions = [TopicPartition(*place, end) for place, end in ends.items()]
        self._consumer.commit(offsets=positions, asynchronous=False)

    def close(self) -> None:
        """Leave the group: else its next member waits until this one's session has timed out."""
        self._consumer.close()


@ray.remote
class Scorer:
    """Reads and scores batches of messages; one of the pool."""

    def __init__(self, bundle: str, card: str, threads: int):
        import torch

        torch.set_num_threads(threads)
        self._predictor = Predictor.from_bundle(bundle)
        self._card = Card.model_validate_json(card)
        self._reader = make_reader(self._card.reader, self._card.reader_options)

    def score(self, messages: list[Message]) -> tuple[pa.Table | None, list[dict[str, str]]]:
        """Return the predictions of all usable records, and why the others are not."""
        records: list[Record] = []
        sources: list[str] = []
        refused: list[dict[str, str]] = []
        for message in messages:
            for item in self._items(message):
                if isinstance(item, InvalidRecord):
                    refused.append(_refusal(item, message.source))
                else:
                    records.append(item)
                    sources.append(message.source)
        scored: list[pa.Table] = []
        answers = each_or_all(self._predict, records) if records else []
        for answer, source in zip(answers, sources, strict=True):
            if isinstance(answer, InvalidRecord):
                refused.append(_refusal(answer, source))
            else:
                scored.append(answer.append_column("source", pa.array([source])))
        return (pa.concat_tables(scored) if scored else None), refused

    def _items(self, message: Message) -> Iterator[Record | InvalidRecord]:
        file = memory_file(message.content, message.source)
        for item in read_records(self._reader, file):
            yield admit(item, self._predictor.info)

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


def _refusal(error: InvalidRecord, source: str) -> dict[str, str]:
    return {
        "source": source,
        "observation_id": error.object_id,
        "object_id": error.object_id,
        "reason": error.reason,
        "detail": error.detail[:1000],
    }


@dataclass(frozen=True)
class FollowResult:
    """What was done in this call; `repeated` deliveries were known already."""

    out: str
    scored: int
    refused: int
    repeated: int


class _Ledger:
    """What the output holds, so that nothing enters it twice."""

    def __init__(self, out: str):
        self.out = out
        self.objects = set(_column(places.join(out, SCORED), "object_id"))
        self.refused = set(_column(places.join(out, REFUSED), "source"))
        self.sources = set(_column(places.join(out, SCORED), "source"))

    def write(self, table: pa.Table | None, refused: list[dict[str, str]]) -> FollowResult:
        """Write what is new of a batch; the file's name follows from its rows."""
        new = table.filter(pa.array(self._new(table))) if table is not None else None
        rows = [row for row in refused if row["source"] not in self.refused]
        scored = new.num_rows if new is not None else 0
        if rows:  # first: a file counts as done when its scores are there
            content = pa.Table.from_pylist(rows, schema=pa.schema(REFUSAL_FIELDS))
            _write_table(self._place(REFUSED, [row["source"] for row in rows]), content)
            self.refused.update(row["source"] for row in rows)
        if scored:
            _write_table(self._place(SCORED, new["object_id"].to_pylist()), new)
            self.objects.update(new["object_id"].to_pylist())
        total = table.num_rows if table is not None else 0
        repeated = total - scored + len(refused) - len(rows)
        return FollowResult(self.out, scored, len(rows), repeated)

    def _new(self, table: pa.Table) -> list[bool]:
        fresh, within = [], set()
        for name in table["object_id"].to_pylist():
            fresh.append(name not in self.objects and name not in within)
            within.add(name)
        return fresh

    def _place(self, folder: str, names: Sequence[str]) -> str:
        digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:20]
        return places.join(self.out, folder, f"{digest}.parquet")


def _write_table(uri: str, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    write_table(table, sink, compression="zstd")
    places.write_bytes(uri, sink.getvalue())


def _column(folder: str, name: str) -> Iterator[str]:
    if places.exists(folder):
        filesystem, _ = places.resolve(folder)
        for path, _ in places.list_files(folder):
            if path.endswith(".parquet"):
                yield from foreign_arrow.read_table(path, columns=[name], filesystem=filesystem)[
                    name
                ].to_pylist()


def open_source(uri: str, card: Card, known: Iterable[str] = ()) -> Source:
    """Return what a URI names: a Kafka topic, or a folder."""
    return KafkaSource(uri) if uri.startswith("kafka://") else FolderSource(card, uri, known)


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
        Folder (or URI of one) that survey files arrive in, or ``kafka://HOST:PORT/TOPIC``.
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
    chosen = load_card(card or read_bundle(bundle)["data"]["card"])
    ledger = _Ledger(places.absolute(out))
    following = open_source(source, chosen, ledger.sources)
    place = Scorer.options(
        num_cpus=1, num_gpus=1 if use_gpu else 0, max_restarts=_RESTARTS, max_task_retries=_RESTARTS
    )
    text = chosen.model_dump_json()
    pool = [place.remote(places.absolute(bundle), text, 1) for _ in range(workers)]
    with closing(following), tqdm(desc="follow", unit="object", disable=not progress) as bar:
        pump = _Pump(following, ledger, deque(pool), bar)
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

    def __init__(self, source: Source, ledger: _Ledger, pool: deque, bar: tqdm):
        self.source, self.ledger, self.pool, self.bar = source, ledger, pool, bar
        self.running: deque[tuple[Any, Any, list[Message]]] = deque()
        self.taken = 0
        self.total = FollowResult(ledger.out, 0, 0, 0)

    def take(self, wanted: int, wait_s: float) -> bool:
        """Start a batch if there is one and a scorer is free, finish the oldest one if not."""
        messages = self.source.poll(wanted, wait_s) if self.pool and wanted else []
        if messages:
            self.taken += len(messages)
            new = [m for m in messages if m.source not in self.ledger.sources]
            scorer = self.pool.popleft()
            self.running.append((scorer.score.remote(new), scorer, messages))
        if self.running and not (messages and self.pool):
            self._finish()
        return bool(messages)

    def _finish(self) -> None:
        answer, scorer, messages = self.running.popleft()
        done = self.ledger.write(*ray.get(answer))
        self.source.done(messages)
        self.pool.append(scorer)
        self.total = FollowResult(
            done.out,
            self.total.scored + done.scored,
            self.total.refused + done.refused,
            self.total.repeated + done.repeated,
        )
        self.bar.update(done.scored)
        self.bar.set_postfix(refused=self.total.refused, repeated=self.total.repeated)
