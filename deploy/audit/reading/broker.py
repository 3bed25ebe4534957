"""Reads the broker: which events of the last day it has, and how many dead letters wait."""

import asyncio
import contextlib
import datetime
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import nats
import nats.errors
from google.protobuf.message import DecodeError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError

from deploy.audit.reading.unreachable import Unreachable
from stampede.inventory.v1.events_pb2 import ReservationExpired
from stampede.orders.v1.events_pb2 import OrderChanged
from stampede.payments.v1.events_pb2 import PaymentChanged

LOOKS_BACK = datetime.timedelta(days=1)
"""How far back lost events are looked for. Streams keep a week, but reading takes a second for 10,000 events."""
_DEAD_LETTERS = "DEAD_LETTERS"
_FETCH = 1_000
_SECONDS = 10

_KEYS: dict[str, Callable[[bytes], str]] = {
    "orders": lambda payload: OrderChanged.FromString(payload).order_id,
    "payments": lambda payload: PaymentChanged.FromString(payload).payment_id,
    "inventory": lambda payload: ReservationExpired.FromString(payload).reservation_id,
}
"""Whose events are looked for, and the id of what an event is about."""
_SUBJECTS = {
    "orders": "stampede.orders.order.>", "payments": "stampede.payments.payment.>",
    "inventory": "stampede.inventory.reservation.expired",
}  # fmt: skip


@dataclass(frozen=True)
class Broker:
    """The events that the broker has, and its dead letters."""

    since: Mapping[str, datetime.datetime]
    """By service: from when on its events are there."""
    has: Callable[[str, str], bool]
    """Whether there is an event of this subject about this id."""
    dead_letters: Mapping[str, int]
    """By consumer."""


@contextlib.contextmanager
def read(url: str) -> Iterator[Broker]:
    """Reads the events of the last day onto disk. Raises `Unreachable`."""
    with tempfile.NamedTemporaryFile(prefix="stampede-audit-") as file, contextlib.closing(_store(file.name)) as db:
        try:
            since, dead = asyncio.run(_read(url, db))
        except (OSError, TimeoutError, nats.errors.Error) as error:
            raise Unreachable(f"the broker cannot be read: {error!r}") from None

        def has(subject: str, key: str) -> bool:
            query = "SELECT 1 FROM events WHERE key = ? AND subject = ?"
            return db.execute(query, (key, subject)).fetchone() is not None

        yield Broker(since, has, dead)


def _store(path: str) -> sqlite3.Connection:
    db = sqlite3.connect(path, check_same_thread=False)
    db.executescript("""
        PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;
        CREATE TABLE events (key TEXT, subject TEXT, PRIMARY KEY (key, subject)) WITHOUT ROWID;
    """)
    return db


async def _read(url: str, db: sqlite3.Connection) -> tuple[dict[str, datetime.datetime], dict[str, int]]:
    connection = await nats.connect(
        url, name="stampede-audit", max_reconnect_attempts=1, connect_timeout=_SECONDS, error_cb=_ignore
    )
    try:
        jetstream = connection.jetstream(timeout=_SECONDS)
        since = {service: await _read_stream(jetstream, service, db) for service in _SUBJECTS}
        return since, await _dead_letters(jetstream)
    finally:
        await connection.close()


async def _read_stream(jetstream: JetStreamContext, service: str, db: sqlite3.Connection) -> datetime.datetime:
    """Stores the events of one service; returns the time from which on they are complete."""
    now = datetime.datetime.now(datetime.UTC)
    try:
        info = await jetstream.stream_info(service.upper())
    except NotFoundError:
        return now
    begin = max(now - LOOKS_BACK, info.created or now)
    if info.state.first_seq > 1 and info.state.messages:  # older ones have been discarded
        first = await jetstream.get_msg(service.upper(), info.state.first_seq)
        begin = max(begin, first.time or now)
    # Without a durable name the server forgets the reader by itself.
    config = ConsumerConfig(
        ack_policy=AckPolicy.NONE, deliver_policy=DeliverPolicy.BY_START_TIME, inactive_threshold=60,
        opt_start_time=begin, mem_storage=True,
    )  # fmt: skip
    inbox = await jetstream.pull_subscribe(_SUBJECTS[service], stream=service.upper(), config=config)
    left = (await inbox.consumer_info()).num_pending or 0
    while left:
        messages = await inbox.fetch(min(_FETCH, left), timeout=_SECONDS)
        db.executemany("INSERT OR IGNORE INTO events VALUES (?, ?)", _rows(service, messages))
        left -= len(messages)
    db.commit()
    return begin


def _rows(service: str, messages: Iterable[Any]) -> list[tuple[str, str]]:
    """The events of `messages`. A message that is none proves nothing; its consumers made a dead letter of it."""
    rows = []
    for message in messages:
        with contextlib.suppress(DecodeError):
            rows.append((_KEYS[service](message.data), message.subject))
    return rows


async def _dead_letters(jetstream: JetStreamContext) -> dict[str, int]:
    try:
        info = await jetstream.stream_info(_DEAD_LETTERS, subjects_filter="dead.>")
    except NotFoundError:
        return {}
    found: dict[str, int] = {}
    for subject, number in (info.state.subjects or {}).items():
        consumer = subject.split(".")[1]
        found[consumer] = found.get(consumer, 0) + number
    return found


async def _ignore(_: Exception) -> None:
    """The caller reports the error; nats-py would log it as well."""
