"""Background work: asks the provider about what stays open, applies its events, and tidies up."""

import asyncio

from prometheus_client import Gauge

from services.chassis.data.db import Database
from services.chassis.events.outbox import Relay
from services.payments import actions, webhooks
from services.payments.domain import IN_FLIGHT_MOST, State
from services.payments.flights import Flights

_OPEN = Gauge("stampede_payments_open", "Payments that have not come to rest.", ["state"])
_BATCH_MOST = 100
_IDLE_SECONDS = 1.0
_RENEW_SECONDS = 1.5
_GATHER_SECONDS = 0.05  # events come singly; a moment later there are several, at the cost of one
_TIDY_SECONDS = 600.0
_COUNT_SECONDS = 10.0


class Worker:
    """The loops beside the server. Any number of replicas share the work: rows are taken with SKIP LOCKED."""

    def __init__(self, db: Database, flights: Flights, relay: Relay) -> None:
        self._db, self._flights, self._relay = db, flights, relay
        self._events, self._due = asyncio.Event(), asyncio.Event()

    def nudge(self) -> None:
        """Says that the inbox has something new."""
        self._events.set()

    async def reconcile(self) -> None:
        """Asks again about each payment and refund whose time has come, until cancelled."""
        while True:
            more = await self.reconcile_once()
            if not more:
                await _wait(self._due, _IDLE_SECONDS)

    async def reconcile_once(self) -> bool:
        """Takes what is due; whether there may be more of it."""
        flights = self._flights
        if flights.draining:
            return False
        room = max(min(_BATCH_MOST, IN_FLIGHT_MOST - len(flights.payments)), 0)
        payments = await actions.claim_due(self._db, besides=flights.payments, most=room)
        for payment, key_expired in payments:
            flights.ask(payment, key_expired=key_expired)
        refunds = await actions.claim_due_refunds(self._db, besides=flights.refunds, most=_BATCH_MOST)
        for refund, key_expired in refunds:
            flights.pay_back(refund, key_expired=key_expired)
        return len(payments) == _BATCH_MOST or len(refunds) == _BATCH_MOST

    async def renew(self) -> None:
        """Keeps the leases of what is in flight here, until cancelled. Those of a dead process run out."""
        while True:
            await asyncio.sleep(_RENEW_SECONDS)
            payments, refunds = self._flights.payments, self._flights.refunds
            if payments or refunds:
                await actions.renew(self._db, payments=payments, refunds=refunds)

    async def read_inbox(self) -> None:
        """Applies the provider's events as they come, until cancelled."""
        while True:
            done = await webhooks.process(self._db)
            if done.events:
                self._relay.nudge()
            if done.look:
                self._due.set()
            if not done.more:
                await _wait(self._events, _IDLE_SECONDS)
                await asyncio.sleep(_GATHER_SECONDS)

    async def tidy(self) -> None:
        """Forgets what nobody needs any more, until cancelled."""
        while True:
            await actions.forget_old(self._db)
            await asyncio.sleep(_TIDY_SECONDS)

    async def count(self) -> None:
        """Keeps the metric of open payments, until cancelled."""
        while True:
            counted = await actions.count_open(self._db)
            for state in (State.PROCESSING, State.AWAITING_CUSTOMER):
                _OPEN.labels(state).set(counted.get(state, 0))
            await asyncio.sleep(_COUNT_SECONDS)


async def _wait(news: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await news.wait()
    except TimeoutError:
        pass
    news.clear()
