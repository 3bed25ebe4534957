"""Refunds that orders steers: parts of a payment, each named by its own id, paid back once."""

import asyncio
import uuid
from typing import Any

import pytest
import sqlalchemy

from services.chassis.money import Money
from services.payments import refunds
from stampede.payments.v1 import charge_service_pb2 as pb
from stampede.type.v1 import money_pb2
from tests.integration.payments.conftest import KEY, ORDERS, Payments, Sandbox, State, an_order, until
from tests.support import tokens
from tests.support.serving import refusal

Refunded = pb.RefundStatus.State


def a_refund(order_id: str, minor: int | None = None, *, refund_id: str = "", currency: str = "USD") -> pb.Refund:
    amount = None if minor is None else money_pb2.Money(currency_code=currency, minor_units=minor)
    return pb.Refund(refund_id=refund_id or str(uuid.uuid4()), order_id=order_id, amount=amount, reason="damaged")


async def outcomes(service: Payments, *parts: pb.Refund) -> list[pb.RefundOutcome]:
    answer = await service.charges.BatchCreateRefunds(pb.BatchCreateRefundsRequest(refunds=parts), metadata=ORDERS)
    return list(answer.outcomes)


async def create(service: Payments, *parts: pb.Refund) -> list[pb.RefundStatus]:
    answered = await outcomes(service, *parts)
    assert all(outcome.HasField("refund") for outcome in answered), answered
    return [outcome.refund for outcome in answered]


async def refusals(service: Payments, *parts: pb.Refund) -> list[str]:
    return [outcome.refusal.reason for outcome in await outcomes(service, *parts)]


async def paid(service: Payments, minor: int = 1999) -> str:
    """The id of an order that is paid."""
    item = an_order(minor=minor)
    assert (await service.charged(item)).state == State.SUCCEEDED
    return item.order_id


async def sent_back(sandbox: Sandbox, order_id: str) -> list[int]:
    """What the provider paid back for the order, refund by refund, the largest first."""
    (intent,) = await sandbox.intents(order_id)
    return sorted((refund["amount"] for refund in await sandbox.refunds(intent["id"])), reverse=True)


async def open_sum(service: Payments, order_id: str) -> int:
    ((minor,),) = await service.rows("SELECT refunding_minor FROM payments WHERE order_id = :id", id=order_id)
    return int(minor)


async def test_a_part_is_paid_back_and_told(service: Payments, sandbox: Sandbox) -> None:
    order_id = await paid(service)
    part = a_refund(order_id, 500)
    (refund,) = await create(service, part)
    assert refund == pb.RefundStatus(
        refund_id=part.refund_id,
        state=Refunded.SUCCEEDED,
        amount=money_pb2.Money(currency_code="USD", minor_units=500),
        refunded=money_pb2.Money(currency_code="USD", minor_units=500),
    )
    assert await sent_back(sandbox, order_id) == [500]
    assert await service.published_refunds(order_id) == [500]


async def test_a_repeat_finds_the_same_refund(service: Payments, sandbox: Sandbox) -> None:
    order_id = await paid(service)
    part = a_refund(order_id, 500)
    assert await create(service, part) == await create(service, part)
    assert await sent_back(sandbox, order_id) == [500]
    assert await service.published_refunds(order_id) == [500]


async def test_at_once_and_many_times_it_pays_once(service: Payments, sandbox: Sandbox) -> None:
    order_id = await paid(service)
    part = a_refund(order_id, 1500)
    async with service.db.begin() as tx:  # none gets on before all have come
        await tx.execute(sqlalchemy.text("SELECT 1 FROM payments FOR UPDATE"))
        calls = [asyncio.create_task(create(service, part)) for _ in range(5)]

        async def all_wait() -> bool:
            return await service.rows(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            ) == [(5,)]

        await until(all_wait)
    answers = await asyncio.gather(*calls)
    assert {(refund.state, refund.refunded.minor_units) for (refund,) in answers} == {(Refunded.SUCCEEDED, 1500)}
    assert await sent_back(sandbox, order_id) == [1500]
    assert await service.published_refunds(order_id) == [1500]


async def test_two_parts_and_then_the_rest_are_the_whole(service: Payments, sandbox: Sandbox) -> None:
    order_id = await paid(service)
    parts = [a_refund(order_id, 500), a_refund(order_id, 300)]
    both = await create(service, *parts)
    assert [(refund.amount.minor_units, refund.whole) for refund in both] == [(500, False), (300, False)]
    assert [refund.refunded.minor_units for refund in both] == [800, 800]
    (rest,) = await create(service, a_refund(order_id))
    assert (rest.amount.minor_units, rest.refunded.minor_units, rest.whole) == (1199, 1999, True)
    assert (await service.charged(an_order(order_id=order_id))).state == State.REFUNDED
    assert await sent_back(sandbox, order_id) == [1199, 500, 300]
    assert (await service.published_refunds(order_id))[1:] == [800, 1999]


