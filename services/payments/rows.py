"""Payments' statements: each one a single round trip for any number of rows, inside the caller's transaction."""

import dataclasses
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import orjson
from sqlalchemy import Row, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis import ids
from services.chassis.data.db import Database, run_autocommit
from services.chassis.money import Money
from services.payments import tables
from services.payments.domain import (
    LEASE_SECONDS,
    OPEN,
    Payment,
    Refund,
    RefundState,
    State,
    check_seconds,
    refund_check_seconds,
)

_PROVIDER = "stripe"
# Stripe keeps an idempotency key for 24 hours; from then on a repeat would be a second charge.
_KEY_HOURS = 20

PAYMENT = tuple(getattr(tables.Payment, field.name) for field in dataclasses.fields(Payment))
_REFUND = tuple(getattr(tables.Refund, field.name) for field in dataclasses.fields(Refund))
_PAYMENT_LIST = ", ".join(f"p.{column.key}" for column in PAYMENT)
_REFUND_LIST = ", ".join(f"r.{column.key}" for column in _REFUND)


class Wanted(Protocol):
    """What `insert` needs to know of an order."""

    @property
    def id(self) -> uuid.UUID: ...
    @property
    def customer_id(self) -> uuid.UUID: ...
    @property
    def amount(self) -> Money: ...
    @property
    def payment_method(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRefund:
    """A refund to be begun. `stray_reference` names the provider's charge where the payment never counted it."""

    id: uuid.UUID
    payment: Payment
    amount_minor: int
    reason: str
    stray_reference: str | None = None


class Standing(NamedTuple):
    """A refund, and its payment at the same moment."""

    refund: Refund
    payment: Payment


def payment(row: Sequence[Any]) -> Payment:
    """A row of the columns `PAYMENT` as a value."""
    values = dict(zip(_PAYMENT_NAMES, row, strict=True))
    values["state"] = State(values["state"])
    return Payment(**values)


def _refund(row: Sequence[Any]) -> Refund:
    values = dict(zip(_REFUND_NAMES, row, strict=True))
    values["state"] = RefundState(values["state"])
    return Refund(**values)


_PAYMENT_NAMES = tuple(column.key for column in PAYMENT)
_REFUND_NAMES = tuple(column.key for column in _REFUND)


_INSERT = text("""
    INSERT INTO payments (id, order_id, customer_id, amount_minor, currency, state, provider, customer_pays,
        payment_method, attempt, attempt_time, failure_reason, refunded_minor, refunding_minor, cancel_requested,
        checks, authenticating, next_check_time, version)
    SELECT n.id, n.order_id, n.customer_id, n.amount, n.currency, :state, :provider, n.method IS NULL,
        CASE WHEN :begun THEN n.method END, 1, now(), '', 0, 0, NOT :begun, 0, false,
        CASE WHEN :begun THEN now() + make_interval(secs => :lease) END, 1
    FROM jsonb_to_recordset(CAST(:orders AS jsonb)) AS n (
        id uuid, order_id uuid, customer_id uuid, amount bigint, currency text, method text)
    ORDER BY n.order_id
    ON CONFLICT ON CONSTRAINT payments_order_id_key DO NOTHING
    RETURNING id, create_time
""")


async def insert(tx: AsyncSession, orders: Sequence[Wanted], *, state: State) -> dict[uuid.UUID, Payment]:
    """Payments for those of `orders` that had none, by order. They go in sorted, so that batches cannot deadlock."""
    fresh = _fresh(orders)
    return _made(fresh, (await tx.execute(_INSERT, _to_insert(fresh, state))).all(), state)


async def insert_alone(db: Database, orders: Sequence[Wanted], *, state: State) -> dict[uuid.UUID, Payment]:
    """The same as a transaction by itself."""
    fresh = _fresh(orders)
    return _made(fresh, await run_autocommit(db, _INSERT, _to_insert(fresh, state)), state)


def _fresh(orders: Sequence[Wanted]) -> dict[uuid.UUID, Wanted]:
    return {ids.new(): order for order in orders}


def _to_insert(fresh: Mapping[uuid.UUID, Wanted], state: State) -> dict[str, object]:
    document = [
        {
            "id": id_,
            "order_id": order.id,
            "customer_id": order.customer_id,
            "amount": order.amount.minor,
            "currency": order.amount.currency,
            "method": order.payment_method or None,
        }
        for id_, order in fresh.items()
    ]
    return {
        "orders": orjson.dumps(document).decode(), "state": str(state), "provider": _PROVIDER,
        "begun": state in OPEN, "lease": LEASE_SECONDS,
    }  # fmt: skip


def _made(fresh: Mapping[uuid.UUID, Wanted], inserted: Sequence[Row[Any]], state: State) -> dict[uuid.UUID, Payment]:
    """What the statement has just written, without reading it back."""
    begun = state in OPEN
    made = {}
    for row in inserted:
        order, time = fresh[row.id], row.create_time
        made[order.id] = Payment(
            id=row.id, order_id=order.id, customer_id=order.customer_id, amount_minor=order.amount.minor,
            currency=order.amount.currency, state=state, provider=_PROVIDER, customer_pays=not order.payment_method,
            payment_method=(order.payment_method or None) if begun else None, provider_reference=None,
            client_secret=None, attempt=1, failure_reason="", authenticating=False, refunded_minor=0,
            refunding_minor=0, cancel_requested=not begun, checks=0, version=1, create_time=time, update_time=time,
        )  # fmt: skip
    return made


async def new_attempts(tx: AsyncSession, cards: Mapping[uuid.UUID, str]) -> dict[uuid.UUID, Payment]:
    """Begins an attempt with another card for waiting payments; by order, those that still waited."""
    begun = await tx.execute(
        text(
            "UPDATE payments AS p SET state = 'PROCESSING', payment_method = n.method, attempt = p.attempt + 1,"  # noqa: S608
            " attempt_time = now(), failure_reason = '', authenticating = false, checks = 0,"
            " version = p.version + 1, update_time = now(), next_check_time = now() + make_interval(secs => :lease)"
            " FROM unnest(CAST(:ids AS uuid[]), CAST(:methods AS text[])) AS n(id, method)"
            " WHERE p.id = n.id AND p.state = 'AWAITING_CUSTOMER' AND NOT p.cancel_requested"
            f" RETURNING {_PAYMENT_LIST}"
        ),
        {"ids": sorted(cards), "methods": [cards[key] for key in sorted(cards)], "lease": LEASE_SECONDS},
    )
    return {row.order_id: payment(row) for row in begun}


async def request_cancel(tx: AsyncSession, payment_ids: Sequence[uuid.UUID]) -> None:
    """Marks locked payments to be cancelled as soon as the provider allows it."""
    await tx.execute(
        text(
            "UPDATE payments SET cancel_requested = true, checks = 0, update_time = now(), version = version + 1,"
            " next_check_time = CASE state WHEN 'AWAITING_CUSTOMER' THEN now() + make_interval(secs => :lease)"
            " ELSE next_check_time END WHERE id = ANY(CAST(:ids AS uuid[]))"
        ),
        {"ids": list(payment_ids), "lease": LEASE_SECONDS},
    )


async def locked(tx: AsyncSession, payment_ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, Payment]:
    """Payments by id, locked in the order of their ids."""
    wanted = select(*PAYMENT).where(tables.Payment.id.in_(list(payment_ids))).order_by(tables.Payment.id)
    found = await tx.execute(wanted.with_for_update())
    return {row.id: payment(row) for row in found}


async def store(tx: AsyncSession, changed: Sequence[Payment], *, unchanged: Sequence[Payment] = ()) -> None:
    """Writes locked payments back, with the time of their next check; of `unchanged` ones that time alone."""
    payments = [*changed, *unchanged]
    if not payments:
        return
    await tx.execute(
        text(
            "UPDATE payments AS p SET state = n.state, payment_method = n.method, provider_reference = n.reference,"
            " client_secret = n.secret, failure_reason = n.reason, authenticating = n.authenticating,"
            " refunded_minor = n.refunded, refunding_minor = n.refunding, checks = n.checks,"
            " version = p.version + n.bump, update_time = CASE n.bump WHEN 1 THEN now() ELSE p.update_time END,"
            " next_check_time = now() + make_interval(secs => n.pause * (0.75 + random() / 2))"
            " FROM unnest(CAST(:ids AS uuid[]), CAST(:states AS text[]), CAST(:methods AS text[]),"
            " CAST(:references AS text[]), CAST(:secrets AS text[]), CAST(:reasons AS text[]),"
            " CAST(:authenticating AS boolean[]), CAST(:refunded AS bigint[]), CAST(:refunding AS bigint[]),"
            " CAST(:checks AS bigint[]), CAST(:bumps AS int[]), CAST(:pauses AS double precision[]))"
            " AS n(id, state, method, reference, secret, reason, authenticating, refunded, refunding, checks, bump,"
            " pause)"
            " WHERE p.id = n.id"
        ),
        {
            "ids": [p.id for p in payments],
            "states": [str(p.state) for p in payments],
            "methods": [p.payment_method for p in payments],
            "references": [p.provider_reference for p in payments],
            "secrets": [p.client_secret for p in payments],
            "reasons": [p.failure_reason for p in payments],
            "authenticating": [p.authenticating for p in payments],
            "refunded": [p.refunded_minor for p in payments],
            "refunding": [p.refunding_minor for p in payments],
            "checks": [p.checks for p in payments],
            "bumps": [1] * len(changed) + [0] * len(unchanged),
            "pauses": [check_seconds(p) for p in payments],
        },
    )


async def look_now(tx: AsyncSession, payment_ids: Sequence[uuid.UUID]) -> None:
    """Has the reconciler ask the provider about these at once."""
    await tx.execute(
        text(
            "UPDATE payments SET next_check_time = now()"
            " WHERE id = ANY(CAST(:ids AS uuid[])) AND next_check_time > now()"
        ),
        {"ids": list(payment_ids)},
    )


async def insert_refunds(tx: AsyncSession, refunds: Sequence[NewRefund]) -> None:
    """Commits refunds to be made, and counts them into their payments, whose rows the caller has locked.

    One that is there already, as a stray charge that is told of twice, is left alone.
    """
    if not refunds:
        return
    await tx.execute(
        text(
            "WITH made AS (INSERT INTO refunds (id, payment_id, amount_minor, reason, state, stray, charge_reference,"
            " failure_reason, checks, next_check_time)"
            " SELECT n.id, n.payment_id, n.amount, n.reason, 'PENDING', n.stray, n.reference, '', 0,"
            " now() + CASE WHEN n.stray THEN interval '0' ELSE make_interval(secs => :lease) END"
            " FROM unnest(CAST(:ids AS uuid[]), CAST(:payments AS uuid[]), CAST(:amounts AS bigint[]),"
            " CAST(:reasons AS text[]), CAST(:strays AS boolean[]), CAST(:references AS text[]))"
            " AS n(id, payment_id, amount, reason, stray, reference)"
            " ON CONFLICT DO NOTHING RETURNING payment_id, amount_minor, stray)"
            # Summed up first: of several rows that fit one payment, an UPDATE takes just one.
            " UPDATE payments AS p SET refunding_minor = p.refunding_minor + s.amount,"
            " version = p.version + 1, update_time = now()"
            " FROM (SELECT payment_id, sum(amount_minor) AS amount FROM made WHERE NOT stray GROUP BY payment_id) AS s"
            " WHERE p.id = s.payment_id"
        ),
        {
            "ids": [r.id for r in refunds],
            "payments": [r.payment.id for r in refunds],
            "amounts": [r.amount_minor for r in refunds],
            "reasons": [r.reason for r in refunds],
            "strays": [r.stray_reference is not None for r in refunds],
            "references": [r.stray_reference or r.payment.provider_reference for r in refunds],
            "lease": LEASE_SECONDS,
        },
    )


async def refunds(tx: AsyncSession, refund_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, Standing]:
    """Those of the refunds that are there, by id."""
    both = select(*_REFUND, *PAYMENT).join(tables.Payment, tables.Payment.id == tables.Refund.payment_id)
    found = await tx.execute(both.where(tables.Refund.id.in_(refund_ids)))
    standing = [Standing(_refund(row[: len(_REFUND)]), payment(row[len(_REFUND) :])) for row in found]
    return {one.refund.id: one for one in standing}


async def pending_refunds(tx: AsyncSession, payment_ids: Sequence[uuid.UUID]) -> list[Refund]:
    """The refunds of these payments that the provider has not confirmed."""
    if not payment_ids:
        return []
    found = await tx.execute(
        select(*_REFUND).where(
            tables.Refund.payment_id.in_(payment_ids), tables.Refund.state == str(RefundState.PENDING)
        )
    )
    return [_refund(row) for row in found]


async def locked_refunds(tx: AsyncSession, refund_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, Refund]:
    """Refunds by id, locked; after their payments, as everywhere."""
    wanted = select(*_REFUND).where(tables.Refund.id.in_(refund_ids)).order_by(tables.Refund.id)
    return {row.id: _refund(row) for row in await tx.execute(wanted.with_for_update())}


async def store_refunds(tx: AsyncSession, refunds: Sequence[Refund]) -> None:
    """Writes locked refunds back, with the time of their next check."""
    await tx.execute(
        text(
            "UPDATE refunds AS r SET state = n.state, provider_reference = n.reference, failure_reason = n.reason,"
            " update_time = now(), next_check_time = now() + make_interval(secs => n.pause * (0.75 + random() / 2))"
            " FROM unnest(CAST(:ids AS uuid[]), CAST(:states AS text[]), CAST(:references AS text[]),"
            " CAST(:reasons AS text[]), CAST(:pauses AS double precision[])) AS n(id, state, reference, reason, pause)"
            " WHERE r.id = n.id"
        ),
        {
            "ids": [r.id for r in refunds],
            "states": [str(r.state) for r in refunds],
            "references": [r.provider_reference for r in refunds],
            "reasons": [r.failure_reason for r in refunds],
            "pauses": [refund_check_seconds(r) for r in refunds],
        },
    )


async def claim_payments(tx: AsyncSession, *, besides: Sequence[uuid.UUID], most: int) -> list[tuple[Payment, bool]]:
    """Takes payments whose time has come, for the length of a lease; and whether their key may be forgotten."""
    return [
        (payment(row[:-1]), row[-1])
        for row in await _claim(tx, "payments", "p", _PAYMENT_LIST, "attempt", besides, most)
    ]


async def claim_refunds(tx: AsyncSession, *, besides: Sequence[uuid.UUID], most: int) -> list[tuple[Refund, bool]]:
    """The same for refunds."""
    return [
        (_refund(row[:-1]), row[-1]) for row in await _claim(tx, "refunds", "r", _REFUND_LIST, "create", besides, most)
    ]


async def _claim(
    tx: AsyncSession, table: str, alias: str, columns: str, since: str, besides: Sequence[uuid.UUID], most: int
) -> list[Any]:
    claimed = await tx.execute(
        text(
            f"UPDATE {table} AS {alias} SET checks = {alias}.checks + 1,"  # noqa: S608  # names of our own
            " next_check_time = now() + make_interval(secs => :lease)"
            f" WHERE {alias}.id IN (SELECT id FROM {table} WHERE next_check_time <= now()"
            " AND id <> ALL(CAST(:besides AS uuid[])) ORDER BY next_check_time LIMIT :most FOR UPDATE SKIP LOCKED)"
            f" RETURNING {columns}, {alias}.{since}_time < now() - make_interval(hours => {_KEY_HOURS})"
        ),
        {"lease": LEASE_SECONDS, "besides": list(besides), "most": most},
    )
    return list(claimed.all())
