"""Puts state, journal, keys and webhooks together; `commit` is the only function that changes them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from sandbox.faults import Faults
from sandbox.razorpay import notices as razorpay_notices
from sandbox.razorpay.book import RazorpayBook
from sandbox.rows import Event, Work
from sandbox.settings import Settings
from sandbox.state.group_commit import GroupCommit
from sandbox.state.journal import Journal, KeyRecord, Place
from sandbox.state.keys import Keys
from sandbox.state.store import Store
from sandbox.stripe import clock as stripe_clock
from sandbox.stripe import notices as stripe_notices
from sandbox.stripe.book import StripeBook
from sandbox.webhooks import Endpoint, Webhooks
from sandbox.wire.errors import Refusal

Changed = TypeVar("Changed")

log = logging.getLogger(__name__)

# A smaller file is loaded faster than it is rewritten.
COMPACT_ABOVE_BYTES = 1 << 20
TICK_S = 0.5
# How the events of each protocol are written.
_WRITERS = {StripeBook.name: stripe_notices.write, RazorpayBook.name: razorpay_notices.write}


def _nothing(_event_type: str) -> bool:
    return False


class Sandbox:
    """One provider. It loads its state when created; nothing happens by itself before `start`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.faults = Faults(latency_ms=settings.latency_ms)
        self.base_url = ""
        self._forget()
        self.journal = Journal(settings.state, self.store.kinds)
        pending = self._load()
        if self.journal.size > COMPACT_ABOVE_BYTES:
            self._compact(pending)
            self._forget()
            pending = self._load()
        self.store.drop_surplus()
        self._group = GroupCommit(self.journal, self._send_until)
        self._ticking: asyncio.Task[None] | None = None
        self._unsent: deque[tuple[Event, Place]] = deque()
        self.webhooks: Webhooks | None = None
        if settings.webhooks:
            self.webhooks = Webhooks(
                endpoint=self._endpoint,
                faults=self.faults.webhooks,
                read=self.journal.event_at,
                done=self._delivered,
            )
            for place in pending.values():
                self.webhooks.offer(None, place)

    def now(self) -> int:
        """The current second, but never earlier than a stored row, because lists are in order of time."""
        return max(int(time.time()), self.store.newest)

    def work(self, protocol: str, request_id: str | None = None, idempotency_key: str | None = None) -> Work:
        """The empty work of one request; without a request id, of something that happens by itself."""
        target = self.settings.webhooks.get(protocol)
        return Work(
            now=self.now(),
            request_id=request_id,
            idempotency_key=idempotency_key,
            base_url=self.base_url,
            fee_later=self.faults.late_fee,
            wants_webhook=_nothing if target is None else target.wants,
        )

    def commit(self, work: Work, key: KeyRecord | None = None, body: bytes = b"") -> None:
        """Writes the journal and applies the changes. Webhooks are queued once the disk has them.

        It awaits nothing, so no request sees half of another request's changes. No answer may leave before `durable`.
        """
        if not work.changes and key is None:
            return
        offset = self.journal.append(work.changes, key, body)
        self.store.apply(work.changes)
        self.store.drop_surplus()
        if key is not None:
            self.keys.finish(key._replace(offset=offset))
        if self.webhooks is not None:
            for index, change in enumerate(work.changes):
                if isinstance(change, Event) and change.pending:
                    self._unsent.append((change, (offset, index)))
        self._group.begin()

    async def perform(self, work: Work, rule: Callable[[], Changed]) -> Changed:
        """Applies a rule, and stores its changes; those of a saved error too, which it raises."""
        try:
            changed = rule()
        except Refusal as error:
            if error.saved:
                self.commit(work)
                await self.durable()
            raise
        self.commit(work)
        await self.durable()
        return changed

    async def durable(self) -> None:
        """Returns once all changes so far are on the disk, those of other requests too: an answer may show them."""
        await self._group.wait()

    def _send_until(self, size: int) -> None:
        """Queues the webhooks of the first `size` bytes of the journal."""
        while self._unsent and self._unsent[0][1][0] < size:
            assert self.webhooks is not None
            self.webhooks.offer(*self._unsent.popleft())

    def start(self) -> None:
        """Begins to send webhooks, and to change what changes by itself."""
        self._ticking = asyncio.create_task(self._tick(), name="clock")
        if self.webhooks is not None:
            self.webhooks.start()

    async def _tick(self) -> None:
        while True:
            try:
                self.expire(self.now())
            except Exception:
                log.exception("the clock of the sandbox failed")
            await asyncio.sleep(TICK_S)

    def expire(self, now: int) -> None:
        """Applies all that is due at this second."""
        for change in stripe_clock.due(self.stripe, now):
            work = self.work("stripe")
            change(work)
            self.commit(work)

    async def stop(self) -> None:
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.gather(self._ticking, return_exceptions=True)
        if self.webhooks is not None:
            await self.webhooks.stop()
        await self._group.stop()
        self.journal.close()

    def _delivered(self, event: Event) -> None:
        self.journal.note_delivered(event.id)
        self.store.settle(event.id)

    def _endpoint(self, event: Event) -> Endpoint:
        name = self.store.book_of(event.subject).name
        return Endpoint(self.settings.webhooks[name], _WRITERS[name])

    def _forget(self) -> None:
        """Begins with empty tables."""
        self.stripe, self.razorpay = StripeBook(), RazorpayBook()
        self.store = Store(self.stripe, self.razorpay)
        self.keys = Keys()

    def _load(self) -> dict[str, Place]:
        """Replays the journal; returns the places of the events that were not delivered."""
        pending: dict[str, Place] = {}
        for record in self.journal.read():
            self.store.apply(record.changes)
            for index, change in enumerate(record.changes):
                if isinstance(change, Event) and change.pending:
                    pending[change.id] = (record.offset, index)
            for event_id in record.delivered:
                pending.pop(event_id, None)
                self.store.settle(event_id)
            if record.key is not None:
                self.keys.load(record.key)
        return pending

    def _compact(self, pending: dict[str, Place]) -> None:
        self.journal.compact(
            current=self.store.current(),
            events=self.store.event_ids(),
            pending=pending.keys(),
            keys=self.keys.names(self.now()),
        )