async def test_what_one_item_takes_is_gone_for_the_next(service: Payments, sandbox: Sandbox) -> None:
    order_id, other = await paid(service, 1000), await paid(service, 1000)
    parts = [
        a_refund(order_id, 700),
        a_refund(other, 1000),
        a_refund(order_id, 400),
        a_refund(order_id),
        a_refund(order_id),
    ]
    answered = await outcomes(service, *parts)
    assert [outcome.refund.amount.minor_units for outcome in answered] == [700, 1000, 0, 300, 0]
    assert [outcome.refusal.reason for outcome in answered] == ["", "", "REFUND_TOO_LARGE", "", "REFUND_TOO_LARGE"]
    assert answered[2].refusal.metadata["leftMinorUnits"] == "300"
    assert await sent_back(sandbox, order_id) == [700, 300]


async def test_refunds_at_once_never_exceed_the_payment(service: Payments, sandbox: Sandbox) -> None:
    order_id = await paid(service, 1000)
    batches = [[a_refund(order_id, 150), a_refund(order_id, 150)] for _ in range(10)]
    answered = await asyncio.gather(*(outcomes(service, *batch) for batch in batches))
    reasons = [outcome.refusal.reason for batch in answered for outcome in batch]
    assert (reasons.count(""), reasons.count("REFUND_TOO_LARGE")) == (6, 14)
    assert await sent_back(sandbox, order_id) == [150] * 6


async def test_what_cannot_be_paid_back_is_refused_for_itself_alone(service: Payments) -> None:
    order_id, waiting = await paid(service), an_order("")
    await service.charged(waiting)
    known = a_refund(order_id, 100)
    await create(service, known)
    answered = await refusals(
        service,
        a_refund(str(uuid.uuid4())),
        a_refund(waiting.order_id),
        a_refund(order_id, 1900),
        a_refund(order_id, 5, currency="EUR"),
        a_refund(order_id, 0),
        a_refund(order_id, 1899),
    )
    assert answered == [
        "PAYMENT_NOT_FOUND", "WRONG_STATE", "REFUND_TOO_LARGE", "INVALID_FIELDS", "INVALID_FIELDS", "",
    ]  # fmt: skip


async def test_an_id_that_stands_for_something_else_is_refused(service: Payments, sandbox: Sandbox) -> None:
    order_id, other = await paid(service), await paid(service)
    known = a_refund(order_id, 100)
    await create(service, known)
    for again in (
        a_refund(other, 100, refund_id=known.refund_id),
        a_refund(order_id, 101, refund_id=known.refund_id),
        a_refund(order_id, 100, refund_id=known.refund_id, currency="EUR"),
    ):
        assert await refusals(service, again) == ["REQUEST_ID_REUSED"]
    assert await refusals(service, a_refund(order_id, refund_id=known.refund_id)) == [""]
    assert (await sent_back(sandbox, order_id), await sent_back(sandbox, other)) == ([100], [])


async def test_one_id_for_two_orders_at_once_pays_back_one(service: Payments, sandbox: Sandbox) -> None:
    orders = [await paid(service) for _ in range(6)]
    refund_id = str(uuid.uuid4())
    answered = await asyncio.gather(*(refusals(service, a_refund(o, 100, refund_id=refund_id)) for o in orders))
    assert sorted(reason for (reason,) in answered) == ["", *["REQUEST_ID_REUSED"] * 5]
    assert [back for order_id in orders for back in await sent_back(sandbox, order_id)] == [100]
    assert [await open_sum(service, order_id) for order_id in orders] == [0] * 6


async def test_a_provider_that_is_away_pays_back_once_it_returns(service: Payments, sandbox: Sandbox) -> None:
    order_id = await paid(service)
    part = a_refund(order_id, 500)
    await sandbox.faults(error_500=True)
    (waiting,) = await create(service, part)
    assert (waiting.state, waiting.refunded.minor_units) == (Refunded.PENDING, 0)
    assert await refusals(service, a_refund(order_id, 1500)) == ["REFUND_TOO_LARGE"]  # what waits is not left
    await sandbox.control("DELETE", "faults")
    service.start_loops()
    await until(lambda: ended(service, part))
    assert await sent_back(sandbox, order_id) == [500]
    assert await service.published_refunds(order_id) == [500]


async def test_an_answer_that_is_lost_is_asked_for_under_the_same_key(service: Payments, sandbox: Sandbox) -> None:
    order_id = await paid(service)
    part = a_refund(order_id, 500)
    await sandbox.faults(drop_after_refund={"next": 1})
    refunding = asyncio.create_task(create(service, part))
    await until(lambda: sent(sandbox, order_id))
    await sandbox.faults(rate_limit_429=True)
    assert (await refunding)[0].state == Refunded.PENDING
    await sandbox.control("DELETE", "faults")
    service.start_loops()
    await until(lambda: ended(service, part))
    assert await sent_back(sandbox, order_id) == [500]


