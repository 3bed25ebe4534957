"""The daily report finds each difference between the provider's charges and ours, also after a restore."""

import argparse
import uuid
from datetime import UTC, datetime, timedelta

import pytest

from services.payments.books import cli, report
from services.payments.books.report import Difference, Kind, Report, Reporter, last_span
from services.payments.domain import State
from services.payments.providers.results import Unknown
from tests.integration.payments.conftest import Payments, Sandbox, an_order
from tests.integration.payments.conftest import State as Status
from tests.integration.payments.razorpay.conftest import Razorpay

_QUIET = "UPDATE payments SET update_time = now() - interval '1 hour'"


class Books:
    """One provider with a paid payment, and the reports about it."""

    def __init__(self, name: str, service: Payments, sandbox: Sandbox) -> None:
        self.name, self.service, self.sandbox = name, service, sandbox
        self.tools = Razorpay(service, sandbox)
        service.providers.default = service.providers[name]

    async def paid(self) -> uuid.UUID:
        if self.name == "stripe":
            status = await self.service.charged(an_order("pm_card_visa"))
            assert status.state == Status.SUCCEEDED
            id_ = uuid.UUID(status.payment_id)
        else:
            payment = await self.tools.begun()
            await self.tools.verify(await self.tools.pay(payment))
            id_ = payment.id
        await self.service.rows(_QUIET)
        return id_

    async def found(self, *money: str) -> list[Difference]:
        """Return the differences of these charges; the sandbox has those of other tests too."""
        now = datetime.now(UTC)
        made = Report(self.service.db, self.service.providers[self.name], now - timedelta(hours=1), now + _AHEAD)
        return [one async for one in made.differences() if one.reference in money]

    async def money(self, id_: uuid.UUID) -> str:
        return (await self.service.payment(id_)).charge_reference or ""

    async def refund_there(self, money: str, minor: int) -> None:
        """Refund as people do at the provider; no event says so."""
        if self.name == "stripe":
            await self.sandbox.refund(money, minor)
        else:
            await self.tools.act(f"payments/{money}/refund", amount=minor)


_AHEAD = timedelta(minutes=20)
"""So that a report of a test covers what was made just now."""


@pytest.fixture(params=["stripe", "razorpay"])
def books(request: pytest.FixtureRequest, service: Payments, sandbox: Sandbox) -> Books:
    return Books(request.param, service, sandbox)


async def test_charges_that_agree_are_not_reported(books: Books) -> None:
    id_ = await books.paid()
    assert await books.found(await books.money(id_)) == []


async def test_money_of_a_lost_payment_is_found(books: Books) -> None:
    """The database is the one of yesterday: it lacks the payment, and the provider has its money."""
    id_ = await books.paid()
    payment, money = await books.service.payment(id_), await books.money(id_)
    await books.service.rows("DELETE FROM payments")
    (one,) = await books.found(money)
    assert one.kind is Kind.MISSING_HERE
    assert one.order_id == (str(payment.order_id) if books.name == "stripe" else "")
    assert not await report.repair(books.service.db, books.service.providers[books.name], one), "it is for people"


async def test_a_payment_that_forgot_its_money_is_found_and_repaired(books: Books) -> None:
    """The database is the one of a moment before the payment: the provider is asked again, and its answer counts."""
    id_ = await books.paid()
    money = await books.money(id_)
    await books.service.rows("UPDATE payments SET state = 'CANCELLED'")
    (one,) = await books.found(money)
    assert (one.kind, one.payment_id) == (Kind.OTHER_STATE, id_)
    await books.service.rows("UPDATE payments SET state = 'AWAITING_CUSTOMER', next_check_time = now()")
    (one,) = await books.found(money)
    assert await report.repair(books.service.db, books.service.providers[books.name], one)
    await books.tools.apply_due()
    assert (await books.service.payment(id_)).state is State.SUCCEEDED
    assert await books.found(money) == []


async def test_what_changed_a_moment_ago_is_not_reported(books: Books) -> None:
    id_ = await books.paid()
    money = await books.money(id_)
    await books.service.rows("UPDATE payments SET state = 'PROCESSING', next_check_time = now(), update_time = now()")
    assert await books.found(money) == []


async def test_another_amount_is_found(books: Books) -> None:
    id_ = await books.paid()
    await books.service.rows("UPDATE payments SET amount_minor = 5")
    assert [one.kind for one in await books.found(await books.money(id_))] == [Kind.OTHER_AMOUNT]
    books.service.altered = True


