"""Reads the events that a provider lists, so that one whose webhook was lost is found."""

import asyncio
from datetime import timedelta

import structlog

from services.chassis.data.db import Database
from services.chassis.telemetry.heartbeats import beat
from services.payments.providers import PaymentProvider
from services.payments.providers.results import Unknown
from services.payments.sql import provider_events
from services.payments.webhooks.inbox import Inbox

log = structlog.get_logger()

EVERY_SECONDS = 10.0
# A walk takes at most a tenth of the time, and so of the calls that the provider allows.
_REST = 9
_REST_SECONDS_MOST = 45.0
_WALK_SECONDS_MOST = 45.0
# An event may be listed late, and the provider's clock may differ.
_OVERLAP = timedelta(seconds=60)
_SPAN_LEAST, _SPAN_MOST = timedelta(seconds=60), timedelta(hours=6)
_PUT_MOST = 200


class EventWalk:
    """The walks through one provider's events. One process of all replicas makes each of them."""

    def __init__(self, db: Database, provider: PaymentProvider, inbox: Inbox) -> None:
        self._db, self._provider, self._inbox = db, provider, inbox
        self._span = _SPAN_MOST

    async def run(self) -> None:
        """Walk every ten seconds, or less often if a walk takes long; until cancelled."""
        clock = asyncio.get_running_loop().time
        while beat():
            started = clock()
            await self.walk_once()
            await asyncio.sleep(min(max(EVERY_SECONDS, (clock() - started) * _REST), _REST_SECONDS_MOST))

    async def walk_once(self, *, pause: float = EVERY_SECONDS) -> None:
        """Store the events since the last walk, unless another process has walked less than `pause` seconds ago."""
        claimed = await provider_events.claim_walk(self._db, self._provider.name, pause=pause)
        if claimed is None:
            return
        since, now = claimed
        until = min(now, since + self._span)
        try:
            async with asyncio.timeout(_WALK_SECONDS_MOST):
                listed = await self._provider.list_events(since - _OVERLAP, until + _OVERLAP)
        except TimeoutError:
            listed = Unknown(too_many=True)
        if isinstance(listed, Unknown):
            if listed.too_many:
                self._narrow()
            return
        self._span = min(self._span * 2, _SPAN_MOST)
        for first in range(0, len(listed), _PUT_MOST):
            await asyncio.gather(*(self._inbox.put(event) for event in listed[first : first + _PUT_MOST]))
        await provider_events.advance_walk(self._db, self._provider.name, until)

    def _narrow(self) -> None:
        self._span = max(self._span / 4, _SPAN_LEAST)
        log.warning("the events of a span are too many", seconds=self._span.total_seconds())