async def test_what_was_committed_and_never_sent_is_sent_by_the_reconciler(service: Payments, sandbox: Sandbox) -> None:
    order_id = await paid(service)
    part = a_refund(order_id, 500)
    # As if killed between the commit and the call.
    await refunds.begin_refunds(
        service.db,
        [
            refunds.RefundLine(
                id=uuid.UUID(part.refund_id), order_id=uuid.UUID(order_id), amount=Money("USD", 500), reason=""
            )
        ],
    )
    assert (await sent_back(sandbox, order_id), await open_sum(service, order_id)) == ([], 500)
    await service.rows("UPDATE refunds SET next_check_time = now()")  # the dead process' lease has run out
    service.start_loops()
    await until(lambda: sent(sandbox, order_id))
    await until(lambda: ended(service, part))
    assert await sent_back(sandbox, order_id) == [500]
    assert await service.published_refunds(order_id) == [500]


async def test_a_refund_the_provider_refuses_fails_and_frees_its_sum(service: Payments, sandbox: Sandbox) -> None:
    order_id = await paid(service)
    await create(service, a_refund(order_id, 100))
    (intent,) = await sandbox.intents(order_id)
    await in_the_dashboard(sandbox, intent["id"], 1899)  # of which no event has come yet
    part = a_refund(order_id, 500)
    (failed,) = await create(service, part)
    assert (failed.state, failed.failure_reason) == (Refunded.FAILED, "CHARGE_ALREADY_REFUNDED")
    assert (failed.amount.minor_units, failed.refunded.minor_units, failed.whole) == (500, 100, False)
    assert await open_sum(service, order_id) == 0
    assert await create(service, part) == [failed]
    assert await sent_back(sandbox, order_id) == [1899, 100]
    assert await service.published_refunds(order_id) == [100]


async def test_whoever_asks_while_it_is_under_way_waits_for_the_same_answer(
    service: Payments, sandbox: Sandbox
) -> None:
    order_id = await paid(service)
    part = a_refund(order_id, 500)
    await sandbox.faults(latency_ms={"fixed": 400, "jitter": 0})
    first = asyncio.create_task(create(service, part))

    async def begun() -> bool:
        return bool(await service.rows("SELECT 1 FROM refunds"))

    await until(begun)
    (second,) = await create(service, part)
    assert second.state == Refunded.SUCCEEDED
    assert await first == [second]


async def test_a_large_batch_costs_as_many_statements_as_a_small_one(service: Payments) -> None:
    orders = [await paid(service) for _ in range(3)]
    sent: list[str] = []
    engine = service.db.kw["bind"].sync_engine

    def note(*arguments: Any) -> None:
        sent.append(arguments[2])

    sqlalchemy.event.listen(engine, "before_cursor_execute", note)
    parts = [
        refunds.RefundLine(id=uuid.uuid4(), order_id=uuid.UUID(orders[n % 3]), amount=Money("USD", 10), reason="")
        for n in range(200)
    ]
    counts = []
    for batch in (parts[:1], parts[1:]):
        sent.clear()
        begun = await refunds.begin_refunds(service.db, batch)
        assert all(isinstance(one, refunds.Refund) for one in begun)
        counts.append(len(sent))
    assert counts == [4, 4]


async def test_malformed_batches_are_refused_whole(service: Payments) -> None:
    part = a_refund(str(uuid.uuid4()), 1)
    for items in ([], [part, part], [part] * 201, [pb.Refund(order_id=part.order_id)]):
        refused = await refusal(
            service.charges.BatchCreateRefunds(pb.BatchCreateRefundsRequest(refunds=items), metadata=ORDERS)
        )
        assert refused.reason == "INVALID_FIELDS"


@pytest.mark.parametrize("caller", ["gateway", "inventory"])
async def test_only_orders_may_refund_parts(service: Payments, caller: str) -> None:
    request = pb.BatchCreateRefundsRequest(refunds=[a_refund(str(uuid.uuid4()))])
    refused = await refusal(service.charges.BatchCreateRefunds(request, metadata=tokens.as_service(caller)))
    assert refused.code == "PERMISSION_DENIED"


async def ended(service: Payments, part: pb.Refund) -> bool:
    (refund,) = await create(service, part)
    return refund.state == Refunded.SUCCEEDED


async def sent(sandbox: Sandbox, order_id: str) -> bool:
    return bool(await sent_back(sandbox, order_id))


async def in_the_dashboard(sandbox: Sandbox, intent: str, minor: int) -> None:
    """Pays back behind our back, as staff may do at the provider's."""
    form = {"payment_intent": intent, "amount": str(minor)}
    headers = {"Authorization": f"Bearer {KEY}"}
    async with sandbox.http.post(f"{sandbox.url}/v1/refunds", data=form, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
