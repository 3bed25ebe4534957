"""Reads the counters of the gate in Valkey, for the sales that are open."""

from dataclasses import dataclass

import psycopg
import redis
from psycopg.rows import TupleRow

from deploy.audit.reading.unreachable import Unreachable

_SECONDS = 5
_OPEN = """
    SELECT id::text FROM flash_sales
    WHERE closed_as IS NULL AND start_time <= clock_timestamp() AND end_time > clock_timestamp()
"""


@dataclass(frozen=True)
class GateCounter:
    """The counter of one sale; None if it has no counter, so that all holds pass."""

    left: int | None
    type: str = "string"
    """The type of the key in Valkey."""


def counters(url: str, inventory: psycopg.Connection[TupleRow]) -> dict[str, GateCounter]:
    """The counters of open sales. Raises `Unreachable`."""
    sales = [row[0] for row in inventory.execute(_OPEN)]
    try:
        with redis.Redis.from_url(url, socket_timeout=_SECONDS, socket_connect_timeout=_SECONDS) as valkey:
            return {sale: _counter(valkey, f"sale:{{{sale}}}:left") for sale in sales}
    except redis.RedisError as error:
        raise Unreachable(f"the gate cannot be read: {error!r}") from None


def _counter(valkey: "redis.Redis", key: str) -> GateCounter:
    kind = valkey.type(key)
    name = kind.decode() if isinstance(kind, bytes) else str(kind)
    if name != "string":
        return GateCounter(None, name)
    value = valkey.get(key)
    try:
        return GateCounter(int(value) if isinstance(value, bytes | str) else None)
    except ValueError:
        return GateCounter(None, "text")
