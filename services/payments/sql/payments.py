"""The table `payments`: the money of each order."""

import dataclasses
import uuid
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, NamedTuple

import orjson
from sqlalchemy import ColumnElement, Select, and_, or_, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis import ids
from services.chassis.data.db import Database, run_autocommit
from services.chassis.events.outbox import Event
from services.payments.books.chart import Entry
from services.payments.domain import (
    AUTHORIZATION_LAPSING,
    LEASE_SECONDS,
    REFUND_CHECK_SECONDS,
    Calls,
    Capture,
    Charge,
    Payment,
    PaymentNotFound,
    State,
)
from services.payments.sql import journal, leases, schema
from services.payments.sql.payment_columns import (
    ATTEMPT_RECORD,
    COLUMNS,
    NAMES,
    RECORD,
    SET,
    SET_ATTEMPT,
    SET_CALLS,
    from_row,
    inserted,
    to_attempt_record,
    to_insert,
    to_record,
)

_INSERT = text("""
    INSERT INTO payments (id, order_id, customer_id, amount_minor, currency, state, provider, customer_pays,
        payment_method, attempt, attempt_time, failure_reason, refunded_minor, refunding_minor, cancel_requested,
        problem, checks, authenticating, hold_expire_time, next_check_time, version, order_attempt,
        latest_order_attempt, terms, capture)
    SELECT n.id, n.order_id, n.customer_id, n.amount, n.currency, :state, coalesce(n.terms->>'provider', :provider),
        n.method IS NULL OR n.terms IS NOT NULL,
        CASE WHEN :is_open THEN n.method END, 1, now(), coalesce(n.terms->>'refusal', ''), 0, 0, NOT :is_open, '', 0,
        false, n.hold_end,
        CASE WHEN :is_open THEN now() + make_interval(secs => :lease) END, 1,
        coalesce((n.terms->>'number')::integer, 0), coalesce((n.terms->>'number')::integer, 0), n.terms,
        :capture
    FROM jsonb_to_recordset(CAST(:charges AS jsonb)) AS n (
        id uuid, order_id uuid, customer_id uuid, amount bigint, currency text, method text, hold_end timestamptz,
        terms jsonb)
    ORDER BY n.order_id
    ON CONFLICT ON CONSTRAINT payments_order_id_key DO NOTHING
    RETURNING id, create_time
""")


async def insert(
    tx: AsyncSession, charges: Sequence[Charge], *, state: State, provider: str
) -> dict[uuid.UUID, Payment]:
    """Insert payments for orders that had none; return those, by order. Sorted, so that batches cannot deadlock."""
    fresh = {ids.new(): _with_provider(charge, provider) for charge in charges}
    rows = (await tx.execute(_INSERT, to_insert(fresh, state, provider, Capture.AUTOMATIC))).all()
    return inserted(fresh, rows, state, provider, Capture.AUTOMATIC)


async def insert_alone(
    db: Database, charges: Sequence[Charge], *, state: State, provider: str, capture: Capture = Capture.AUTOMATIC
) -> dict[uuid.UUID, Payment]:
    """Do the same as a transaction by itself: one round trip begins a batch of charges."""
    fresh = {ids.new(): _with_provider(charge, provider) for charge in charges}
    rows = await run_autocommit(db, _INSERT, to_insert(fresh, state, provider, capture))
    return inserted(fresh, rows, state, provider, capture)


def _with_provider(charge: Charge, provider: str) -> Charge:
    if charge.terms is None or charge.terms.provider:
        return charge
    return dataclasses.replace(charge, terms=dataclasses.replace(charge.terms, provider=provider))


async def change_key(tx: AsyncSession, payment: Payment) -> None:
    """Start an attempt with a new key, because the provider has no charge under the old one.

    Not within ten minutes of the old attempt: until then, a delayed request under the old key may still charge.
    """
    await tx.execute(
        text(
            "UPDATE payments SET attempt = attempt + 1, attempt_time = now(), checks = 0, version = version + 1"
            " WHERE id = :id AND attempt = :attempt AND state = 'PROCESSING' AND provider_reference IS NULL"
            " AND attempt_time < now() - interval '10 minutes'"
        ),
        {"id": payment.id, "attempt": payment.attempt},
    )


