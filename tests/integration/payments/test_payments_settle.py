"""The fast statement that stores provider results does exactly what the slow path does."""

import dataclasses
import itertools
import uuid
from typing import Any

from services.chassis.data.db import Database
from services.chassis.money import Money
from services.payments.dispatch import settle
from services.payments.dispatch.rules import check_seconds
from services.payments.domain import Charge, Payment, State
from services.payments.providers.results import ChargeResult, ChargeStatus
from services.payments.sql import payments
from stampede.payments.v1 import events_pb2
from tests.integration.payments.conftest import Payments

# Every open payment that exists, before a result of every status.
CASES = list(
    itertools.product(
        (State.PROCESSING, State.AWAITING_CUSTOMER), (True, False), (True, False), (True, False), ChargeStatus
    )
)


async def opened(db: Database) -> list[Payment]:
    """Store one payment for each case."""
    charges = [
        Charge(
            order_id=uuid.uuid4(),
            customer_id=uuid.uuid4(),
            amount=Money("USD", 1999),
            payment_method="" if customer_pays else "pm_card_visa",
        )
        for _, customer_pays, _, _, _ in CASES
    ]
    async with db.begin() as tx:
        made = await payments.insert(tx, charges, state=State.PROCESSING, provider="stripe")
        before = [
            dataclasses.replace(
                made[charge.order_id],
                state=state,
                checks=3,
                client_secret="secret",
                provider_reference=f"pi_{charge.order_id}" if known else None,
            )
            for charge, (state, _, known, _, _) in zip(charges, CASES, strict=True)
        ]
        await payments.store(tx, before)
        cancelled = [p.id for p, (_, _, _, cancels, _) in zip(before, CASES, strict=True) if cancels]
        await payments.request_cancel(tx, cancelled)
    async with db() as tx:
        found = await payments.read(tx, [payment.id for payment in before])
    return [found[payment.id] for payment in before]


def results_of(before: list[Payment]) -> list[ChargeResult]:
    return [
        ChargeResult(
            payment_id=payment.id,
            status=status,
            reference=f"pi_{payment.order_id}",
            client_secret="new secret",
            amount_minor=1999,
            currency="usd",
            reason="CARD_DECLINED" if status is ChargeStatus.DECLINED else "",
            authenticating=status is ChargeStatus.REQUIRES_ACTION,
        )
        for payment, (*_, status) in zip(before, CASES, strict=True)
    ]


async def stored(service: Payments, before: list[Payment]) -> list[tuple[Any, ...]]:
    """Return what the rows and the outbox contain of payments, without ids, keys and times."""
    async with service.db() as tx:
        after = await payments.read(tx, [payment.id for payment in before])
    pauses = dict(
        [
            tuple(row)
            for row in await service.rows("SELECT id, extract(epoch FROM next_check_time - now()) FROM payments")
        ]
    )
    events: dict[str, list[tuple[str, str, str]]] = {}
    for subject, key, payload in await service.rows("SELECT subject, key, payload FROM outbox ORDER BY id"):
        event = events_pb2.PaymentChanged.FromString(payload)
        assert key == event.payment_id
        events.setdefault(key, []).append((subject, event.state, event.failure_reason))
    rows = []
    for payment in (after[p.id] for p in before):
        expected, pause = check_seconds(payment), pauses[payment.id]
        assert (pause is None) == (expected is None)
        assert expected is None or float(pause) <= expected * 1.25
        values = dataclasses.asdict(payment)
        for name in ("id", "order_id", "customer_id", "create_time", "update_time", "answer_time"):
            values.pop(name)
        values["answer_time"] = payment.answer_time is not None
        values["provider_reference"] = payment.provider_reference and payment.provider_reference[:3]
        rows.append((values, events.get(str(payment.id), [])))
    return rows


async def test_fast_and_slow_settling_are_equal(service: Payments) -> None:
    """112 cases: every open payment, with and without a reference or a requested cancellation, and every status."""
    fast, slow = await opened(service.db), await opened(service.db)
    returned = await settle.settle_charges(service.db, list(zip(fast, results_of(fast), strict=True)))
    async with service.db.begin() as tx:
        locked = await payments.lock(tx, [payment.id for payment in slow])
        await settle.apply_results(tx, locked, results_of(slow))
    assert await stored(service, fast) == await stored(service, slow)
    async with service.db() as tx:
        found = (await payments.read(tx, [p.id for p in fast])).values()
    assert [dataclasses.replace(p, answer_time=None) for p in sorted(found, key=lambda p: p.id)] == [
        dataclasses.replace(p, answer_time=None) for p in sorted(returned, key=lambda p: p.id)
    ]


async def test_the_fast_statement_leaves_a_changed_row_alone(service: Payments) -> None:
    before = (await opened(service.db))[:1]
    async with service.db.begin() as tx:
        await payments.add_refunding(tx, {before[0].id: 1})
    changes = [payments.Change(dataclasses.replace(p, state=State.SUCCEEDED)) for p in before]
    assert await payments.store_fast(service.db, changes) == {}
    async with service.db() as tx:
        assert (await payments.read_one(tx, before[0].id, lock=False)).state is before[0].state
