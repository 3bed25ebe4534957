"""Checks of what left the databases: events at the broker, dead letters, and the counters of the gate."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta

from deploy.audit import repairs
from deploy.audit.findings import KEPT_MOST, Check, Finding, Invariant
from deploy.audit.reading.broker import Broker
from deploy.audit.reading.gate import GateCounter
from deploy.audit.reading.sources import Connection

_QUIET_SECONDS = 10
"""The gate may lag for a second. A sale whose units have not moved for this long has no excuse."""
_MARGIN = timedelta(seconds=1)

DEAD_LETTERS = Check(
    "dead-letters", Invariant.EVENTS, "no event waits as a dead letter", repairs.REPLAY
)  # fmt: skip
EVENT_LOST = Check(
    "event-lost", Invariant.EVENTS, "each order, payment and expired hold of the last day has published its state",
    repairs.LOOK,
)  # fmt: skip
GATE = Check(
    "gate-counter", Invariant.GATE, "the gate does not call a sale sold out while units are free",
    repairs.LEADER,
)  # fmt: skip
CHECKS = (DEAD_LETTERS, EVENT_LOST, GATE)

# The events that must be there, of rows that were created after the stream began; those in the outbox have not left.
_EXPECTED = {
    "orders": """
        WITH expected AS (
            SELECT id, 'stampede.orders.order.placed' AS subject FROM orders WHERE create_time >= %(since)s
            UNION ALL
            SELECT id, 'stampede.orders.order.' || lower(state) FROM orders
            WHERE create_time >= %(since)s AND state <> 'PENDING'
        )
    """,
    "payments": """
        WITH expected AS (
            SELECT id, 'stampede.payments.payment.' || CASE state WHEN 'REFUNDED' THEN 'refunded' ELSE lower(state) END
                AS subject
            FROM payments WHERE create_time >= %(since)s AND state IN ('SUCCEEDED', 'FAILED', 'CANCELLED', 'REFUNDED')
        )
    """,
    "inventory": """
        WITH expected AS (
            SELECT id, 'stampede.inventory.reservation.expired' AS subject FROM reservations
            WHERE create_time >= %(since)s AND state = 'EXPIRED'
        )
    """,
}
_MISSING = """
    SELECT id::text, subject FROM expected e
    WHERE NOT EXISTS (SELECT FROM outbox o WHERE o.key = e.id::text AND o.subject = e.subject)
"""
_FREE = """
    SELECT id::text, allocation - held - sold - returned FROM flash_sales
    WHERE allocation - held - sold - returned > 0 AND start_time < clock_timestamp() - interval '10 seconds'
        AND update_time < clock_timestamp() - interval '10 seconds'
"""


def check_broker(broker: Broker, connections: Mapping[str, Connection]) -> Iterator[Finding]:
    """Checks that no event was lost between a database and the broker, and that no dead letter waits."""
    for consumer, number in broker.dead_letters.items():
        yield Finding(DEAD_LETTERS, (consumer,), f"{consumer}: {number} dead letters wait")
    for service, expected in _EXPECTED.items():
        found = 0
        with connections[service].cursor(name=f"events_of_{service}") as rows:
            rows.execute(expected + _MISSING, {"since": broker.since[service] + _MARGIN})
            for id_, subject in rows:
                if found < KEPT_MOST and not broker.has(subject, id_):
                    found += 1
                    yield Finding(EVENT_LOST, (id_, subject), f"{service} {id_}: the event {subject} is lost")


def check_gate(counters: Mapping[str, GateCounter], free: Iterable[tuple[str, int]]) -> Iterator[Finding]:
    """Checks the gate's counters against the units that are `free` in quiet sales."""
    for sale, units in free:
        counter = counters.get(sale)
        if counter is None:
            continue
        if counter.type not in ("string", "none"):
            yield Finding(GATE, (sale,), f"sale {sale}: its counter at the gate is a {counter.type}")
        elif counter.left is not None and counter.left != units:
            # A gate that lets too many pass costs speed alone.
            text = f"sale {sale}: the gate says {counter.left} left, {units} are free"
            yield Finding(GATE, (sale,), text, warning=counter.left > 0)


def quiet_sales(inventory: Connection) -> list[tuple[str, int]]:
    """Sales with free units that have not changed for a while."""
    return [(row[0], row[1]) for row in inventory.execute(_FREE)]
