"""The everyday end of a payment: stored and told by one statement, which is a transaction by itself."""

import dataclasses
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import orjson
from sqlalchemy import text

from services.chassis import ids
from services.chassis.data.db import Database, run_autocommit
from services.chassis.events.outbox import Event
from services.payments.domain import Payment, check_seconds


@dataclass(frozen=True, slots=True)
class Change:
    """A payment as it was read, as it shall be, and the event that tells of it, if any."""

    before: Payment
    after: Payment
    event: Event | None


# The version decides: whatever else changed the row meanwhile moved that on, and nothing is changed here.
_CHANGE = text("""
    WITH n AS (
        SELECT * FROM jsonb_to_recordset(CAST(:changes AS jsonb)) AS n (
            id uuid, version bigint, state text, method text, reference text, secret text, reason text,
            authenticating boolean, checks bigint, pause double precision, event_id uuid, subject text, key text,
            event bytea)
    ), mine AS (
        -- Row by row: a plan made while the table was small must not read all of it when it is large.
        SELECT p.id FROM (SELECT id, version FROM n ORDER BY id) AS n, LATERAL (
            SELECT p.id FROM payments AS p WHERE p.id = n.id AND p.version = n.version FOR UPDATE
        ) AS p
    ), stored AS (
        UPDATE payments AS p SET state = n.state, payment_method = n.method, provider_reference = n.reference,
            client_secret = n.secret, failure_reason = n.reason, authenticating = n.authenticating, checks = n.checks,
            version = p.version + 1, update_time = now(),
            next_check_time = now() + make_interval(secs => n.pause * (0.75 + random() / 2))
        FROM n WHERE p.id = n.id AND p.id = ANY(ARRAY(SELECT id FROM mine))
        RETURNING p.id, p.version, p.update_time
    ), told AS (
        INSERT INTO outbox (event_id, subject, key, payload)
        SELECT n.event_id, n.subject, n.key, n.event FROM stored JOIN n USING (id) WHERE n.event IS NOT NULL
    )
    SELECT id, version, update_time FROM stored
""")


async def change(db: Database, changes: Sequence[Change]) -> dict[uuid.UUID, Payment]:
    """Stores and tells what can be without a look at the rows, in a transaction by itself; those payments, by id."""
    arguments = {"changes": orjson.dumps([_change(c) for c in changes]).decode()}
    after = {change.after.id: change.after for change in changes}
    return {
        row.id: dataclasses.replace(after[row.id], version=row.version, update_time=row.update_time)
        for row in await run_autocommit(db, _CHANGE, arguments)
    }


def _change(change: Change) -> dict[str, object]:
    after = change.after
    subject, key, event = change.event or (None, None, None)
    return {
        "id": after.id,
        "version": change.before.version,
        "state": after.state,
        "method": after.payment_method,
        "reference": after.provider_reference,
        "secret": after.client_secret,
        "reason": after.failure_reason,
        "authenticating": after.authenticating,
        "checks": after.checks,
        "pause": check_seconds(after),
        "event_id": ids.new() if event else None,
        "subject": subject,
        "key": key,
        "event": f"\\x{event.SerializeToString().hex()}" if event else None,
    }
