"""The journal: each movement of money is one balanced entry, written in the transaction of the fact."""

import uuid
from datetime import timedelta

import alembic.command
import pytest
from alembic.config import Config
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import text

from services.chassis.data.db import connect, migrate
from services.payments.dispatch import parked
from services.payments.sql import journal
from services.payments.sql.journal import Balance
from stampede.payments.v1 import books_service_pb2 as pb
from tests.integration.payments.conftest import Payments, Sandbox, an_order
from tests.integration.payments.refunds.test_payments_listed import a_refunded_order, sum_is
from tests.integration.payments.refunds.test_payments_refunds import a_line, create, paid, repeat
from tests.support import tokens
from tests.support.infra import Infra
from tests.support.serving import refusal

STRIPE = "provider:stripe"
_OLD_ROWS = """
    INSERT INTO payments (id, order_id, customer_id, amount_minor, currency, state, provider, customer_pays,
        provider_reference, attempt, attempt_time, failure_reason, refunded_minor, refunding_minor, cancel_requested,
        checks, version)
    SELECT CAST('00000000-0000-7000-8000-00000000000' || n AS uuid), gen_random_uuid(), gen_random_uuid(), 1999, 'USD',
        CASE n WHEN 1 THEN 'SUCCEEDED' WHEN 2 THEN 'REFUNDED' WHEN 3 THEN 'FAILED' ELSE 'PROCESSING' END, 'stripe',
        false, 'pi_' || n, 1, now(), '', 0, 0, false, 0, 1
    FROM generate_series(1, 4) AS n;
    INSERT INTO refunds (id, payment_id, amount_minor, reason, state, stray, external, charge_reference,
        failure_reason, checks)
    SELECT gen_random_uuid(), CAST('00000000-0000-7000-8000-00000000000' || p AS uuid), amount, reason, state, stray,
        external, charge, '', 0
    FROM (VALUES (1, 300, '', 'SUCCEEDED', false, false, 'pi_1'), (1, 70, '', 'FAILED', false, false, 'pi_1'),
        (1, 40, '; marked as done by operator:ann', 'SUCCEEDED', false, true, 'pi_1'),
        (3, 1000, '', 'FAILED', true, false, 'pi_9'), (3, 1000, '', 'SUCCEEDED', true, true, 'pi_9')
    ) AS r (p, amount, reason, state, stray, external, charge)
"""
ENTRIES = "SELECT kind, debit, credit, amount_minor, currency FROM journal_entries ORDER BY id"


async def entries(service: Payments) -> list[tuple[str, str, str, int, str]]:
    return [tuple(row) for row in await service.rows(ENTRIES)]


@pytest.mark.parametrize(("currency", "minor"), [("USD", 1999), ("JPY", 500), ("KWD", 12340)])
async def test_a_charge_is_entered_with_its_result(service: Payments, currency: str, minor: int) -> None:
    """In minor units of the currency, whether it has two decimals, none or three."""
    item = an_order(minor=minor, currency=currency)
    payment_id = (await service.charged(item)).payment_id
    assert await entries(service) == [("CAPTURED", STRIPE, "customer_payments", minor, currency)]
    found = await service.rows("SELECT e.payment_id, e.reference = p.provider_reference FROM journal_entries e,"
                               " payments p")  # fmt: skip
    assert found == [(uuid.UUID(payment_id), True)]
    await service.charge(item)  # a repeat changes nothing
    assert len(await entries(service)) == 1


async def test_a_declined_charge_is_not_entered(service: Payments) -> None:
    await service.charged(an_order("pm_card_chargeDeclined"))
    assert await entries(service) == []


async def test_a_success_that_is_stored_late_is_entered_once(service: Payments, sandbox: Sandbox) -> None:
    """The row has changed since it was read, so the slow path stores the result."""
    await sandbox.faults(latency_ms=300)
    item = an_order()
    cancelling = service.cancel(item)
    await service.charge(item)
    await cancelling
    await service.dispatcher.drain(seconds=10)
    found = await service.rows("SELECT state FROM payments")
    assert len(await entries(service)) == (found == [("SUCCEEDED",)])


async def test_refunds_are_entered_when_they_succeed_and_when_they_fail(running: Payments, sandbox: Sandbox) -> None:
    _, payment_id, _, refund = await a_refunded_order(running, sandbox, 500)
    await sandbox.fail_refund(refund)
    await sum_is(running, payment_id, 0)
    assert await entries(running) == [
        ("CAPTURED", STRIPE, "customer_payments", 1999, "USD"),
        ("REFUNDED", "refunds", STRIPE, 500, "USD"),
        ("REFUND_FAILED", STRIPE, "refunds", 500, "USD"),
    ]
    assert await journal.balances(running.db) == [
        Balance("customer_payments", "USD", 0, 1999),
        Balance(STRIPE, "USD", 2499, 500),
        Balance("refunds", "USD", 500, 500),
    ]


async def test_a_dashboard_refund_is_entered(running: Payments, sandbox: Sandbox) -> None:
    item = an_order()
    payment_id = (await running.charged(item)).payment_id
    (intent,) = await sandbox.intents(item.order_id)
    await sandbox.refund(intent["id"], 999)
    await sum_is(running, payment_id, 999)
    assert (await entries(running))[1:] == [("REFUNDED", "refunds", STRIPE, 999, "USD")]


