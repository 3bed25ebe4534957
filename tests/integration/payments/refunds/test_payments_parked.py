"""Refunds and payments that wait for an operator, and the ends that operators choose."""

import argparse
import uuid

import pytest

from services.payments import cli
from services.payments.cli import describe_parked
from services.payments.dispatch import parked
from services.payments.sql import leases, refunds
from stampede.payments.v1 import books_service_pb2 as books_pb
from stampede.payments.v1 import charge_service_pb2 as pb
from stampede.payments.v1 import payment_service_pb2 as payment_pb
from tests.integration.payments.conftest import Payments, Sandbox, State, an_order
from tests.integration.payments.refunds.test_payments_refunds import a_line, a_request, create, paid, refunded, repeat
from tests.support import tokens
from tests.support.serving import refusal

Refunded = pb.RefundStatus.State


async def a_parked_refund(service: Payments, sandbox: Sandbox) -> tuple[str, pb.Refund]:
    """Return an order, and its refund that no key can make; the provider works again."""
    order_id = await paid(service)
    line = a_line(order_id, 500)
    await sandbox.faults(error_500=True, error_500_on="POST refunds")
    await create(service, line)
    await repeat(service, "checks = 5, attempt = 3, attempt_time = now() - interval '1 hour', unanswered_time = NULL")
    await sandbox.control("DELETE", "faults")
    found = {str(one.id): one for one in await parked.list_parked(service.db, most=10)}
    one = found[line.refund_id]
    assert (one.kind, one.problem, one.amount_minor) == ("refund", "NOT_TAKEN", 500)
    return order_id, line


async def test_an_operator_resumes_a_parked_refund(service: Payments, sandbox: Sandbox) -> None:
    order_id, line = await a_parked_refund(service, sandbox)
    await parked.resume(service.db, uuid.UUID(line.refund_id), "operator:ann")
    await repeat(service, "checks = 0")
    assert await refunded(sandbox, order_id) == [500]
    assert (await create(service, line))[0].state == Refunded.SUCCEEDED
    assert await parked.list_parked(service.db, most=10) == []
    ((reason,),) = await service.rows("SELECT reason FROM refunds")
    assert reason.endswith("resumed by operator:ann")


async def test_a_refund_is_not_resumed_while_a_call_may_arrive(service: Payments, sandbox: Sandbox) -> None:
    _, line = await a_parked_refund(service, sandbox)
    await service.rows("UPDATE refunds SET unanswered_time = now() - interval '9 minutes'")
    with pytest.raises(parked.CallMayArrive):
        await parked.resume(service.db, uuid.UUID(line.refund_id), "operator:ann")


@pytest.mark.parametrize("since", ["a moment", "eleven minutes"])
async def test_a_refund_is_not_resumed_after_its_caller_died(service: Payments, sandbox: Sandbox, since: str) -> None:
    """A process that dies has stored no answer. While it lived, its lease said that its call was under way."""
    _, line = await a_parked_refund(service, sandbox)
    await service.rows("UPDATE refunds SET next_check_time = now()")
    async with service.db.begin() as tx:
        ((refund, _),) = await refunds.claim_due(tx, besides=(), most=1)
    if since == "eleven minutes":
        await service.rows("UPDATE refunds SET unanswered_time = now() - interval '11 minutes'")
        async with service.db.begin() as tx:
            await leases.renew(tx, "refunds", [refund.id])
    with pytest.raises(parked.CallMayArrive):
        await parked.resume(service.db, uuid.UUID(line.refund_id), "operator:ann")


