"""The limits of the calls to one provider: turns by endpoint, a bounded queue, and a circuit breaker."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from services.payments.providers.border import Check, NoAnswer, NotSent, Withdrawn
from services.payments.providers.limits.breaker import Breaker
from services.payments.providers.limits.pacer import Endpoint, Pacer, QueueFull

RETRY_SECONDS = 0.5  # once, under the same key; the reconciler handles outcomes that are still unknown
_UNGUARDED = frozenset((Endpoint.LIST,))
"""Lists are read in the background: their answers do not show that a charge gets one, and none of them is urgent."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Turn:
    """The turn that a call waits for."""

    endpoint: Endpoint
    payer: Hashable = None
    """Calls of one payer queue behind each other; one without a payer queues for itself."""
    until: datetime | None = None
    """The end of the hold that waits for the call: of the first calls of all payers, the earliest goes first."""
    check: Check | None = None


class ProviderLimits:
    """The limits of one provider, as one process keeps them. Replicas share the provider's own limit."""

    def __init__(
        self, provider: str, *, calls_per_second: float, concurrency: int, breaker: Breaker | None = None
    ) -> None:
        """`calls_per_second` of 0 means no limit."""
        self.pacer = Pacer(provider, calls_per_second=calls_per_second, concurrency=concurrency)
        self.breaker = breaker or Breaker(provider)

    async def run(self, turn: Turn, send: Callable[[], Awaitable[T]], *, repeats: bool = True) -> T:
        """Send a call within the limits; again if it fails, if a repeat under the same key has no second effect.

        `turn.check` is awaited directly before each try. Raises `NotSent` for a call that is not sent, because the
        circuit is open or the queue is full, and what `send` raises.
        """
        async with self._turn(turn):
            try:
                return await self._try(turn, send)
            except NoAnswer as first:
                if not repeats or first.is_limit:
                    raise
                await asyncio.sleep(RETRY_SECONDS)
                if self._refuses(turn.endpoint):
                    raise
                try:
                    return await self._try(turn, send)
                except NoAnswer as second:
                    second.has_ended = second.has_ended and first.has_ended
                    raise
                except Withdrawn:
                    raise first from None

    async def _try(self, turn: Turn, send: Callable[[], Awaitable[T]]) -> T:
        if turn.check is not None:
            await turn.check()
        is_guarded = turn.endpoint not in _UNGUARDED
        try:
            answer = await send()
        except NoAnswer as failed:
            if failed.is_limit:
                self.pacer.slow_down()
            elif is_guarded:
                self.breaker.note_failure()
            raise
        except Exception:
            if is_guarded:
                self.breaker.note_answer()  # a refusal is an answer
            raise
        if is_guarded:
            self.breaker.note_answer()
        return answer

    @asynccontextmanager
    async def _turn(self, turn: Turn) -> AsyncIterator[None]:
        is_probe = self.breaker.is_open
        if turn.endpoint not in _UNGUARDED and not self.breaker.admits():
            raise NotSent(turn.endpoint)
        try:
            async with self.pacer.turn(turn.endpoint, turn.payer, until=turn.until):
                if self._refuses(turn.endpoint) and not is_probe:
                    raise NotSent(turn.endpoint)  # the circuit has opened while this call waited
                yield
        except QueueFull:
            raise NotSent(turn.endpoint) from None

    def _refuses(self, endpoint: Endpoint) -> bool:
        return self.breaker.is_open and endpoint not in _UNGUARDED
