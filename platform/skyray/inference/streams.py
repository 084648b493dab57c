"""What can be followed: a folder that survey files arrive in, or a Kafka topic."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

from skyray.cards import Card
from skyray.config import ConfigError
from skyray.data.rows import admit, content_digest
from skyray.families.data_info import DataInfo
from skyray.readers.base import Reader, make_reader
from skyray.readers.memory import memory_file
from skyray.readers.read_records import read_records
from skyray.records import InvalidRecord, Record
from skyray.runtime import places
from skyray.runtime.progress import tell

REGISTRY = "schema.registry.url"
_HOPELESS = (
    "TOPIC_AUTHORIZATION_FAILED", "GROUP_AUTHORIZATION_FAILED", "CLUSTER_AUTHORIZATION_FAILED",
    "SASL_AUTHENTICATION_FAILED", "UNSUPPORTED_SASL_MECHANISM", "_AUTHENTICATION",
)  # fmt: skip


@dataclass(frozen=True)
class Message:
    """One delivery: where it came from, and its bytes."""

    source: str
    content: bytes

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(self.content).hexdigest()[:32]


def decoded(
    card: str, info: DataInfo, message: Message
) -> list[tuple[Record | InvalidRecord, str]]:
    """Return what a message holds, and digests of the records that can be used."""
    found = []
    for item in read_records(_reader(card), memory_file(message.content, message.source)):
        record = admit(item, info)
        refused = isinstance(record, InvalidRecord)
        found.append((record, "" if refused else content_digest(record, info)))
    return found


@lru_cache(maxsize=4)
def _reader(card: str) -> Reader:
    """Return the reader of a card, which keeps the schemas that it has asked for."""
    about = Card.model_validate_json(card)
    return make_reader(about.reader, about.reader_options)


class Source(Protocol):
    """What can be followed.

    `keeps` says whether a delivery can be had again after `done`: if not, refused ones are kept
    with their bytes.
    """

    keeps: bool

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

    keeps = True

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
        (``security.protocol=SASL_SSL`` …), but ``schema.registry.url``, which goes to the reader.
    """

    keeps = False

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
        options = _query(uri)
        options.pop(REGISTRY, None)
        settings = {
            "group.id": options.pop("group", "skyray"),
            "auto.offset.reset": "earliest",
            **options,
            "bootstrap.servers": parts.netloc,
            "enable.auto.commit": False,
        }
        self._consumer = Consumer(settings)
        self._consumer.subscribe([topic])
        self._offsets: dict[str, tuple[str, int, int]] = {}
        self._told = ""

    def poll(self, most: int, wait_s: float) -> list[Message]:
        found = []
        for message in self._consumer.consume(most, timeout=wait_s):
            if message.error():
                self._check(message.error())
                continue
            place = message.topic(), message.partition(), message.offset()
            source = "/".join(map(str, place))
            self._offsets[source] = place
            found.append(Message(source, message.value() or b""))  # None: a tombstone
        return found

    def _check(self, error: Any) -> None:
        """Raise where waiting is of no use; else tell once what is waited for."""
        if error.fatal() or error.name() in _HOPELESS:
            raise RuntimeError(f"kafka: {error}")
        self._tell(f"kafka: {error}; waiting")

    def _tell(self, text: str) -> None:
        if text != self._told:
            self._told = text
            tell(text)

    def done(self, messages: Sequence[Message]) -> None:
        from confluent_kafka import KafkaException, TopicPartition

        ends: dict[tuple[str, int], int] = {}
        for message in messages:
            topic, partition, offset = self._offsets.pop(message.source)
            ends[topic, partition] = max(ends.get((topic, partition), 0), offset + 1)
        positions = [TopicPartition(*place, end) for place, end in ends.items()]
        try:
            self._consumer.commit(offsets=positions, asynchronous=False)
        except KafkaException as error:  # the partitions went to another member meanwhile
            if error.args[0].fatal() or error.args[0].name() in _HOPELESS:
                raise
            self._tell(f"kafka: offsets not noted, deliveries will come again: {error.args[0]}")

    def close(self) -> None:
        """Leave the group: else its next member waits until this one's session has timed out."""
        self._consumer.close()


def _query(uri: str) -> dict[str, str]:
    return {key: values[-1] for key, values in parse_qs(urlsplit(uri).query).items()}


def open_source(uri: str, card: Card, known: Iterable[str] = ()) -> Source:
    """Return what a URI names: a Kafka topic, or a folder."""
    return KafkaSource(uri) if uri.startswith("kafka://") else FolderSource(card, uri, known)


def with_registry(card: Card, uri: str) -> Card:
    """Return the card with the schema registry that a Kafka URI names, if it names one."""
    registry = _query(uri).get(REGISTRY) if uri.startswith("kafka://") else None
    if not registry:
        return card
    return card.model_copy(update={"reader_options": {**card.reader_options, "schemas": registry}})
