"""Consumers of other services' events: durable readers of JetStream that act on each event once."""

import asyncio
import contextlib
import traceback
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nats
import nats.errors
import structlog
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig
from prometheus_client import Counter
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.data.cleanup import delete_old_rows
from services.chassis.data.db import Database
from services.chassis.data.grants import Grant
from services.chassis.errors import RateLimited, Unavailable, as_app_error
from services.chassis.telemetry.heartbeats import beat

log = structlog.get_logger()

_CONSUMED = Counter("stampede_events_consumed_total", "Events that a consumer acted on.", ["consumer"])
_DEAD = Counter("stampede_events_dead_total", "Events that became dead letters.", ["subject"])
_FETCH_MAX = 100
_FETCH_SECONDS = 5.0
# Also the delay of an event whose consumer died before it acknowledged it.
_ACK_SECONDS = 10
_ATTEMPTS_MAX = 10
_RETRY_SECONDS = 2.0
_RESUBSCRIBE_SECONDS = 1.0
# The client reconnects after three pings without an answer; with its default interval that takes six minutes.
_PING_SECONDS = 5
EVENT_ID, ATTEMPTS, CAUSE = "Stampede-Event-Id", "Stampede-Attempts", "Stampede-Cause"
"""Headers of a dead letter."""

Act = Callable[[AsyncSession, Sequence[bytes]], Awaitable[None]]
"""Acts on payloads in order, in a transaction that commits together with the events' ids."""
TABLE = """
CREATE TABLE seen_events (
    event_id    uuid PRIMARY KEY,
    create_time timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX seen_events_create_time ON seen_events (create_time);
"""
GRANT = Grant(insert=True, delete=True)
_SEE = text("""
    INSERT INTO seen_events (event_id) SELECT unnest(CAST(:ids AS uuid[])) ON CONFLICT DO NOTHING RETURNING event_id
""")
CLEANUP = delete_old_rows("seen_events", keep="8 days")
"""JetStream keeps events for seven days; so each event that it delivers again is recognised."""


async def connect(url: str, service: str) -> Any:
    """Connects to NATS, however long that takes. The connection reconnects by itself."""
    while True:
        try:
            return await nats.connect(
                url, name=service, max_reconnect_attempts=-1, reconnect_time_wait=0.5, error_cb=_log_error,
                ping_interval=_PING_SECONDS,
            )  # fmt: skip
        except (OSError, TimeoutError, nats.errors.Error) as error:
            log.warning("NATS is unavailable", cause=repr(error)[:200])
            await asyncio.sleep(1)


async def _log_error(error: Exception) -> None:
    log.warning("NATS connection", cause=repr(error)[:200])


class Consumer:
    """Acts on each event of another service once, in the order of publication unless one has to be retried.

    `name` is that of the durable consumer; replicas with the same name share the work.
    """

    def __init__(self, name: str, *, stream: str, subject: str, db: Database, act: Act) -> None:
        self.name, self._stream, self._subject = name, stream, subject
        self._db, self._act = db, act

    async def run(self, jetstream: JetStreamContext) -> None:
        """Runs until cancelled."""
        while beat():
            try:
                # Bound by name: the stream belongs to another service, which may not have created it yet.
                config = ConsumerConfig(
                    durable_name=self.name, filter_subject=self._subject, ack_wait=_ACK_SECONDS,
                    max_ack_pending=1000, max_deliver=-1,
                )  # fmt: skip
                inbox = await jetstream.pull_subscribe(
                    self._subject, durable=self.name, stream=self._stream.upper(), config=config
                )
                try:
                    while beat():
                        await self._fetch(inbox, jetstream)
                finally:
                    with contextlib.suppress(nats.errors.Error):
                        await inbox.unsubscribe()
            except (nats.errors.Error, OSError, TimeoutError) as error:
                # Also where the broker has lost the stream or the consumer: both are declared again.
                log.warning("events cannot be fetched", stream=self._stream, cause=repr(error)[:200])
                await asyncio.sleep(_RESUBSCRIBE_SECONDS)

    async def _fetch(self, inbox: Any, jetstream: JetStreamContext) -> None:
        try:
            messages = await inbox.fetch(_FETCH_MAX, timeout=_FETCH_SECONDS)
        except (nats.errors.TimeoutError, TimeoutError):
            return  # no events
        if not messages:
            return  # the consumer was deleted
        try:
            await self._act_on(messages)
        except Exception as error:
            if len(messages) == 1:
                await self._handle_failure(messages[0], error, jetstream)
                return
            # One bad event must not delay the others: act on each alone.
            for message in messages:
                try:
                    await self._act_on([message])
                except Exception as failure:
                    await self._handle_failure(message, failure, jetstream)

    async def _act_on(self, messages: Sequence[Msg]) -> None:
        await self.act_once({_id_of(message): message.data for message in messages})
        for message in messages:
            await message.ack()
        _CONSUMED.labels(self.name).inc(len(messages))

    async def act_once(self, payloads: Mapping[uuid.UUID, bytes]) -> bool:
        """Acts on those events that were not acted on yet; returns whether there were any. Raises what `act` raises."""
        async with self._db.begin() as tx:
            fresh = set(await tx.scalars(_SEE, {"ids": list(payloads)}))
            if fresh:
                await self._act(tx, [payload for event_id, payload in payloads.items() if event_id in fresh])
        return bool(fresh)

    async def _handle_failure(self, message: Msg, error: Exception, jetstream: JetStreamContext) -> None:
        attempt = message.metadata.num_delivered
        log.warning("event failed", subject=message.subject, attempt=attempt, cause=error)
        # An unavailable database makes no event a dead letter, however long that lasts.
        if attempt < _ATTEMPTS_MAX or isinstance(as_app_error(error), Unavailable | RateLimited):
            await message.nak(delay=_RETRY_SECONDS)
            return
        # A poison event must not block those behind it: it becomes a dead letter, for an operator.
        id_ = str(_id_of(message))
        headers = {
            # Several consumers may have a dead letter of the same event.
            "Nats-Msg-Id": f"{self.name}/{id_}",
            EVENT_ID: id_, ATTEMPTS: str(attempt), CAUSE: cause_of(error),
        }  # fmt: skip
        await jetstream.publish(f"dead.{self.name}.{message.subject}", message.data, headers=headers)
        _DEAD.labels(message.subject).inc()
        await message.term()


Consumers = Callable[[Database], Sequence[Consumer]]
"""Returns the consumers of a service."""


def _id_of(message: Msg) -> uuid.UUID:
    place = message.metadata
    # With its time, because a stream that was lost and declared again counts from 1.
    where = f"{place.stream}/{place.sequence.stream}/{place.timestamp}"
    return event_id((message.headers or {}).get("Nats-Msg-Id"), where)


def event_id(given: str | None, place: str) -> uuid.UUID:
    """Returns the id `given` to an event; for a message that no outbox has published, one made of its `place`.

    Such a message must fail alone, like any other that nobody can act on, and not the consumer.
    """
    try:
        return uuid.UUID(given or "")
    except ValueError:
        return uuid.uuid5(uuid.NAMESPACE_OID, place)


def cause_of(error: BaseException) -> str:
    """Returns the kind of `error` and its place in the code. Its text is left out: it may contain personal data."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/services/" in frame.filename] or frames
    where = f" in {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
    return f"{type(error).__name__}{where}"
