"""Turns of the calls to one provider: so many at once, so many a second by endpoint, and urgent ones first."""

import asyncio
import enum
import heapq
import itertools
from collections import Counter, deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from prometheus_client import Counter as Counted
from prometheus_client import Gauge

_WAITING = Gauge(
    "stampede_provider_calls_waiting", "Provider calls that wait for their turn.", ["provider", "endpoint"]
)
_REFUSED = Counted("stampede_provider_calls_refused_total", "Calls that found a full queue.", ["provider", "endpoint"])
_BURST_SECONDS = 0.1
_PENALTY_SECONDS = 1.0
_URGENT_IN_A_ROW = 3
"""After so many turns of urgent calls, a patient one that waits gets the next: it has at least a quarter of them."""
QUEUE_MOST = 2_000
"""Calls of one endpoint that wait. At 100 calls a second, the last of them waits for as long as a hold's grace."""


class Endpoint(enum.StrEnum):
    """The kinds of calls. Each has a queue of its own, and some a share of the provider's calls a second."""

    CHARGE = "charge"
    """Takes, captures or voids money. Somebody's money or units wait for it."""
    CHECK = "check"
    """Asks about one charge or refund."""
    OPEN = "open"
    """Begins a charge that a customer may pay later."""
    REFUND = "refund"
    LIST = "list"
    """Reads lists, page by page."""


_URGENT = (Endpoint.CHARGE, Endpoint.CHECK)
_PATIENT = (Endpoint.REFUND, Endpoint.OPEN, Endpoint.LIST)
SHARES = {Endpoint.REFUND: 0.25, Endpoint.LIST: 0.25}
"""The greatest part of the calls a second that an endpoint gets. Stripe allows some of its endpoints a quarter."""
_LATEST = datetime.max.replace(tzinfo=UTC)


class QueueFull(Exception):
    """Too many calls of this endpoint wait. This one was not sent."""


class _Line:
    """The calls of one endpoint that wait.

    The first waiting call of each payer goes before the second ones, so a payer with many calls does not delay the
    others. Among these, the one whose hold ends first goes first.
    """

    def __init__(self, provider: str, endpoint: Endpoint, rate: float) -> None:
        self.bucket = _Bucket(rate * SHARES.get(endpoint, 1.0))
        self._calls: list[tuple[int, datetime, int, Hashable, asyncio.Future[None]]] = []
        self._of_payer: Counter[Hashable] = Counter()
        self._number = itertools.count()
        self._gauge, self._refused = _WAITING.labels(provider, endpoint), _REFUSED.labels(provider, endpoint)

    def __bool__(self) -> bool:
        return bool(self._calls)

    def join(self, payer: Hashable, until: datetime | None) -> asyncio.Future[None]:
        if len(self._calls) >= QUEUE_MOST:
            self._refused.inc()
            raise QueueFull()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        payer = object() if payer is None else payer
        heapq.heappush(self._calls, (self._of_payer[payer], until or _LATEST, next(self._number), payer, turn))
        self._of_payer[payer] += 1
        self._gauge.inc()
        return turn

    def take(self) -> asyncio.Future[None]:
        """Remove and return the next call."""
        *_, payer, turn = heapq.heappop(self._calls)
        self._of_payer[payer] -= 1
        if not self._of_payer[payer]:
            del self._of_payer[payer]
        self._gauge.dec()
        return turn


class _Bucket:
    """A token bucket: a tenth of a second's tokens at once, at least one. A rate of 0 means no limit."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._burst = self._tokens = max(rate * _BURST_SECONDS, 1.0)
        self._filled = 0.0

    def seconds_to_token(self, now: float) -> float:
        """How long until there is a token; 0 if there is one."""
        if not self.rate:
            return 0.0
        self._tokens = min(self._tokens + max(now - self._filled, 0.0) * self.rate, self._burst)
        self._filled = max(now, self._filled)
        return max((1 - self._tokens) / self.rate, 0.0)

    def take(self) -> None:
        self._tokens -= 1 if self.rate else 0


class Pacer:
    """Gives turns to the calls of one process."""

    def __init__(self, provider: str = "", *, calls_per_second: float, concurrency: int) -> None:
        """`calls_per_second` of 0 means no limit."""
        self._free = concurrency
        self._bucket = _Bucket(calls_per_second)
        self._lines = {endpoint: _Line(provider, endpoint, calls_per_second) for endpoint in Endpoint}
        self._patient = deque(_PATIENT)
        self._in_a_row = 0
        self._rest_until = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def turn(
        self, endpoint: Endpoint, payer: Hashable = None, *, until: datetime | None = None
    ) -> AsyncIterator[None]:
        """Wait for a turn, and hold a place until the block ends. Raises `QueueFull`.

        Calls of one `payer` queue behind each other; one without a payer queues for itself. `until` is the end of the
        hold that waits for the call.
        """
        turn = self._lines[endpoint].join(payer, until)
        self._give_turns()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self._leave()  # it was cancelled in the moment in which it got its turn
            raise
        try:
            yield
        finally:
            self._leave()

    def slow_down(self) -> None:
        """Give no turns for a second: the provider says that calls are too many."""
        self._rest_until = asyncio.get_running_loop().time() + _PENALTY_SECONDS

    def _leave(self) -> None:
        self._free += 1
        self._give_turns()

    def _give_turns(self) -> None:
        while self._free and (line := self._next_line()):
            turn = line.take()
            if not turn.done():  # else its caller is gone
                self._free -= 1
                self._bucket.take()
                line.bucket.take()
                turn.set_result(None)

    def _next_line(self) -> _Line | None:
        """Return the line whose call goes next; None if none waits, or if the rate allows none now."""
        now = asyncio.get_running_loop().time()
        pause = max(self._bucket.seconds_to_token(now), self._rest_until - now)
        waits = {endpoint: line.bucket.seconds_to_token(now) for endpoint, line in self._lines.items() if line}
        if not waits:
            return None
        ready = [endpoint for endpoint, wait in waits.items() if wait <= 0]
        if pause > 0 or not ready:
            self._wake_after(max(pause, min(waits.values())))
            return None
        urgent = next((endpoint for endpoint in _URGENT if endpoint in ready), None)
        patient = next((endpoint for endpoint in self._patient if endpoint in ready), None)
        if patient and (not urgent or self._in_a_row >= _URGENT_IN_A_ROW):
            self._in_a_row = 0
            self._patient.remove(patient)
            self._patient.append(patient)  # they take turns
            return self._lines[patient]
        assert urgent
        self._in_a_row += 1
        return self._lines[urgent]

    def _wake_after(self, seconds: float) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._give_turns()
