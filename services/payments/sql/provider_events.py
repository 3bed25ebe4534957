"""The table `provider_events`: the inbox of the webhooks."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.data.cleanup import Cleanup
from services.chassis.data.db import Database, run_autocommit
from services.payments.domain import ChargeStatus, ProviderEvent, event_seconds, own_id
from services.payments.sql import schema

CLEANUP = Cleanup(
    "provider_events",
    """
    DELETE FROM provider_events WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM provider_events WHERE processed_time < now() - interval '30 days'
        ORDER BY processed_time LIMIT :most))
    """,
    oldest="SELECT extract(epoch FROM now() - min(processed_time)) FROM provider_events",
)


class Attempt(NamedTuple):
    """One attempt to apply a waiting event, and its outcome. With an error and not `done`, another attempt follows."""

    event: ProviderEvent
    earlier: int
    error: str | None = None
    done: bool = True


# Most successes are known before their event comes, from the provider's answer. Such an event is stored as processed.
# That needs no lock, because a payment that has succeeded never returns to an open state.
_PUT = text("""
    INSERT INTO provider_events (provider, event_id, payload, attempts, processed_time)
    SELECT n.provider, n.id, n.payload, CASE WHEN p.id IS NULL THEN 0 ELSE 1 END,
        CASE WHEN p.id IS NOT NULL THEN now() END
    FROM jsonb_to_recordset(CAST(:events AS jsonb)) AS n (provider text, id text, payload jsonb, payment_id uuid)
    -- Row by row: a plan made while the table was small must not read all of it when it is large.
    LEFT JOIN LATERAL (
        SELECT p.id FROM payments AS p WHERE p.id = n.payment_id AND p.state IN ('SUCCEEDED', 'REFUNDED')
            AND n.payload->>'charge_status' = 'SUCCEEDED' AND n.payload->>'reference' = p.provider_reference
            AND n.payload->'amount' = to_jsonb(p.amount_minor) AND upper(n.payload->>'currency') = p.currency LIMIT 1
    ) AS p ON true
    ORDER BY n.provider, n.id
    ON CONFLICT DO NOTHING
    RETURNING payload->>'type' AS type, processed_time IS NULL AS waits
""")


async def put(db: Database, events: Sequence[ProviderEvent]) -> tuple[list[str], int]:
    """Store events, each once. Return the types of those stored as processed, and how many new ones wait."""
    unique = {(event.provider, event.id): event for event in events}.values()
    document = [
        {"provider": e.provider, "id": e.id, "payload": _to_payload(e), "payment_id": e.payment_id} for e in unique
    ]
    stored = await run_autocommit(db, _PUT, {"events": orjson.dumps(document).decode()})
    processed = [row.type for row in stored if not row.waits]
    return processed, len(stored) - len(processed)


async def claim_waiting(tx: AsyncSession, most: int) -> list[Attempt]:
    """Lock and return the oldest events whose time has come."""
    table = schema.ProviderEvent
    found = await tx.execute(
        select(table.provider, table.event_id, table.payload, table.attempts)
        .where(table.processed_time.is_(None), table.next_try_time <= text("now()"))
        .order_by(table.next_try_time)
        .limit(most)
        .with_for_update(skip_locked=True)
    )
    return [Attempt(_from_payload(row.provider, row.event_id, row.payload), row.attempts) for row in found]


async def mark(tx: AsyncSession, attempts: Sequence[Attempt]) -> None:
    """Mark claimed events as processed, or set the time of their next attempt."""
    await tx.execute(
        text(
            "UPDATE provider_events AS e SET attempts = e.attempts + 1, error = n.error,"
            " processed_time = CASE WHEN n.done THEN now() END,"
            " next_try_time = now() + make_interval(secs => n.pause * (0.75 + random() / 2))"
            " FROM unnest(CAST(:providers AS text[]), CAST(:ids AS text[]), CAST(:errors AS text[]),"
            " CAST(:done AS boolean[]), CAST(:pauses AS double precision[])) AS n(provider, id, error, done, pause)"
            " WHERE e.provider = n.provider AND e.event_id = n.id"
        ),
        {
            "providers": [a.event.provider for a in attempts],
            "ids": [a.event.id for a in attempts],
            "errors": [a.error for a in attempts],
            "done": [a.done for a in attempts],
            "pauses": [event_seconds(a.earlier) for a in attempts],
        },
    )


def _to_payload(event: ProviderEvent) -> dict[str, Any]:
    return {
        "type": event.type,
        "reference": event.reference,
        "payment_id": event.payment_id,
        "amount": event.amount_minor,
        "currency": event.currency,
        "charge_status": event.charge_status.name if event.charge_status else None,
        "refunded": event.refunded_minor,
    }


def _from_payload(provider: str, event_id: str, payload: dict[str, Any]) -> ProviderEvent:
    # Processes of the release before store no status. Such an event makes the reconciler ask the provider.
    status = payload.get("charge_status")
    return ProviderEvent(
        provider=provider,
        id=event_id,
        type=payload["type"],
        reference=payload["reference"],
        payment_id=own_id(payload["payment_id"]),
        amount_minor=payload["amount"],
        currency=payload["currency"],
        charge_status=ChargeStatus[status] if status else None,
        refunded_minor=payload["refunded"],
    )
