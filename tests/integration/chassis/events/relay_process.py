"""A process that relays an outbox until it is killed: `python -m … <database> <nats>`. Started by test_outbox.py."""

import asyncio
import sys

from services.chassis.data import db as databases
from services.chassis.events import outbox, subscriber
from services.chassis.events.outbox import Relay


async def main(database_url: str, nats_url: str) -> None:
    outbox._PUBLISH_SECONDS = 1.0  # requests that a fault swallows end sooner
    _, db = databases.connect(database_url, pool_size=2)
    connection = await subscriber.connect(nats_url, "relay-process")
    print("connected", flush=True)
    await Relay(db).run(connection)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
