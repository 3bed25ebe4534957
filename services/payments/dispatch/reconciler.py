"""Background work: repeats provider calls without an answer, applies provider events, counts open payments."""

import asyncio

from prometheus_client import Gauge

from services.chassis.data.db import Database
from services.chassis.events.outbox import Relay
from services.chassis.telemetry.heartbeats import beat
from services.payments.dispatch.dispatcher import ChargeDispatcher
from services.payments.domain import IN_PROGRESS_MOST, State
from services.payments.sql import disputes, leases, lists, payments, refunds, wanted
from services.payments.webhooks import inbox

_OPEN = Gauge("stampede_payments_open", "Payments that have not ended.", ["state"])
_PARKED = Gauge("stampede_money_parked", "Refunds and payments that wait for an operator.", ["kind"])
_OLDEST_REFUND = Gauge("stampede_refunds_oldest_seconds", "Age of the oldest refund that has no end.")
_DISPUTES = Gauge("stampede_disputes_open", "Disputes that have not ended.", ["state"])
_BATCH_MOST = 100
_IDLE_SECONDS = 1.0
_RENEW_SECONDS = 1.5
_HURRY_SECONDS = 30.0
"""For so long after a provider is back, waiting payments are made due: also those whose last call failed just then."""
_GATHER_SECONDS = 0.05  # events arrive one by one; after this pause one transaction applies several
_COUNT_SECONDS = 10.0


class Reconciler:
    """The loops beside the server. Replicas share the work: rows are claimed with SKIP LOCKED."""

    def __init__(self, db: Database, dispatcher: ChargeDispatcher, relay: Relay) -> None:
        self._db, self._dispatcher, self._relay = db, dispatcher, relay
        self._events_wait, self._payments_due = asyncio.Event(), asyncio.Event()
        self._hurry_until = dict[str, float]()

    def wake(self) -> None:
        """Make `apply_events` look into the inbox at once."""
        self._events_wait.set()

    async def reconcile(self) -> None:
        """Repeat the provider calls of due payments and refunds, until cancelled."""
        while beat():
            if not await self.reconcile_once():
                await _wait(self._payments_due, _IDLE_SECONDS)

    async def reconcile_once(self) -> bool:
        """Claim and dispatch due payments and refunds. Return whether more may be due."""
        dispatcher = self._dispatcher
        if dispatcher.draining:
            return False
        await self._make_waiting_due()
        in_progress = dispatcher.payment_ids
        capacity = max(min(_BATCH_MOST, IN_PROGRESS_MOST - len(in_progress)), 0)
        async with self._db.begin() as tx:
            due = await payments.claim_due(tx, besides=in_progress, most=capacity)
        for payment, calls in due:
            dispatcher.advance(payment, calls=calls)
        async with self._db.begin() as tx:
            due_refunds = await refunds.claim_due(tx, besides=dispatcher.refund_ids, most=_BATCH_MOST)
        for refund, calls in due_refunds:
            dispatcher.refund(refund, calls=calls)
        async with self._db.begin() as tx:
            checks = await payments.claim_refund_checks(tx, most=_BATCH_MOST)
        for check in checks:
            dispatcher.check_refunds(check)
        disputed = await disputes.claim_checks(self._db, most=_BATCH_MOST)
        for dispute in disputed:
            dispatcher.check_dispute(dispute)
        return _BATCH_MOST in (len(due), len(due_refunds), len(checks), len(disputed))

    async def _make_waiting_due(self) -> None:
        """Repeat the calls that wait for a provider: all once it is back, and one a second until then."""
        now, recovered = asyncio.get_running_loop().time(), self._dispatcher.recovered
        self._hurry_until |= dict.fromkeys(recovered, now + _HURRY_SECONDS)
        recovered.clear()
        hurried = [name for name, until in self._hurry_until.items() if now < until]
        silent = [name for name in self._dispatcher.silent_providers if name not in hurried]
        if not hurried and not silent:
            return
        async with self._db.begin() as tx:
            if hurried:
                await payments.make_waiting_due(tx, hurried)
            for name in silent:  # so that its return is noticed within a second
                await payments.make_waiting_due(tx, [name], most=1)

    async def renew_leases(self) -> None:
        """Renew the leases of what is in progress here, until cancelled. Those of a dead process expire."""
        while beat():
            await asyncio.sleep(_RENEW_SECONDS)
            paying, refunding = self._dispatcher.payment_ids, self._dispatcher.refund_ids
            if paying or refunding:
                async with self._db.begin() as tx:
                    await leases.renew(tx, "payments", paying)
                    await leases.renew(tx, "refunds", refunding)

    async def apply_events(self) -> None:
        """Apply provider events as they arrive, until cancelled."""
        while beat():
            batch = await inbox.apply_events(self._db, self._dispatcher)
            if batch.size:
                self._relay.nudge()
            if batch.made_due:
                self._payments_due.set()
            if not batch.is_full:
                await _wait(self._events_wait, _IDLE_SECONDS)
                await asyncio.sleep(_GATHER_SECONDS)

    async def watch_events(self) -> None:
        """Update the metrics of provider events and take up parked ones, until cancelled."""
        while beat():
            if await inbox.watch_events(self._db):
                self.wake()
            await asyncio.sleep(_COUNT_SECONDS)

    async def count_open(self) -> None:
        """Update the metrics of open payments, and warn of authorisations that lapse soon, until cancelled."""
        while beat():
            await payments.warn_of_lapses(self._db, self._dispatcher.patience_with_staff)
            counted = await wanted.count_open(self._db)
            for state in (State.PROCESSING, State.AWAITING_CUSTOMER, State.AUTHORIZED):
                _OPEN.labels(state).set(counted.get(state, 0))
            number_of_refunds, number_of_payments, oldest = await lists.count_parked(self._db)
            _PARKED.labels("refund").set(number_of_refunds)
            _PARKED.labels("payment").set(number_of_payments)
            _OLDEST_REFUND.set(oldest)
            for dispute_state, number in (await disputes.count_open(self._db)).items():
                _DISPUTES.labels(dispute_state).set(number)
            await asyncio.sleep(_COUNT_SECONDS)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
    event.clear()
