"""Staff refunds, full and partial: through orders, each with an id of its own, and directly."""

import asyncio
import uuid
from typing import Any

import grpc
import sqlalchemy

from services.chassis.money import Money
from services.payments.refunds import create as refunds
from stampede.payments.v1 import charge_service_pb2 as pb
from stampede.payments.v1 import payment_service_pb2 as payment_pb
from stampede.type.v1 import money_pb2
from tests.integration.payments.conftest import ORDERS, Payments, Sandbox, State, an_order
from tests.support import tokens
from tests.support.serving import refusal
from tests.support.waiting import until

Refunded = pb.RefundStatus.State


def a_line(order_id: str, minor: int | None = None, *, refund_id: str = "", currency: str = "USD") -> pb.Refund:
    amount = None if minor is None else money_pb2.Money(currency_code=currency, minor_units=minor)
    return pb.Refund(refund_id=refund_id or str(uuid.uuid4()), order_id=order_id, amount=amount, reason="damaged")


async def outcomes(service: Payments, *lines: pb.Refund) -> list[pb.RefundOutcome]:
    answer = await service.charges.BatchCreateRefunds(pb.BatchCreateRefundsRequest(refunds=lines), metadata=ORDERS)
    return list(answer.outcomes)


async def create(service: Payments, *lines: pb.Refund) -> list[pb.RefundStatus]:
    answered = await outcomes(service, *lines)
    assert all(outcome.HasField("refund") for outcome in answered), answered
    return [outcome.refund for outcome in answered]


async def refusals(service: Payments, *lines: pb.Refund) -> list[str]:
    return [outcome.refusal.reason for outcome in await outcomes(service, *lines)]


async def paid(service: Payments, minor: int = 1999) -> str:
    """Return the id of a paid order."""
    item = an_order(minor=minor)
    assert (await service.charged(item)).state == State.SUCCEEDED
    return item.order_id


async def refunded(sandbox: Sandbox, order_id: str) -> list[int]:
    """Return the provider's refunds of an order, the largest first."""
    (intent,) = await sandbox.intents(order_id)
    return sorted((refund["amount"] for refund in await sandbox.refunds(intent["id"])), reverse=True)


async def open_sum(service: Payments, order_id: str) -> int:
    ((minor,),) = await service.rows("SELECT refunding_minor FROM payments WHERE order_id = :id", id=order_id)
    return int(minor)


async def test_a_partial_refund_is_made_and_published(service: Payments, sandbox: Sandbox) -> None:
    order_id = await paid(service)
    line = a_line(order_id, 500)
    (refund,) = await create(service, line)
    assert refund == pb.RefundStatus(
        refund_id=line.refund_id,
        state=Refunded.SUCCEEDED,
        amount=money_pb2.Money(currency_code="USD", minor_units=500),
        refunded=money_pb2.Money(currency_code="USD", minor_units=500),
    )
    assert await refunded(sandbox, order_id) == [500]
    assert await service.published_refunds(order_id) == [500]


async def test_a_repeat_returns_the_same_refund(service: Payments, sandbox: Sandbox) -> None:
    order_id = await paid(service)
    line = a_line(order_id, 500)
    assert await create(service, line) == await create(service, line)
    assert await refunded(sandbox, order_id) == [500]
    assert await service.published_refunds(order_id) == [500]


async def test_concurrent_repeats_refund_once(service: Payments, sandbox: Sandbox) -> None:
    order_id = await paid(service)
    line = a_line(order_id, 1500)
    async with service.db.begin() as tx:
        await tx.execute(sqlalchemy.text("SELECT 1 FROM payments FOR UPDATE"))
        calls = [asyncio.create_task(create(service, line)) for _ in range(5)]

        async def all_wait() -> bool:
            return await service.rows(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            ) == [(5,)]

        await until(all_wait)
    answers = await asyncio.gather(*calls)
    assert {(refund.state, refund.refunded.minor_units) for (refund,) in answers} == {(Refunded.SUCCEEDED, 1500)}
    assert await refunded(sandbox, order_id) == [1500]
    assert await service.published_refunds(order_id) == [1500]


