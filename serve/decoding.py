"""Bodies are decoded in processes that can be ended, some at a time."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from functools import partial

from serve.decode import decode
from serve.refusal import Refusal
from serve.settings import ServiceSettings
from serve.uploads import Decoded

from skyray.cards import Card
from skyray.data.rows import admit
from skyray.families.data_info import DataInfo
from skyray.records import InvalidRecord
from skyray.runtime import bounded

_SECONDS_PER_MIB = 0.5
_STATUS = {"decode_memory": 413}  # of what was ended; else 400


@dataclass(frozen=True)
class Upload:
    """A request's body, and what it says of it."""

    content_type: str
    body: bytes
    name: str


@dataclass(frozen=True)
class Decoding:
    """What decides how bodies are read: the model's card and data, and the service's limits."""

    card: Card
    data: DataInfo
    max_records: int
    max_bytes: int

    def __call__(self, upload: Upload) -> Decoded:
        """Return the records of a body that the model can use, and refusals in the others' places.

        Raises
        ------
        Refusal
            For a body that cannot be read at all.
        """
        items = decode(
            upload.content_type, upload.body, self.card, self.max_records, self.max_bytes,
            upload.name,
        )  # fmt: skip
        return [admit(item, self.data) for item in items]


class Decoders:
    """The processes of one HTTP replica."""

    def __init__(self, settings: ServiceSettings):
        self._bounds = bounded.Bounds(
            settings.decode_seconds, settings.decode_memory_mib, _SECONDS_PER_MIB
        )
        self._free = asyncio.Semaphore(settings.decode_processes)
        self._wait_s = settings.predict_timeout_s
        self._start(settings.decode_processes)

    async def decode(self, decoding: Decoding, upload: Upload) -> Decoded:
        """Return the records of a body: see `Decoding`.

        Raises
        ------
        Refusal
            400 or 413 for a body that its decoder was ended at, 503 where none gets free in time,
            and what `Decoding` raises.
        """
        try:
            await asyncio.wait_for(self._free.acquire(), self._wait_s)
        except TimeoutError:
            raise Refusal(503, "busy", "all decoders are at work") from None
        try:
            found = await asyncio.to_thread(self._decode, decoding, upload)
        finally:
            self._free.release()
        if isinstance(found, InvalidRecord):
            self._start(1)  # in place of the one that was ended
            raise Refusal(_STATUS.get(found.reason, 400), found.reason, found.detail)
        return found

    def _decode(self, decoding: Decoding, upload: Upload) -> Decoded | InvalidRecord:
        (found,) = bounded.each(decoding, [upload], [len(upload.body)], self._bounds)
        return found

    def _start(self, processes: int) -> None:
        """Start processes while others work; a request that comes earlier starts its own."""
        start = partial(bounded.warm, processes, _nothing)
        threading.Thread(target=start, daemon=True).start()


def _nothing(_: None) -> None:
    """Import this module, and all that decodes, where it is called."""