async def request_cancel(tx: AsyncSession, payment_ids: Sequence[uuid.UUID], *, void: bool = False) -> None:
    """Mark locked payments to be cancelled as soon as the provider allows it; with `void`, authorised ones too."""
    await tx.execute(
        text(
            "UPDATE payments SET cancel_requested = true, next_terms = NULL, checks = 0, update_time = now(),"
            " version = version + 1,"
            " capture = CASE WHEN :void AND capture <> 'AUTOMATIC' THEN 'VOID' ELSE capture END,"
            " next_check_time = CASE WHEN state IN ('AWAITING_CUSTOMER', 'AUTHORIZED')"
            " THEN now() + make_interval(secs => :lease) ELSE next_check_time END WHERE id = ANY(CAST(:ids AS uuid[]))"
        ),
        {"ids": list(payment_ids), "lease": LEASE_SECONDS, "void": void},
    )


async def request_capture(tx: AsyncSession, payment_id: uuid.UUID) -> None:
    """Mark a locked, authorised payment to be captured. Its caller makes the call: the row is leased."""
    await tx.execute(
        text(
            "UPDATE payments SET capture = 'REQUESTED', checks = 0, update_time = now(), version = version + 1,"
            " next_check_time = now() + make_interval(secs => :lease) WHERE id = :id"
        ),
        {"id": payment_id, "lease": LEASE_SECONDS},
    )


_WARN = text("""
    UPDATE payments AS p SET problem = :problem, version = p.version + 1, update_time = now()
    FROM unnest(CAST(:names AS text[]), CAST(:seconds AS double precision[])) AS n(provider, seconds)
    WHERE p.state = 'AUTHORIZED' AND p.capture = 'MANUAL' AND p.problem = '' AND p.provider = n.provider
        AND p.authorize_time < now() - make_interval(secs => n.seconds)
""")


async def warn_of_lapses(db: Database, after: Mapping[str, timedelta]) -> None:
    """Give a problem to authorised payments that wait for staff for longer than `after`, by provider."""
    seconds = [age.total_seconds() for age in after.values()]
    async with db.begin() as tx:
        await tx.execute(_WARN, {"names": list(after), "seconds": seconds, "problem": AUTHORIZATION_LAPSING})


async def read(tx: AsyncSession, payment_ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, Payment]:
    """Return payments by id."""
    found = await tx.execute(select(*COLUMNS).where(schema.Payment.id.in_(list(payment_ids))))
    return {row.id: from_row(row) for row in found}


async def read_one(tx: AsyncSession, payment_id: uuid.UUID, *, lock: bool) -> Payment:
    """Return one payment. Raises `PaymentNotFound`."""
    wanted = select(*COLUMNS).where(schema.Payment.id == payment_id)
    found = (await tx.execute(wanted.with_for_update() if lock else wanted)).one_or_none()
    if found is None:
        raise PaymentNotFound(paymentId=payment_id)
    return from_row(found)


async def read_by_order(tx: AsyncSession, order_ids: Sequence[uuid.UUID], *, lock: bool) -> dict[uuid.UUID, Payment]:
    """Return payments by order. Every function here locks payments in the order of their ids."""
    if not order_ids:
        return {}
    wanted = select(*COLUMNS).where(schema.Payment.order_id.in_(order_ids)).order_by(schema.Payment.id)
    found = await tx.execute(wanted.with_for_update() if lock else wanted)
    return {row.order_id: from_row(row) for row in found}


async def lock(
    tx: AsyncSession, payment_ids: Iterable[uuid.UUID], references: Iterable[str] = (), former: Iterable[str] = ()
) -> dict[uuid.UUID, Payment]:
    """Lock and return payments by id, and those that `find` returns."""
    wanted = _named(payment_ids, references, former).order_by(schema.Payment.id).with_for_update()
    return {row.id: from_row(row) for row in await tx.execute(wanted)}


async def find(
    tx: AsyncSession, payment_ids: Iterable[uuid.UUID], references: Iterable[str], former: Iterable[str] = ()
) -> dict[uuid.UUID, Payment]:
    """Return payments by id, those with one of the provider's `references` included.

    Those of earlier attempts are searched for `former`, because few events need that.
    """
    return {row.id: from_row(row) for row in await tx.execute(_named(payment_ids, references, former))}