async def test_partial_refunds_add_up_to_the_whole(service: Payments, sandbox: Sandbox) -> None:
    order_id = await paid(service)
    lines = [a_line(order_id, 500), a_line(order_id, 300)]
    both = await create(service, *lines)
    assert [(refund.amount.minor_units, refund.whole) for refund in both] == [(500, False), (300, False)]
    assert [refund.refunded.minor_units for refund in both] == [800, 800]
    (rest,) = await create(service, a_line(order_id))
    assert (rest.amount.minor_units, rest.refunded.minor_units, rest.whole) == (1199, 1999, True)
    assert (await service.charged(an_order(order_id=order_id))).state == State.REFUNDED
    assert await refunded(sandbox, order_id) == [1199, 500, 300]
    assert (await service.published_refunds(order_id))[1:] == [800, 1999]


async def test_a_line_leaves_less_for_the_lines_after_it(service: Payments, sandbox: Sandbox) -> None:
    order_id, other = await paid(service, 1000), await paid(service, 1000)
    lines = [
        a_line(order_id, 700),
        a_line(other, 1000),
        a_line(order_id, 400),
        a_line(order_id),
        a_line(order_id),
    ]
    answered = await outcomes(service, *lines)
    assert [outcome.refund.amount.minor_units for outcome in answered] == [700, 1000, 0, 300, 0]
    assert [outcome.refusal.reason for outcome in answered] == ["", "", "REFUND_TOO_LARGE", "", "REFUND_TOO_LARGE"]
    assert answered[2].refusal.metadata["leftMinorUnits"] == "300"
    assert await refunded(sandbox, order_id) == [700, 300]


async def test_concurrent_refunds_never_exceed_the_payment(service: Payments, sandbox: Sandbox) -> None:
    item = an_order(minor=1000)
    payment_id, staff = (await service.charged(item)).payment_id, tokens.as_staff()
    answers = await asyncio.gather(
        *(outcomes(service, a_line(item.order_id, 150), a_line(item.order_id, 150)) for _ in range(5)),
        *(service.payments.RefundPayment(a_request(payment_id, 150), metadata=staff) for _ in range(10)),
        return_exceptions=True,
    )
    refused = [one for one in answers if isinstance(one, grpc.aio.AioRpcError)]
    reasons = [outcome.refusal.reason for batch in answers if isinstance(batch, list) for outcome in batch]
    assert len(refused) + reasons.count("REFUND_TOO_LARGE") == 14
    assert await refunded(sandbox, item.order_id) == [150] * 6


async def test_a_refused_line_leaves_the_others_alone(service: Payments) -> None:
    order_id, waiting = await paid(service), an_order("")
    await service.charged(waiting)
    known = a_line(order_id, 100)
    await create(service, known)
    answered = await refusals(
        service,
        a_line(str(uuid.uuid4())),
        a_line(waiting.order_id),
        a_line(order_id, 1900),
        a_line(order_id, 5, currency="EUR"),
        a_line(order_id, 0),
        a_line(order_id, 1899),
    )
    assert answered == [
        "PAYMENT_NOT_FOUND", "WRONG_STATE", "REFUND_TOO_LARGE", "INVALID_FIELDS", "INVALID_FIELDS", "",
    ]  # fmt: skip


async def test_a_known_id_with_another_request_is_refused(service: Payments, sandbox: Sandbox) -> None:
    order_id, other = await paid(service), await paid(service)
    known = a_line(order_id, 100)
    await create(service, known)
    for again in (
        a_line(other, 100, refund_id=known.refund_id),
        a_line(order_id, 101, refund_id=known.refund_id),
        a_line(order_id, 100, refund_id=known.refund_id, currency="EUR"),
    ):
        assert await refusals(service, again) == ["REQUEST_ID_REUSED"]
    assert await refusals(service, a_line(order_id, refund_id=known.refund_id)) == [""]
    assert (await refunded(sandbox, order_id), await refunded(sandbox, other)) == ([100], [])


