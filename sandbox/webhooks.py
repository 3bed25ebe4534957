"""Sends events to the configured URL: signed, retried until they are accepted, without delaying requests.

Memory is bounded: at most `QUEUE_MAX` events are queued in it, and at most `RETRIES_MAX` of them for a retry. Further
events stay in the journal; memory holds one number for each.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import random
import time
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import aiohttp

from sandbox.faults import WebhookFaults
from sandbox.rows import Event, Json
from sandbox.settings import Target
from sandbox.state.journal import Place

log = logging.getLogger(__name__)

CONCURRENCY = 16
QUEUE_MAX = 10_000
RETRIES_MAX = 2_000
ATTEMPTS_MAX = 16
TIMEOUT_S = 10.0
BACKOFF_FIRST_S = 0.25
BACKOFF_MAX_S = 60.0
REORDER_S = 0.25


@dataclass(slots=True)
class Delivery:
    """One event to send, and how often it was tried."""

    event: Event
    attempts: int = 0
    faults_applied: bool = False


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an event goes. `write` returns its body and the headers that sign it with a secret at a second."""

    target: Target
    write: Callable[[Event, str, int], tuple[bytes, dict[str, str]]]


class Webhooks:
    """The outgoing queue. `offer` never blocks, `start` begins to send, `stop` leaves the rest in the journal."""

    def __init__(
        self,
        *,
        endpoint: Callable[[Event], Endpoint],
        faults: WebhookFaults,
        read: Callable[[int, int], Event],
        done: Callable[[Event], None],
    ) -> None:
        self._endpoint = endpoint
        self._faults = faults
        self._read = read
        self._done = done
        self._ready: deque[Delivery] = deque()
        # Offset and index of events beyond the queue: eight bytes each, the oldest at `_spill_head`.
        self._spilled: array[int] = array("Q")
        self._spill_head = 0
        self._later: list[tuple[float, int, Delivery]] = []
        self._number = count()
        self._wake = asyncio.Event()
        self._slots = asyncio.Semaphore(CONCURRENCY)
        self._in_flight: set[asyncio.Task[None]] = set()
        self._runner: asyncio.Task[None] | None = None
        self._session: aiohttp.ClientSession | None = None
        self.delivered = 0
        self.failed_attempts = 0
        self.given_up = 0
        self.dropped = 0

    def offer(self, event: Event | None, place: Place) -> None:
        """Queues the event at `place` in the journal; with None, it is read from there when it is sent."""
        if event is not None and len(self._ready) < QUEUE_MAX and not self.spilled:
            self._ready.append(Delivery(event))
        else:
            self._spilled.append(place[0] << 8 | place[1])
        self._wake.set()

    @property
    def spilled(self) -> int:
        return len(self._spilled) - self._spill_head

    @property
    def waiting(self) -> int:
        """Events that are neither delivered nor given up yet."""
        return len(self._ready) + len(self._later) + self.spilled + len(self._in_flight)

    def counts(self) -> Json:
        return {
            "waiting": self.waiting,
            "spilled": self.spilled,
            "delivered": self.delivered,
            "failed_attempts": self.failed_attempts,
            "given_up": self.given_up,
            "dropped": self.dropped,
        }

    def start(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=CONCURRENCY),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
        )
        self._runner = asyncio.create_task(self._run(), name="webhooks")

    async def stop(self) -> None:
        """Stops at once; the journal still has undelivered events as pending."""
        tasks = [task for task in (self._runner, *self._in_flight) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def _run(self) -> None:
        while True:
            await self._slots.acquire()
            delivery = await self._next()
            task = asyncio.create_task(self._attempt(delivery))
            self._in_flight.add(task)
            task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        self._slots.release()
        self._wake.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("webhook delivery failed unexpectedly", exc_info=error)

    async def _next(self) -> Delivery:
        """The next delivery that is due; retries first, as they are older."""
        while True:
            self._wake.clear()
            now = time.monotonic()
            if self._later and self._later[0][0] <= now:
                return heapq.heappop(self._later)[2]
            if not self._ready and self.spilled:
                self._refill()
            if self._ready and len(self._later) < RETRIES_MAX:
                delivery = self._ready.popleft()
                if not self._apply_faults(delivery, now):
                    return delivery
                continue
            timeout = self._later[0][0] - now if self._later else None
            try:
                async with asyncio.timeout(timeout):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _refill(self) -> None:
        stop = min(len(self._spilled), self._spill_head + QUEUE_MAX // 20)
        for packed in self._spilled[self._spill_head : stop]:
            self._ready.append(Delivery(self._read(packed >> 8, packed & 0xFF)))
        self._spill_head = stop
        if self._spill_head * 2 >= len(self._spilled):
            del self._spilled[: self._spill_head]
            self._spill_head = 0

    def _apply_faults(self, delivery: Delivery, now: float) -> bool:
        """Applies the active faults once; returns whether they dropped or delayed the delivery."""
        faults = self._faults
        if delivery.faults_applied:
            return False
        delivery.faults_applied = True
        if faults.drop.fires():
            self.dropped += 1
            self._done(delivery.event)
            return True
        if faults.duplicate.fires():
            self._postpone(Delivery(delivery.event, faults_applied=True), now)
        wait_s = faults.delay_ms / 1000
        if faults.reorder.fires():
            wait_s += random.random() * REORDER_S  # noqa: S311 - spreads arrivals
        if wait_s:
            self._postpone(delivery, now + wait_s)
        return wait_s > 0

    def _postpone(self, delivery: Delivery, due: float) -> None:
        heapq.heappush(self._later, (due, next(self._number), delivery))
        self._wake.set()

    async def _attempt(self, delivery: Delivery) -> None:
        delivery.attempts += 1
        problem = await self._send(delivery.event)
        if problem is None:
            self.delivered += 1
            self._done(delivery.event)
            return
        self.failed_attempts += 1
        if delivery.attempts >= ATTEMPTS_MAX:
            self.given_up += 1
            log.error("webhook given up", extra={"event": delivery.event.id, "problem": problem})
            self._done(delivery.event)
            return
        if delivery.attempts == 1:
            log.warning("webhook refused", extra={"event": delivery.event.id, "problem": problem})
        backoff_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** (delivery.attempts - 1))
        # Jitter spreads the retries of events that failed at the same time.
        spread = 0.5 + random.random() / 2  # noqa: S311
        self._postpone(delivery, time.monotonic() + backoff_s * spread)

    async def _send(self, event: Event) -> str | None:
        """Posts one event; returns None if it was accepted, else the failure."""
        assert self._session is not None
        endpoint = self._endpoint(event)
        payload, headers = endpoint.write(event, endpoint.target.secret, int(time.time()))
        try:
            async with self._session.post(
                endpoint.target.url,
                data=payload,
                headers=headers,
                allow_redirects=False,
            ) as answer:
                # A connection can be reused only after its answer was read.
                await answer.content.read(4096)
                return None if 200 <= answer.status < 300 else f"HTTP {answer.status}"
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return f"{type(error).__name__}: {error}"