def _named(payment_ids: Iterable[uuid.UUID], references: Iterable[str], former: Iterable[str]) -> Select[Any]:
    table, named, earlier = schema.Payment, list(references), list(former)
    conditions: list[ColumnElement[bool]] = [table.id.in_(list(payment_ids))]
    if named:
        conditions += [table.provider_reference.in_(named), table.checkout_reference.in_(named)]
    if earlier:
        conditions.append(and_(text(schema.HAS_FORMER), table.former_references.overlap(earlier)))
    return select(*COLUMNS).where(or_(*conditions))


_STORE = text(f"""
    UPDATE payments AS p SET {SET}, {SET_ATTEMPT}
    FROM jsonb_to_recordset(CAST(:payments AS jsonb)) AS n ({RECORD}, {ATTEMPT_RECORD}) WHERE p.id = n.id
""")  # noqa: S608  # columns of our own
# The version decides: every other change of the row raises it, and this statement then leaves the row alone.
_STORE_FAST = text(f"""
    WITH n AS (SELECT * FROM jsonb_to_recordset(CAST(:payments AS jsonb)) AS n ({RECORD})), mine AS (
        -- Row by row: a plan made while the table was small must not read all of it when it is large.
        SELECT p.id FROM (SELECT id, version FROM n ORDER BY id) AS n, LATERAL (
            SELECT p.id FROM payments AS p WHERE p.id = n.id AND p.version = n.version FOR UPDATE
        ) AS p
    ), stored AS (
        UPDATE payments AS p SET {SET}, {SET_CALLS} FROM n WHERE p.id = n.id AND p.id = ANY(ARRAY(SELECT id FROM mine))
        RETURNING p.id, p.version, p.update_time, p.currency
    ), published AS (
        INSERT INTO outbox (event_id, subject, key, payload)
        SELECT n.event_id, n.subject, n.key, n.event FROM stored JOIN n USING (id) WHERE n.event IS NOT NULL
    ), entered AS (
        {journal.insert_with("(SELECT currency FROM stored WHERE stored.id = e.payment_id)")}
    )
    SELECT id, version, update_time FROM stored
""")  # noqa: S608


@dataclass(frozen=True, slots=True)
class Change:
    """A payment as it shall be, with the version that was read, the event to publish, if any, and its entries."""

    after: Payment
    event: Event | None = None
    entries: Sequence[Entry] = ()


async def store(
    tx: AsyncSession,
    changed: Sequence[Payment],
    *,
    unchanged: Sequence[Payment] = (),
    ended: Mapping[uuid.UUID, Calls] = MappingProxyType({}),
    answered: Container[uuid.UUID] = (),
) -> None:
    """Write locked payments and the times of their next checks; of `unchanged` ones only that time.

    `ended` are those whose last call can take no effect later, with the calls before it. The provider has just
    `answered` about those.
    """
    if changed or unchanged:
        rows = [
            *(to_record(p, answered=p.id in answered) | to_attempt_record(p) for p in changed),
            *(
                to_record(p, bump=0, calls=ended.get(p.id), answered=p.id in answered) | to_attempt_record(p)
                for p in unchanged
            ),
        ]
        await tx.execute(_STORE, {"payments": orjson.dumps(rows).decode()})


async def store_fast(db: Database, changes: Sequence[Change]) -> dict[uuid.UUID, Payment]:
    """Store payments about which the provider answered, publish their events and enter their money: one transaction.

    Returns the stored payments by id. A payment that has changed since it was read is not among them: it needs
    `lock`, the rules, and `store`.
    """
    rows = [to_record(change.after, event=change.event, answered=True) for change in changes]
    after = {change.after.id: change.after for change in changes}
    entries = journal.document([entry for change in changes for entry in change.entries])
    stored = await run_autocommit(db, _STORE_FAST, {"payments": orjson.dumps(rows).decode(), "entries": entries})
    return {
        row.id: dataclasses.replace(
            after[row.id], version=row.version, update_time=row.update_time, answer_time=row.update_time
        )
        for row in stored
    }


async def add_refunding(tx: AsyncSession, sums: Mapping[uuid.UUID, int]) -> None:
    """Add the sums of new refunds, by payment, to locked payments."""
    await tx.execute(
        text(
            "UPDATE payments AS p SET refunding_minor = p.refunding_minor + n.amount,"
            " version = p.version + 1, update_time = now()"
            " FROM unnest(CAST(:ids AS uuid[]), CAST(:amounts AS bigint[])) AS n(id, amount) WHERE p.id = n.id"
        ),
        {"ids": list(sums), "amounts": list(sums.values())},
    )