async def test_one_id_for_several_orders_refunds_one_of_them(service: Payments, sandbox: Sandbox) -> None:
    orders = [await paid(service) for _ in range(6)]
    refund_id = str(uuid.uuid4())
    answered = await asyncio.gather(*(refusals(service, a_line(o, 100, refund_id=refund_id)) for o in orders))
    assert sorted(reason for (reason,) in answered) == ["", *["REQUEST_ID_REUSED"] * 5]
    assert [back for order_id in orders for back in await refunded(sandbox, order_id)] == [100]
    assert [await open_sum(service, order_id) for order_id in orders] == [0] * 6


async def test_an_unavailable_provider_refunds_once_it_is_back(service: Payments, sandbox: Sandbox) -> None:
    order_id = await paid(service)
    line = a_line(order_id, 500)
    await sandbox.faults(error_500=True)
    (waiting,) = await create(service, line)
    assert (waiting.state, waiting.refunded.minor_units) == (Refunded.PENDING, 0)
    assert await refusals(service, a_line(order_id, 1500)) == [
        "REFUND_TOO_LARGE"
    ]  # a pending refund counts as refunded
    await sandbox.control("DELETE", "faults")
    service.start_loops()
    await until(lambda: ended(service, line))
    assert await refunded(sandbox, order_id) == [500]
    assert await service.published_refunds(order_id) == [500]


async def test_a_refund_whose_answer_is_lost_keeps_its_key(service: Payments, sandbox: Sandbox) -> None:
    order_id = await paid(service)
    line = a_line(order_id, 500)
    await sandbox.faults(drop_after_refund={"next": 1})
    refunding = asyncio.create_task(create(service, line))
    await until(lambda: sent(sandbox, order_id))
    await sandbox.faults(rate_limit_429=True)
    assert (await refunding)[0].state == Refunded.PENDING
    await sandbox.control("DELETE", "faults")
    service.start_loops()
    await until(lambda: ended(service, line))
    assert await refunded(sandbox, order_id) == [500]


async def test_a_crash_before_the_provider_call_is_completed(service: Payments, sandbox: Sandbox) -> None:
    order_id = await paid(service)
    line = a_line(order_id, 500)
    # As if the process were killed between the commit and the call.
    await refunds.begin_refunds(
        service.db,
        [
            refunds.RefundLine(
                id=uuid.UUID(line.refund_id), order_id=uuid.UUID(order_id), amount=Money("USD", 500), reason=""
            )
        ],
    )
    assert (await refunded(sandbox, order_id), await open_sum(service, order_id)) == ([], 500)
    await service.rows("UPDATE refunds SET next_check_time = now()")  # the lease of the dead process has expired
    service.start_loops()
    await until(lambda: sent(sandbox, order_id))
    await until(lambda: ended(service, line))
    assert await refunded(sandbox, order_id) == [500]
    assert await service.published_refunds(order_id) == [500]


async def test_a_refund_that_the_provider_refuses_frees_its_sum(service: Payments, sandbox: Sandbox) -> None:
    order_id = await paid(service)
    await create(service, a_line(order_id, 100))
    (intent,) = await sandbox.intents(order_id)
    await sandbox.refund(intent["id"], 1899)  # in the dashboard; no event has arrived yet
    line = a_line(order_id, 500)
    (failed,) = await create(service, line)
    assert (failed.state, failed.failure_reason) == (Refunded.FAILED, "CHARGE_ALREADY_REFUNDED")
    assert (failed.amount.minor_units, failed.refunded.minor_units, failed.whole) == (500, 100, False)
    assert await open_sum(service, order_id) == 0
    assert await create(service, line) == [failed]
    assert await refunded(sandbox, order_id) == [1899, 100]
    assert await service.published_refunds(order_id) == [100]


async def test_a_repeat_waits_for_the_refund_in_flight(service: Payments, sandbox: Sandbox) -> None:
    order_id = await paid(service)
    line = a_line(order_id, 500)
    await sandbox.faults(latency_ms={"fixed": 300, "jitter": 0})
    first = asyncio.create_task(create(service, line))

    async def begun() -> bool:
        return bool(await service.rows("SELECT 1 FROM refunds"))

    await until(begun)
    (second,) = await create(service, line)
    assert second.state == Refunded.SUCCEEDED
    assert await first == [second]