async def test_an_operator_resumes_all_that_is_parked(
    service: Payments, sandbox: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after an outage of the provider. One that may not be resumed yet stops no other."""
    orders = [await a_parked_refund(service, sandbox) for _ in range(2)]
    await service.rows(
        "UPDATE refunds SET unanswered_time = now() - interval '9 minutes' WHERE id = :id", id=orders[0][1].refund_id
    )
    parser = argparse.ArgumentParser()
    describe_parked(parser)
    assert await cli._act_on_parked(parser.parse_args(["resume"]), service.db) == 1
    assert await cli._act_on_parked(parser.parse_args(["resume", "--all"]), service.db) == 1
    said = capsys.readouterr().out
    assert "may still arrive" in said
    assert f"{orders[1][1].refund_id}: resume" in said
    assert [one.id for one in await parked.list_parked(service.db, most=9)] == [uuid.UUID(orders[0][1].refund_id)]


async def test_an_operator_abandons_a_parked_refund(service: Payments, sandbox: Sandbox) -> None:
    order_id, line = await a_parked_refund(service, sandbox)
    await parked.abandon(service.db, uuid.UUID(line.refund_id), "operator:ann")
    (failed,) = await create(service, line)
    assert (failed.state, failed.failure_reason) == (Refunded.FAILED, "ABANDONED")
    assert await service.published(order_id) == ["succeeded", "refund_failed"]
    (whole,) = await create(service, a_line(order_id))  # its sum is free again
    assert (whole.state, whole.amount.minor_units) == (Refunded.SUCCEEDED, 1999)


async def test_an_operator_marks_a_parked_refund_as_done(service: Payments, sandbox: Sandbox) -> None:
    order_id, line = await a_parked_refund(service, sandbox)
    await parked.mark_as_done(service.db, uuid.UUID(line.refund_id), "operator:ann")
    (done,) = await create(service, line)
    assert (done.state, done.refunded.minor_units) == (Refunded.SUCCEEDED, 500)
    assert await refunded(sandbox, order_id) == []
    assert await service.published_refunds(order_id) == [500]


async def test_a_refund_that_failed_later_is_made_again_once(service: Payments, sandbox: Sandbox) -> None:
    """The provider's list still has the failed one, under the same id of ours."""
    order_id = await paid(service)
    line = a_line(order_id)
    await create(service, line)
    (intent,) = await sandbox.intents(order_id)
    (first,) = await sandbox.refunds(intent["id"])
    await sandbox.fail_refund(first["id"])
    await service.rows("UPDATE payments SET refund_check_time = now()")
    await repeat(service, "checks = 0")
    await parked.resume(service.db, uuid.UUID(line.refund_id), "operator:ann")
    await service.rows("UPDATE payments SET refund_check_time = now()")
    await repeat(service, "checks = 0")
    await service.rows("UPDATE payments SET refund_check_time = now()")
    await repeat(service, "checks = 0")
    assert [(r["status"], r["amount"]) for r in await sandbox.refunds(intent["id"])] == [
        ("succeeded", 1999),
        ("failed", 1999),
    ]
    assert await service.rows("SELECT state, refunded_minor, refunding_minor FROM payments") == [("REFUNDED", 1999, 0)]


async def test_a_reversal_that_is_refused_is_parked_after_three_tries(service: Payments, sandbox: Sandbox) -> None:
    item = an_order()
    await service.charged(item)
    (intent,) = await sandbox.intents(item.order_id)
    await sandbox.refund(intent["id"], 1999)  # the provider refuses any further refund; no event has arrived
    for _ in range(2):
        await service.reverse(item)
    assert await service.rows("SELECT count(*) FROM refunds") == [(1,)], "a minute has not passed"
    for _ in range(4):
        await service.rows("UPDATE refunds SET update_time = now() - interval '1 hour'")
        assert (await service.reverse(item))[0].state == State.SUCCEEDED
    assert await service.rows("SELECT count(*) FROM refunds") == [(3,)]
    (one,) = await parked.list_parked(service.db, most=10)
    assert (one.kind, one.problem) == ("payment", "REVERSAL_REFUSED")
    await parked.resume(service.db, one.id, "operator:ann")
    await service.reverse(item)
    assert await service.rows("SELECT count(*) FROM refunds") == [(4,)]
    await service.rows("UPDATE payments SET problem = 'REVERSAL_REFUSED'")
    await parked.mark_as_done(service.db, one.id, "operator:ann")
    assert (await service.reverse(item))[0].state == State.REFUNDED


async def test_an_operator_ends_a_payment_that_the_provider_does_not_have(service: Payments) -> None:
    item = an_order("")
    payment_id = uuid.UUID((await service.charged(item)).payment_id)
    with pytest.raises(parked.NotParked):
        await parked.abandon(service.db, payment_id, "operator:ann")
    await service.rows("UPDATE payments SET provider_reference = 'pi_none', next_check_time = now()")
    await service.reconciler.reconcile_once()
    await service.dispatcher.drain(seconds=10)
    await parked.abandon(service.db, payment_id, "operator:ann")
    assert (await service.charged(item)).state == State.CANCELLED
    assert await service.published(item.order_id) == ["cancelled"]


async def test_a_refund_that_the_provider_refuses_at_once_is_an_error(service: Payments, sandbox: Sandbox) -> None:
    item, staff = an_order(), tokens.as_staff()
    payment_id = (await service.charged(item)).payment_id
    (intent,) = await sandbox.intents(item.order_id)
    await sandbox.refund(intent["id"], 1999)
    request = a_request(payment_id, 500)
    for _ in range(2):  # a repeat is refused alike
        refused = await refusal(service.payments.RefundPayment(request, metadata=staff))
        assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "REFUND_REFUSED")
    assert (await service.get(payment_id)).state == payment_pb.Payment.SUCCEEDED


def test_the_command_declares_its_actions() -> None:

    parser = argparse.ArgumentParser()
    describe_parked(parser)
    found = parser.parse_args(["done", str(uuid.UUID(int=1)), "--note", "by transfer"])
    assert (found.action, found.id, found.note) == ("done", uuid.UUID(int=1), "by transfer")


async def test_staff_list_what_needs_attention(service: Payments, sandbox: Sandbox) -> None:
    """In pages, the longest parked first, and by problem."""
    order_id, line = await a_parked_refund(service, sandbox)
    await service.rows("UPDATE refunds SET update_time = now() - interval '2 hours'")
    others = [await paid(service) for _ in range(2)]
    for number, other in enumerate(others):
        await service.rows(
            "UPDATE payments SET problem = 'REVERSAL_REFUSED', update_time = now() - make_interval(mins => :age)"
            " WHERE order_id = CAST(:id AS uuid)",
            id=other, age=30 - number,
        )  # fmt: skip
    staff, token, listed = tokens.as_staff(), "", list[books_pb.ParkedMoney]()
    for size in (2, 1):
        request = books_pb.ListParkedMoneyRequest(page_size=2, page_token=token)
        page = await service.books.ListParkedMoney(request, metadata=staff)
        assert len(page.parked) == size
        listed, token = listed + list(page.parked), page.next_page_token
    assert token == ""
    assert [one.order_id for one in listed] == [order_id, *others]
    refund = listed[0]
    assert (refund.kind, refund.id, refund.problem) == (books_pb.ParkedMoney.REFUND, line.refund_id, "NOT_TAKEN")
    assert (refund.state, refund.amount.minor_units) == ("PENDING", 500)
    assert (listed[1].kind, listed[1].id) == (books_pb.ParkedMoney.PAYMENT, listed[1].payment_id)
    only = books_pb.ListParkedMoneyRequest(problem="REVERSAL_REFUSED")
    assert len((await service.books.ListParkedMoney(only, metadata=staff)).parked) == 2
    refused = await refusal(service.books.ListParkedMoney(only, metadata=tokens.as_user(uuid.uuid4())))
    assert refused.code == "PERMISSION_DENIED"