async def check_now(tx: AsyncSession, payment_ids: Sequence[uuid.UUID]) -> None:
    """Make payments due, so that the reconciler asks the provider about them at once."""
    await tx.execute(
        text(
            "UPDATE payments SET next_check_time = now()"
            " WHERE id = ANY(CAST(:ids AS uuid[])) AND next_check_time > now()"
        ),
        {"ids": list(payment_ids)},
    )


async def check_refunds(tx: AsyncSession, payment_ids: Sequence[uuid.UUID]) -> None:
    """Have the reconciler compare these payments' refunds with the provider's list."""
    await tx.execute(
        text("UPDATE payments SET refund_check_time = clock_timestamp() WHERE id = ANY(CAST(:ids AS uuid[]))"),
        {"ids": list(payment_ids)},
    )


class RefundCheck(NamedTuple):
    """A payment whose refunds are to be compared now, and the end of this process's lease on that."""

    payment: Payment
    lease_time: datetime


async def claim_refund_checks(tx: AsyncSession, *, most: int) -> list[RefundCheck]:
    """Lease payments whose refunds are to be compared. One that is not finished in time is claimed again."""
    claimed = await tx.execute(
        text(
            "UPDATE payments AS p SET refund_check_time = clock_timestamp() + make_interval(secs => :lease)"  # noqa: S608
            " WHERE p.id IN (SELECT id FROM payments WHERE refund_check_time <= now() ORDER BY refund_check_time"
            " LIMIT :most FOR UPDATE SKIP LOCKED)"
            f" RETURNING {', '.join(f'p.{name}' for name in NAMES)}, p.refund_check_time"
        ),
        {"lease": REFUND_CHECK_SECONDS, "most": most},
    )
    return [RefundCheck(from_row(row[:-1]), row[-1]) for row in claimed]


async def end_refund_check(tx: AsyncSession, check: RefundCheck) -> None:
    """End a comparison, unless a later event has asked for another one."""
    await tx.execute(
        text("UPDATE payments SET refund_check_time = NULL WHERE id = :id AND refund_check_time = :time"),
        {"id": check.payment.id, "time": check.lease_time},
    )


async def claim_due(tx: AsyncSession, *, besides: Sequence[uuid.UUID], most: int) -> list[tuple[Payment, Calls]]:
    """Lease due payments; return each with its earlier calls."""
    rows = await leases.claim(tx, "payments", NAMES, key_time="attempt_time", besides=besides, most=most, sent=True)
    # A process of the release before does not write `sent`; its call without an answer shows all the same.
    return [(from_row(row[:-3]), Calls(row[-3], row[-2], is_first=not row[-1] and row[-2] is None)) for row in rows]


async def mark_unsent(tx: AsyncSession, read: Sequence[Payment]) -> None:
    """Note that no call was ever sent for locked payments: they can be cancelled without the provider's word.

    One that another process has claimed since it was `read` is left alone: that process may have sent one.
    """
    if read:
        await tx.execute(
            text(
                "UPDATE payments AS p SET sent = false FROM unnest(CAST(:ids AS uuid[]), CAST(:versions AS bigint[]),"
                " CAST(:checks AS bigint[])) AS n(id, version, checks)"
                " WHERE p.id = n.id AND p.version = n.version AND p.checks = n.checks"
            ),
            {"ids": [p.id for p in read], "versions": [p.version for p in read], "checks": [p.checks for p in read]},
        )


async def make_waiting_due(tx: AsyncSession, providers: Sequence[str], *, most: int | None = None) -> None:
    """Make payments due whose first call was not answered, the oldest first; without `most` all.

    Their checks count on: a key which the provider answers with 500 for ever is searched, and replaced, in the end.
    """
    await tx.execute(
        text(
            "UPDATE payments SET next_check_time = now() WHERE id IN ("
            " SELECT id FROM payments WHERE state = 'PROCESSING' AND provider_reference IS NULL AND checks > 0"
            # Not those in progress, which a process has leased for that long.
            " AND next_check_time > now() + make_interval(secs => :lease) AND provider = ANY(:providers)"
            " ORDER BY create_time LIMIT :most FOR UPDATE SKIP LOCKED)"
        ),
        {"most": most, "lease": LEASE_SECONDS, "providers": list(providers)},
    )