async def test_statements_do_not_grow_with_the_batch(service: Payments) -> None:
    orders = [await paid(service) for _ in range(3)]
    sent: list[str] = []
    engine = service.db.kw["bind"].sync_engine

    def note(*arguments: Any) -> None:
        sent.append(arguments[2])

    sqlalchemy.event.listen(engine, "before_cursor_execute", note)
    lines = [
        refunds.RefundLine(id=uuid.uuid4(), order_id=uuid.UUID(orders[n % 3]), amount=Money("USD", 10), reason="")
        for n in range(200)
    ]
    counts = []
    for batch in (lines[:1], lines[1:]):
        sent.clear()
        begun = await refunds.begin_refunds(service.db, batch)
        assert all(isinstance(one, refunds.Refund) for one in begun.outcomes)
        counts.append(len(sent))
    assert counts == [5, 5]


async def test_malformed_batches_are_refused_whole(service: Payments) -> None:
    line = a_line(str(uuid.uuid4()), 1)
    for items in ([], [line, line], [line] * 201, [pb.Refund(order_id=line.order_id)]):
        refused = await refusal(
            service.charges.BatchCreateRefunds(pb.BatchCreateRefundsRequest(refunds=items), metadata=ORDERS)
        )
        assert refused.reason == "INVALID_FIELDS"


async def ended(service: Payments, line: pb.Refund) -> bool:
    (refund,) = await create(service, line)
    return refund.state == Refunded.SUCCEEDED


async def sent(sandbox: Sandbox, order_id: str) -> bool:
    return bool(await refunded(sandbox, order_id))


def a_request(
    payment_id: str, minor: int | None, *, request_id: str = "", currency: str = "USD"
) -> payment_pb.RefundPaymentRequest:
    amount = None if minor is None else money_pb2.Money(currency_code=currency, minor_units=minor)
    return payment_pb.RefundPaymentRequest(
        payment_id=payment_id, amount=amount, full=amount is None, reason="damaged",
        request_id=request_id or str(uuid.uuid4()),
    )  # fmt: skip


async def test_staff_refund_a_payment_and_a_repeat_refunds_once(service: Payments, sandbox: Sandbox) -> None:
    item, staff = an_order(), tokens.as_staff()
    payment_id = (await service.charged(item)).payment_id
    request = a_request(payment_id, 500)
    for _ in range(2):
        payment = await service.payments.RefundPayment(request, metadata=staff)
        assert (payment.state, payment.refunded.minor_units) == (payment_pb.Payment.SUCCEEDED, 500)
    request.amount.minor_units = 600
    assert (await refusal(service.payments.RefundPayment(request, metadata=staff))).reason == "REQUEST_ID_REUSED"
    rest = await service.payments.RefundPayment(a_request(payment_id, None), metadata=staff)
    assert (rest.state, rest.refunded.minor_units) == (payment_pb.Payment.REFUNDED, 1999)
    too_much = await refusal(service.payments.RefundPayment(a_request(payment_id, None), metadata=staff))
    assert (too_much.code, too_much.reason) == ("FAILED_PRECONDITION", "REFUND_TOO_LARGE")
    assert await service.published_refunds(item.order_id) == [500, 1999]
    assert await refunded(sandbox, item.order_id) == [1499, 500]


async def test_a_refund_of_a_payment_is_refused_with_a_reason(service: Payments) -> None:
    waiting = (await service.charged(an_order(""))).payment_id
    payment_id = (await service.charged(an_order())).payment_id
    for request, reason in (
        (a_request(waiting, None), "WRONG_STATE"),
        (a_request(str(uuid.uuid4()), None), "PAYMENT_NOT_FOUND"),
        (a_request(payment_id, 2000), "REFUND_TOO_LARGE"),
        (a_request(payment_id, 0), "INVALID_FIELDS"),
        (a_request(payment_id, 5, currency="EUR"), "INVALID_FIELDS"),
    ):
        refused = await refusal(service.payments.RefundPayment(request, metadata=tokens.as_staff()))
        assert refused.reason == reason


