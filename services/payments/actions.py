"""What payments does, each function one transaction. The provider is never asked inside of one."""

import dataclasses
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from prometheus_client import Counter
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis import ids
from services.chassis.data.db import Database
from services.chassis.errors import AppError, RequestIdReused
from services.chassis.events import outbox
from services.chassis.events.outbox import Event
from services.chassis.money import Money
from services.payments import quick, rows, tables
from services.payments.domain import (
    LEASE_SECONDS,
    OPEN,
    Fact,
    Payment,
    PaymentNotFound,
    Refund,
    State,
    Verdict,
    decide,
)
from services.payments.quick import Change
from stampede.payments.v1 import events_pb2

log = structlog.get_logger()

_ODD = Counter(
    "stampede_payment_facts_odd_total", "Facts with another amount, or money nobody waited for.", ["verdict"]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One order as orders names it: whom to charge, and how much."""

    id: uuid.UUID
    customer_id: uuid.UUID
    amount: Money
    payment_method: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """The payment of one order, and whether the caller is the one who must ask the provider."""

    payment: Payment
    ask: bool
    refunds: tuple[Refund, ...] = ()


async def begin_charges(db: Database, orders: Sequence[Order]) -> list[Begun | AppError]:
    """Commits the payments of `orders`, so that whatever happens next can be found again.

    An order that has a payment keeps it, and one that is named twice gets one. `RequestIdReused` where the payment is
    for another customer or amount.
    """
    made = await rows.insert_alone(db, orders, state=State.PROCESSING)
    known: dict[uuid.UUID, Payment] = {}
    retried: dict[uuid.UUID, Payment] = {}
    if missing := [order.id for order in orders if order.id not in made]:
        async with db.begin() as tx:
            known = await read(tx, missing, lock=False)
            retried = await _new_cards(tx, orders, known)
    found = known | retried | made
    ours = made.keys() | retried.keys()
    return [
        RequestIdReused(requestId=order.id)
        if _differs(found[order.id], order)
        else Begun(payment=found[order.id], ask=order.id in ours)
        for order in orders
    ]


async def _new_cards(
    tx: AsyncSession, orders: Sequence[Order], known: dict[uuid.UUID, Payment]
) -> dict[uuid.UUID, Payment]:
    """A card for a payment that waits for its customer is a new attempt, under a new key."""
    cards = {
        payment.id: order.payment_method
        for order in orders
        if (payment := known.get(order.id)) is not None
        and order.payment_method
        and payment.customer_pays
        and payment.state is State.AWAITING_CUSTOMER
        and not payment.cancel_requested
        and not _differs(payment, order)
    }
    return await rows.new_attempts(tx, cards) if cards else {}


def _differs(payment: Payment, order: Order) -> bool:
    same = Money(payment.currency, payment.amount_minor) == order.amount
    return not same or payment.customer_id != order.customer_id


async def give_up(db: Database, orders: Sequence[Order]) -> list[Begun]:
    """Sees to it that `orders` are not paid: the payments, those with `ask` to be cancelled at the provider first.

    The row's lock decides between a charge and this: whoever comes second finds what the first one did.
    """
    async with db.begin() as tx:
        found = await _give_up(tx, orders)
    return [Begun(payment=found[order.id], ask=_cancellable(found[order.id])) for order in orders]


def _cancellable(payment: Payment) -> bool:
    return payment.state is State.AWAITING_CUSTOMER


async def _give_up(tx: AsyncSession, orders: Sequence[Order]) -> dict[uuid.UUID, Payment]:
    # An order without a payment gets a cancelled one, which a charge that comes late will find.
    made = await rows.insert(tx, orders, state=State.CANCELLED)
    await _tell(tx, list(made.values()))
    found = made | await read(tx, [order.id for order in orders if order.id not in made], lock=True)
    wanted = [p for p in found.values() if p.state in OPEN and not p.cancel_requested]
    if wanted:
        await rows.request_cancel(tx, [payment.id for payment in wanted])
        found |= {p.order_id: dataclasses.replace(p, cancel_requested=True) for p in wanted}
    return found


async def begin_refunds(db: Database, orders: Sequence[Order]) -> list[Begun]:
    """Commits what must be paid back so that nothing of `orders` stays paid; what is not paid yet is given up."""
    async with db.begin() as tx:
        found = await _give_up(tx, orders)
        paid = [p for p in found.values() if p.state is State.SUCCEEDED]
        due = [
            rows.NewRefund(id=ids.new(), payment=p, amount_minor=p.left_minor, reason="order refunded")
            for p in paid
            if p.left_minor > 0
        ]
        await rows.insert_refunds(tx, due)
        pending = await rows.pending_refunds(tx, [p.id for p in paid])
    outcomes = []
    for order in orders:
        payment = found[order.id]
        mine = tuple(refund for refund in pending if refund.payment_id == payment.id)
        outcomes.append(Begun(payment=payment, ask=_cancellable(payment), refunds=mine))
    return outcomes


async def get_payments(db: Database, payment_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, Payment]:
    """Payments by id."""
    async with db() as tx:
        found = await tx.execute(select(*rows.PAYMENT).where(tables.Payment.id.in_(payment_ids)))
        return {row.id: rows.payment(row) for row in found}


async def get_payment(db: Database, payment_id: uuid.UUID) -> Payment:
    async with db() as tx:
        return await one(tx, payment_id, lock=False)


async def settle(db: Database, said: Sequence[tuple[Payment, Fact]]) -> list[Payment]:
    """Stores what the provider said of payments, and tells of each that came to rest; the payments as they are now.

    Each payment comes once, as it was read: where nobody has changed it since, that is all there is to look at.
    """
    plain = {payment.id: change for payment, fact in said if (change := _plain(payment, fact))}
    stored = await quick.change(db, list(plain.values())) if plain else {}
    if rest := [fact for payment, fact in said if payment.id not in stored]:
        async with db.begin() as tx:
            before = await rows.locked(tx, {fact.payment_id for fact in rest})
            stored |= await apply(tx, before, rest)
    return [stored[payment.id] for payment, _ in said]


def _plain(payment: Payment, fact: Fact) -> Change | None:
    """What `fact` changes of `payment`; None where it changes nothing, or is out of the ordinary."""
    after, verdict = decide(payment, fact)
    if verdict is not Verdict.TAKEN or after == payment:
        return None
    rests = after.state is not payment.state and after.state not in OPEN
    return Change(payment, after, _event(after, as_refunded=False) if rests else None)


async def apply(tx: AsyncSession, before: dict[uuid.UUID, Payment], facts: Sequence[Fact]) -> dict[uuid.UUID, Payment]:
    """`before`, locked rows by id, after `facts`: stored and told within `tx`."""
    after = dict(before)
    stray: list[rows.NewRefund] = []
    for fact in facts:
        after[fact.payment_id], verdict = decide(after[fact.payment_id], fact)
        if verdict is not Verdict.TAKEN:
            _ODD.labels(verdict.name).inc()
            log.error("a fact does not fit", payment_id=fact.payment_id, verdict=verdict.name, said=fact.kind.name)
        if verdict is Verdict.STRAY_MONEY:
            stray.append(_stray(after[fact.payment_id], fact))
    changed = [payment for payment in after.values() if payment != before[payment.id]]
    waiting = [payment for payment in after.values() if payment == before[payment.id] and payment.state in OPEN]
    await rows.store(tx, changed, unchanged=waiting)
    await rows.insert_refunds(tx, stray)
    await _tell(tx, [p for p in changed if p.state is not before[p.id].state and p.state not in OPEN])
    return after


def _stray(payment: Payment, fact: Fact) -> rows.NewRefund:
    assert fact.reference is not None
    return rows.NewRefund(
        id=uuid.uuid5(payment.id, fact.reference),  # told of twice, it still goes back once
        payment=payment,
        amount_minor=fact.amount_minor or payment.amount_minor,
        reason="arrived after the payment had ended without it",
        stray_reference=fact.reference,
    )


async def claim_due(db: Database, *, besides: Sequence[uuid.UUID], most: int) -> list[tuple[Payment, bool]]:
    """Takes payments that are due to be asked about, and whether the provider may have forgotten their key."""
    async with db.begin() as tx:
        return await rows.claim_payments(tx, besides=besides, most=most)


async def claim_due_refunds(db: Database, *, besides: Sequence[uuid.UUID], most: int) -> list[tuple[Refund, bool]]:
    """The same for refunds."""
    async with db.begin() as tx:
        return await rows.claim_refunds(tx, besides=besides, most=most)


async def renew(db: Database, *, payments: Sequence[uuid.UUID], refunds: Sequence[uuid.UUID]) -> None:
    """Says that this process still works on these, so that no other one takes them over."""
    async with db.begin() as tx:
        for table, mine in (("payments", payments), ("refunds", refunds)):
            if mine:
                await tx.execute(
                    text(
                        f"UPDATE {table} SET next_check_time = now() + make_interval(secs => :lease)"  # noqa: S608
                        " WHERE id IN (SELECT id FROM " + table + " WHERE id = ANY(CAST(:ids AS uuid[]))"
                        " AND next_check_time IS NOT NULL ORDER BY id FOR UPDATE SKIP LOCKED)"
                    ),
                    {"ids": list(mine), "lease": LEASE_SECONDS},
                )


async def new_attempt(db: Database, payment: Payment) -> None:
    """Gives up on a key under which the provider made nothing, for a fresh one; not before ten minutes have passed."""
    async with db.begin() as tx:
        await tx.execute(
            text(
                "UPDATE payments SET attempt = attempt + 1, attempt_time = now(), checks = 0, version = version + 1"
                " WHERE id = :id AND attempt = :attempt AND state = 'PROCESSING' AND provider_reference IS NULL"
                " AND attempt_time < now() - interval '10 minutes'"
            ),
            {"id": payment.id, "attempt": payment.attempt},
        )


async def forget_old(db: Database) -> None:
    """Drops handled events after 30 days and request ids after 7, some thousands at a time."""
    async with db.begin() as tx:
        for statement in (
            "DELETE FROM provider_events WHERE (provider, event_id) IN (SELECT provider, event_id FROM provider_events"
            " WHERE processed_time < now() - interval '30 days' LIMIT 5000)",
            "DELETE FROM requests WHERE (caller, method, request_id) IN (SELECT caller, method, request_id"
            " FROM requests WHERE create_time < now() - interval '7 days' LIMIT 5000)",
        ):
            await tx.execute(text(statement))


async def count_open(db: Database) -> dict[str, int]:
    """How many payments stand in each open state."""
    async with db() as tx:
        counted = await tx.execute(
            select(tables.Payment.state, func.count())
            .where(tables.Payment.next_check_time.is_not(None))
            .group_by(tables.Payment.state)
        )
        return {row[0]: row[1] for row in counted}


async def _tell(tx: AsyncSession, payments: Sequence[Payment], *, as_refunded: bool = False) -> None:
    await outbox.publish(tx, [_event(payment, as_refunded=as_refunded) for payment in payments])


def _event(payment: Payment, *, as_refunded: bool) -> Event:
    name = "refunded" if as_refunded else payment.state.lower()
    message = events_pb2.PaymentChanged(
        payment_id=str(payment.id),
        order_id=str(payment.order_id),
        state=payment.state,
        failure_reason=payment.failure_reason,
        refunded_minor_units=payment.refunded_minor,
        amount_minor_units=payment.amount_minor,
    )
    return Event(f"stampede.payments.payment.{name}", message.payment_id, message)


async def tell_refunded(tx: AsyncSession, payments: Sequence[Payment]) -> None:
    """Tells of money that went back, in part or whole."""
    await _tell(tx, payments, as_refunded=True)


async def read(tx: AsyncSession, order_ids: Sequence[uuid.UUID], *, lock: bool) -> dict[uuid.UUID, Payment]:
    """Payments by order. Locks are taken in the order of payment ids, as everywhere."""
    if not order_ids:
        return {}
    wanted = select(*rows.PAYMENT).where(tables.Payment.order_id.in_(order_ids)).order_by(tables.Payment.id)
    found = (await tx.execute(wanted.with_for_update() if lock else wanted)).all()
    return {payment.order_id: payment for payment in map(rows.payment, found)}


async def one(tx: AsyncSession, payment_id: uuid.UUID, *, lock: bool) -> Payment:
    wanted = select(*rows.PAYMENT).where(tables.Payment.id == payment_id)
    found = (await tx.execute(wanted.with_for_update() if lock else wanted)).one_or_none()
    if found is None:
        raise PaymentNotFound(paymentId=payment_id)
    return rows.payment(found)
