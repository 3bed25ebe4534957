"""Broadcast: events delivered to every process that listens, without storage, for live views and caches.

JetStream also delivers what it stores to plain subscriptions, which cost the server no state and no acknowledgement. A
process that is disconnected misses the events of that time. So `live` of a listener is True only while it can rely on
receiving all events.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from services.chassis.telemetry.heartbeats import beat, waiting

_CHECK_SECONDS = 1.0
_ANSWER_SECONDS = 2.0
# A customer often watches an order for a moment after placing it: to stay subscribed costs less than to begin anew.
_LINGER_SECONDS = 10.0


class Listener(Protocol):
    """Receives events: a `Watch` while it has watchers, or a cache at all times."""

    watched: asyncio.Event
    """Set while events are wanted."""
    live: bool
    """Set to True when all events arrive from now on, again after each gap, and to False when they may not."""


async def listen(connection: Any, subject: str, receive: Callable[[bytes], None], listener: Listener) -> None:
    """Gives `receive` the payload of each event published on `subject`, and keeps `listener.live` true to that.

    Runs until cancelled. While no events are wanted nothing is subscribed to, and events cost this process nothing.
    """

    async def receive_message(message: Any) -> None:
        receive(message.data)

    while beat():
        await waiting(listener.watched.wait())
        if not connection.is_connected:
            await asyncio.sleep(_CHECK_SECONDS)
            continue
        # The client repeats both when it reconnects.
        events = await connection.subscribe(subject, cb=receive_message)
        echo = await connection.subscribe(connection.new_inbox())
        try:
            await _follow(connection, echo, listener)
        finally:
            listener.live = False
            await events.unsubscribe()
            await echo.unsubscribe()


async def _follow(connection: Any, echo: Any, listener: Listener) -> None:
    """Keeps `listener.live` true to `connection`, until events have not been wanted for a while."""
    loop = asyncio.get_running_loop()
    wanted, number = loop.time(), None
    while beat() and loop.time() < wanted + _LINGER_SECONDS:
        now_number = await _connection_number(connection, echo)
        if now_number != number:
            listener.live = now_number is not None
            number = now_number
        await asyncio.sleep(_CHECK_SECONDS)
        if listener.watched.is_set():
            wanted = loop.time()


async def _connection_number(connection: Any, echo: Any) -> int | None:
    """The number of the connection over which events arrive now; None if they may not.

    The process sends itself a message, which must come back: it shows that the server has the subscriptions made before
    and has not fallen silent. The client's `flush` would end all reading if its answer came after the timeout
    (nats-py 2.16).
    """
    if not connection.is_connected:
        return None
    number: int = connection.stats["reconnects"]
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            await connection.publish(echo.subject, b"%d" % number)
            while (await echo.next_msg(None)).data != b"%d" % number:
                pass
    except TimeoutError:
        return None
    return number if connection.is_connected and connection.stats["reconnects"] == number else None