async def test_refunds_that_differ_are_found_and_repaired(books: Books) -> None:
    id_ = await books.paid()
    money = await books.money(id_)
    await books.refund_there(money, 700)
    (one,) = await books.found(money)
    assert one.kind is Kind.OTHER_REFUNDS
    assert await report.repair(books.service.db, books.service.providers[books.name], one)
    await books.tools.reconcile()
    assert (await books.service.payment(id_)).refunded_minor == 700
    await books.service.rows(_QUIET)
    assert await books.found(money) == []


async def test_a_payment_without_money_at_the_provider_is_found(books: Books) -> None:
    """Its charge is not in the list, and the provider has none when it is asked."""
    id_ = await books.paid()
    await books.service.rows(
        "UPDATE payments SET provider_reference = 'pi_none', create_time = now() - interval '30 minutes',"
        " capture_reference = CASE WHEN capture_reference IS NOT NULL THEN 'pay_none' END"
    )
    (one,) = await books.found("pay_none" if books.name == "razorpay" else "pi_none")
    assert (one.kind, one.payment_id) == (Kind.MISSING_THERE, id_)


async def test_a_charge_later_than_its_payment_is_looked_up(books: Books) -> None:
    """Its payment is in the span, and the money came after it."""
    id_ = await books.paid()
    money, now = await books.money(id_), datetime.now(UTC)
    await books.service.rows("UPDATE payments SET create_time = now() - interval '2 hours'")
    made = Report(
        books.service.db, books.service.providers[books.name], now - timedelta(hours=3), now - timedelta(hours=1)
    )
    assert [one async for one in made.differences() if one.reference == money] == []


async def test_stray_money_that_goes_back_is_not_reported(service: Payments, sandbox: Sandbox) -> None:
    books = Books("razorpay", service, sandbox)
    payment = await books.tools.begun()
    first = await books.tools.pay(payment)
    second = await books.tools.pay(payment, "begin")
    await books.tools.verify(first)
    await books.tools.act(f"payments/{second['razorpay_payment_id']}/authorize", capture=True)
    await service.walk_of("razorpay").walk_once(pause=0)
    await books.tools.apply_events()
    await books.tools.reconcile()
    await service.rows(_QUIET)
    assert await books.found(second["razorpay_payment_id"]) == []


async def test_a_provider_that_does_not_list_fails_the_report(service: Payments, sandbox: Sandbox) -> None:
    await Books("stripe", service, sandbox).paid()
    await sandbox.faults(error_500={"next": 20})
    span = await last_span(service.db)
    with pytest.raises(report.ProviderSilent):
        _ = [one async for one in Report(service.db, service.provider, *span).differences()]
    reporter = Reporter(service.db, service.providers)
    await reporter.report_once("stripe")
    assert await service.rows("SELECT done_time FROM provider_reports") == [(None,)], "it is made again"


async def test_a_list_that_is_too_long_is_read_in_halves(
    service: Payments, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    books, spans = Books("stripe", service, sandbox), list[timedelta]()
    id_ = await books.paid()
    whole = service.provider.list_charges

    async def narrow(since: datetime, until: datetime) -> object:
        spans.append(until - since)
        return Unknown(too_many=True) if until - since > timedelta(minutes=20) else await whole(since, until)

    monkeypatch.setattr(service.provider, "list_charges", narrow)
    await service.rows("DELETE FROM payments")
    service.altered = True
    assert id_
    now = datetime.now(UTC)
    made = Report(service.db, service.provider, now - timedelta(hours=1), now + _AHEAD)
    assert Kind.MISSING_HERE in [one.kind async for one in made.differences()]
    assert max(spans) > timedelta(minutes=20) > min(spans)


async def test_the_command_fails_if_something_differs(
    service: Payments, sandbox: Sandbox, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    id_ = await Books("stripe", service, sandbox).paid()
    money = (await service.payment(id_)).provider_reference
    monkeypatch.setattr(report, "_SETTLED", -_AHEAD)
    await service.rows("UPDATE payments SET amount_minor = 5")
    service.altered = True
    arguments = argparse.Namespace(provider=["stripe"], hours=1.0, repair=True)
    assert await cli.report(arguments, service.providers, service.db) == 1
    assert f"OTHER_AMOUNT  stripe {money}" in capsys.readouterr().out


async def test_a_report_is_made_once_a_day_and_keeps_its_result(
    service: Payments, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    await Books("stripe", service, sandbox).paid()
    monkeypatch.setattr(report, "_SETTLED", -_AHEAD)
    await service.rows("DELETE FROM payments")
    reporter = Reporter(service.db, service.providers)
    await reporter.report_once("stripe")
    ((first, differences),) = await service.rows("SELECT next_time, differences FROM provider_reports")
    assert differences >= 1
    await reporter.report_once("stripe")
    assert await service.rows("SELECT next_time FROM provider_reports") == [(first,)], "it is not due"
