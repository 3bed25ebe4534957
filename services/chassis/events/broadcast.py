"""Events as they are published, for live views: heard by every process, while somebody watches, and kept nowhere.

What JetStream stores is also delivered to plain subscriptions, which cost the server no state and no acknowledgement.
They promise little: whoever is away misses what is told meanwhile. So a view looks for itself when it comes back.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from services.chassis.server.watch import Watch

_CHECK_SECONDS = 1.0
_ANSWER_SECONDS = 2.0
# Whoever placed an order often watches it, for a moment: better to hear on than to begin anew for each.
_LINGER_SECONDS = 10.0


async def listen(connection: Any, subject: str, heard: Callable[[bytes], None], watch: Watch[Any, Any]) -> None:
    """Gives `heard` the payload of each event told on `subject`, and lets `watch` know while it can rely on that.

    Until cancelled. While nobody watches, nothing is subscribed to, and events cost this process nothing.
    """

    async def hear(message: Any) -> None:
        heard(message.data)

    while True:
        await watch.watched.wait()
        if not connection.is_connected:
            await asyncio.sleep(_CHECK_SECONDS)
            continue
        # The client repeats both when it reconnects.
        events = await connection.subscribe(subject, cb=hear)
        echo = await connection.subscribe(connection.new_inbox())
        try:
            await _follow(connection, echo, watch)
        finally:
            watch.live = False
            await events.unsubscribe()
            await echo.unsubscribe()


async def _follow(connection: Any, echo: Any, watch: Watch[Any, Any]) -> None:
    """Keeps `watch.live` true to `connection`, until nobody has watched for a while."""
    loop = asyncio.get_running_loop()
    watched, hears = loop.time(), None
    while loop.time() < watched + _LINGER_SECONDS:
        now_hears = await _hears(connection, echo)
        if now_hears != hears:
            watch.live = now_hears is not None
            hears = now_hears
        await asyncio.sleep(_CHECK_SECONDS)
        if watch.watched.is_set():
            watched = loop.time()


async def _hears(connection: Any, echo: Any) -> int | None:
    """The number of the connection over which the process hears events just now, if it does.

    What it tells itself must come back: then the server knows the subscriptions made before, and has not fallen silent.
    The client's `flush` would do, but for an answer that comes after its timeout: that ends all reading (nats-py 2.16).
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