async def test_a_refund_whose_key_answers_500_gets_another_key_once_it_is_quiet(
    service: Payments, sandbox: Sandbox
) -> None:
    order_id = await paid(service)
    line = a_line(order_id, 500)
    await sandbox.faults(error_500={"next": 1, "saved": True}, error_500_on="POST refunds")
    (waiting,) = await create(service, line)
    assert waiting.state == Refunded.PENDING
    await repeat(service, "checks = 5")
    assert await service.rows("SELECT attempt, state FROM refunds") == [(1, "PENDING")], "a minute has not passed"
    await repeat(service, "checks = 5, attempt_time = now() - interval '2 minutes'")
    assert await service.rows("SELECT attempt FROM refunds") == [(2,)]
    await repeat(service, "checks = 0")
    assert await refunded(sandbox, order_id) == [500]
    assert (await create(service, line))[0].state == Refunded.SUCCEEDED


async def test_repeats_do_not_put_off_the_check_that_finds_a_new_key(service: Payments, sandbox: Sandbox) -> None:
    """A saga asks again every 15 seconds, and the fifth pause of the reconciler is twice as long."""
    order_id = await paid(service)
    line = a_line(order_id, 500)
    await sandbox.faults(error_500={"next": 1, "saved": True}, error_500_on="POST refunds")
    await create(service, line)
    await service.rows(
        "UPDATE refunds SET checks = 5, attempt_time = now() - interval '2 minutes',"
        " next_check_time = now() + interval '32 s'"
    )
    for _ in range(2):
        assert (await create(service, line))[0].state == Refunded.PENDING
    assert await service.rows("SELECT checks, next_check_time <= now() FROM refunds") == [(5, True)]
    await service.reconciler.reconcile_once()
    await service.dispatcher.drain(seconds=10)
    assert await service.rows("SELECT attempt FROM refunds") == [(2,)]


async def test_a_repeated_refund_is_not_sent_under_a_key_that_is_forgotten(service: Payments, sandbox: Sandbox) -> None:
    """A day later the provider would take the same key for a second refund."""
    order_id = await paid(service)
    line = a_line(order_id, 500)
    await sandbox.faults(error_500=True, error_500_on="POST refunds")
    await create(service, line)
    await sandbox.control("DELETE", "faults")
    await create(service, line)
    assert await refunded(sandbox, order_id) == [], "only the reconciler knows the age of the key"


async def test_a_call_without_an_answer_keeps_its_key_for_ten_minutes(service: Payments, sandbox: Sandbox) -> None:
    order_id = await paid(service)
    await sandbox.faults(error_500=True, error_500_on="POST refunds")
    await create(service, a_line(order_id, 500))
    quiet = "checks = 5, attempt_time = now() - interval '1 hour'"
    await repeat(service, f"{quiet}, unanswered_time = now() - interval '9 minutes'")
    assert await service.rows("SELECT attempt FROM refunds") == [(1,)]
    await repeat(service, f"{quiet}, unanswered_time = now() - interval '11 minutes'")
    assert await service.rows("SELECT attempt FROM refunds") == [(2,)]


async def test_a_refund_that_no_key_can_make_is_parked(service: Payments, sandbox: Sandbox) -> None:
    order_id = await paid(service)
    line = a_line(order_id, 500)
    await sandbox.faults(error_500=True, error_500_on="POST refunds")
    await create(service, line)
    await repeat(service, "checks = 5, attempt = 3, attempt_time = now() - interval '1 hour'")
    assert await service.rows("SELECT problem, state FROM refunds") == [("NOT_TAKEN", "PENDING")]
    await sandbox.control("DELETE", "faults")
    await repeat(service, "checks = 6")
    assert await refunded(sandbox, order_id) == [], "only an operator has it begin again"


async def repeat(service: Payments, changes: str) -> None:
    """Have the reconciler make the next call of the refund, as it is after `changes`."""
    # Only those: a call about an ended one would lock its payment, and a comparison would pass over that.
    await service.rows(f"UPDATE refunds SET next_check_time = now(), {changes} WHERE state = 'PENDING'")
    await service.reconciler.reconcile_once()
    await service.dispatcher.drain(seconds=10)
    service.dispatcher.draining = False