@pytest.mark.parametrize(
    ("end", "entry"),
    [
        (parked.mark_as_done, ("REFUNDED_OUTSIDE", "refunds", "outside", 500, "USD")),
        (parked.write_off, ("WRITTEN_OFF", "refunds", "written_off", 500, "USD")),
    ],
)
async def test_money_that_goes_no_way_of_the_provider_is_entered(
    service: Payments, sandbox: Sandbox, end: object, entry: tuple[object, ...]
) -> None:
    """A refund that has failed for good, and that an operator ends: the provider's list changes nothing afterwards."""
    line = a_line(await paid(service), 500)
    await create(service, line)
    (refund,) = await service.rows("SELECT provider_reference FROM refunds")
    await sandbox.fail_refund(refund[0])
    await service.rows("UPDATE payments SET refund_check_time = now()")
    await repeat(service, "checks = 0")
    await end(service.db, uuid.UUID(line.refund_id), "operator:ann")  # type: ignore[operator]
    await service.rows("UPDATE payments SET refund_check_time = now()")
    await repeat(service, "checks = 0")
    assert [kind for kind, *_ in await entries(service)][1:3] == ["REFUNDED", "REFUND_FAILED"]
    assert (await entries(service))[3:] == [entry]
    assert await service.rows("SELECT refunded_minor, problem FROM payments") == [(500, "")]


async def listed(service: Payments, **query: object) -> pb.ListJournalEntriesResponse:
    request = pb.ListJournalEntriesRequest(**query)  # type: ignore[arg-type]
    answer: pb.ListJournalEntriesResponse = await service.books.ListJournalEntries(request, metadata=tokens.as_staff())
    return answer


async def test_staff_list_the_journal_by_account_and_time(service: Payments) -> None:
    for _ in range(3):
        await create(service, a_line(await paid(service), 500))
    pages, token = [], ""
    while True:
        answer = await listed(service, page_size=2, page_token=token)
        pages.append([entry.kind for entry in answer.entries])
        token = answer.next_page_token
        if not token:
            break
    assert pages == [["REFUNDED", "CAPTURED"]] * 3
    by_account = {
        name: await listed(service, account=name) for name in (STRIPE, "refunds", "fees", "customer_payments")
    }
    assert {name: len(found.entries) for name, found in by_account.items()} == {
        STRIPE: 6, "refunds": 3, "fees": 0, "customer_payments": 3,
    }  # fmt: skip
    (first, *_) = by_account["refunds"].entries
    assert (first.debit, first.credit, first.amount.minor_units) == ("refunds", STRIPE, 500)
    later = Timestamp()
    later.FromDatetime(first.create_time.ToDatetime() + timedelta(microseconds=1))
    for account in ("", "refunds"):
        assert len((await listed(service, account=account, from_time=later)).entries) == 0
        assert (await listed(service, account=account, to_time=later)).entries[0].id == first.id
        assert (await listed(service, account=account, to_time=first.create_time)).entries[0].id < first.id
    page = await listed(service, account="refunds", page_size=2)
    assert [
        e.id for e in (await listed(service, account="refunds", page_size=2, page_token=page.next_page_token)).entries
    ]
    refused = await refusal(
        service.books.ListJournalEntries(
            pb.ListJournalEntriesRequest(page_token=page.next_page_token), metadata=tokens.as_staff()
        )
    )
    assert refused.reason == "INVALID_FIELDS"


async def test_the_runtime_role_cannot_change_an_entry(service: Payments) -> None:
    await paid(service)
    granted = await service.rows(
        "SELECT privilege_type FROM information_schema.column_privileges WHERE table_name = 'journal_entries'"
        " AND grantee = 'payments' AND privilege_type NOT IN ('SELECT', 'INSERT')"
    )
    assert granted == []


async def test_entries_that_are_missing_are_completed_once(service: Payments) -> None:
    """As those of a process of the release before, which knows no journal."""
    await create(service, a_line(await paid(service), 500))
    service.altered = True
    before = sorted(entry[1:] for entry in await entries(service))
    await service.rows("DELETE FROM journal_entries")
    for missing in (2, 0):
        async with service.db.begin() as tx:
            assert len(await journal.complete(tx)) == missing
    assert sorted(entry[1:] for entry in await entries(service)) == before
    assert {entry[0] for entry in await entries(service)} == {"OPENING"}


async def test_the_migration_opens_the_journal(infra: Infra, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its entries are those that the rows stand for: a charge, refunds of each kind, and a stray charge."""
    name = "before_the_journal"
    infra.admin(f"CREATE DATABASE {name}")
    upgrade = alembic.command.upgrade

    def to_0008(config: Config, _: str) -> None:
        config.attributes["grants"] = "SELECT 1"
        upgrade(config, "0008")

    with monkeypatch.context() as patch:
        patch.setattr(alembic.command, "upgrade", to_0008)
        await migrate("payments", infra.database_url(name))
    engine, old = connect(infra.database_url(name), pool_size=1)
    async with old.begin() as tx:
        await tx.execute(text(_OLD_ROWS))
    await engine.dispose()
    await migrate("payments", infra.database_url(name))
    engine, now = connect(infra.database_url(name), pool_size=1)
    async with now.begin() as tx:
        assert await journal.complete(tx) == []
    assert await journal.balances(now) == [
        Balance("customer_payments", "USD", 0, 3998),
        Balance("outside", "USD", 0, 40),
        Balance(STRIPE, "USD", 3998 + 1000, 300 + 1000),
        Balance("refunds", "USD", 340, 0),
        Balance("stray_money", "USD", 1000, 1000),
    ]
    await engine.dispose()
    infra.admin(f"DROP DATABASE {name} WITH (FORCE)")
