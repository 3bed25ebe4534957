"""Turns of provider calls: at most so many at once and so many a second, those of waiting customers first."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

from prometheus_client import Gauge

_WAITING = Gauge("stampede_provider_calls_waiting", "Provider calls that wait for their turn.", ["kind"])
_BURST_SECONDS = 0.1
_URGENT_IN_A_ROW = 3
"""After so many turns of urgent calls, a patient one that waits gets the next: it has at least a quarter of them."""


class _Line:
    """Calls that wait. Payers take turns, so that one with many calls does not delay the others."""

    def __init__(self, kind: str) -> None:
        self._payers: OrderedDict[Hashable, deque[asyncio.Future[None]]] = OrderedDict()
        self._gauge = _WAITING.labels(kind)

    def __bool__(self) -> bool:
        return bool(self._payers)

    def join(self, payer: Hashable) -> asyncio.Future[None]:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._payers.setdefault(payer, deque()).append(turn)
        self._gauge.inc()
        return turn

    def take(self) -> asyncio.Future[None]:
        """Remove and return the next call; the payer goes to the end of the line."""
        payer, turns = self._payers.popitem(last=False)
        turn = turns.popleft()
        if turns:
            self._payers[payer] = turns
        self._gauge.dec()
        return turn


class Pacer:
    """Gives turns to calls: a tenth of a second's calls at once, at least one, and then as the rate allows."""

    def __init__(self, *, calls_per_second: float, concurrency: int) -> None:
        """`calls_per_second` of 0 means no limit."""
        self._rate, self._free = calls_per_second, concurrency
        self._burst = self._tokens = max(calls_per_second * _BURST_SECONDS, 1.0)
        self._filled = 0.0
        self._urgent, self._patient = _Line("urgent"), _Line("patient")
        self._in_a_row = 0
        self._timer: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def turn(self, payer: Hashable = None, *, patient: bool = False) -> AsyncIterator[None]:
        """Wait for a turn, and hold a place until the block ends. A `patient` call lets urgent ones go first.

        Calls of one `payer` queue behind each other; one without a payer queues for itself.
        """
        line = self._patient if patient else self._urgent
        turn = line.join(object() if payer is None else payer)
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

    def _leave(self) -> None:
        self._free += 1
        self._give_turns()

    def _give_turns(self) -> None:
        while self._free and (self._urgent or self._patient) and self._has_token():
            turn = self._next()
            if not turn.done():  # else its caller is gone
                self._free -= 1
                self._tokens -= 1 if self._rate else 0
                turn.set_result(None)

    def _next(self) -> asyncio.Future[None]:
        if self._patient and (not self._urgent or self._in_a_row >= _URGENT_IN_A_ROW):
            self._in_a_row = 0
            return self._patient.take()
        self._in_a_row += 1
        return self._urgent.take()

    def _has_token(self) -> bool:
        """Whether the rate allows a call now; if not, turns are given again as soon as it does."""
        if not self._rate:
            return True
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._tokens = min(self._tokens + (now - self._filled) * self._rate, self._burst)
        self._filled = now
        if self._tokens >= 1:
            return True
        if self._timer is None:
            self._timer = loop.call_later((1 - self._tokens) / self._rate, self._on_timer)
        return False

    def _on_timer(self) -> None:
        self._timer = None
        self._give_turns()
