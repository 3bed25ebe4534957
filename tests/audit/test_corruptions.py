"""Each corruption is found and named, with its id and with the command that repairs it."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from string import Template

import psycopg
import pytest

from deploy.audit.checks.all_checks import BY_NAME
from deploy.audit.findings import Finding
from deploy.audit.reading.gate import GateCounter
from deploy.audit.reading.rows import Intent, ProviderDispute, ProviderRefund
from deploy.audit.repair import mend
from tests.audit.corruptions import INVENTORY, ORDERS, Corruption
from tests.audit.corruptions_of_money import OTHERS, PAYMENTS
from tests.audit.records import Records

BEYOND_REPAIR = {
    "a stock is lost", "a sale is lost", "a failed order is lost", "an expired order is lost",
    "a purchase saga of a paid order", "a saga of another kind", "a movement of an adjustment is missing",
    "a reservation in an unknown state", "a return is lost", "a payment does not name its charge",
}  # fmt: skip
"""The lost value follows from no other row: the command says so, and changes nothing."""
STATEMENTS = [*ORDERS, *INVENTORY, *PAYMENTS, *OTHERS]


def found(records: Records, check: str, id_: str = "") -> list[Finding]:
    """The findings of a check, about one id if it is given."""
    kept = records.findings(BY_NAME[check])
    named = [finding for finding in kept if finding.check.name == check and not finding.warning]
    assert named, f"{check} finds nothing, but {[finding.text for finding in records.examine().findings.kept]}"
    assert not id_ or any(id_ in finding.ids[0] for finding in named), [finding.text for finding in named]
    return named


def test_records_of_a_real_day_add_up(records: Records) -> None:
    report = records.examine()
    assert [finding.text for finding in report.findings.kept] == []
    assert (report.books.paid, report.books.in_flight_count) == (8, 1)


def test_an_audit_of_the_running_mesh_finds_nothing(records: Records) -> None:
    assert [finding.text for finding in records.live.findings.kept] == []
    assert (records.live.books.paid, records.live.books.in_flight_count) == (8, 1)


@pytest.mark.parametrize("corruption", STATEMENTS, ids=lambda corruption: corruption.name.replace(" ", "-"))
def test_corrupted_rows_are_found(records: Records, corruption: Corruption) -> None:
    with records.copy() as copy:
        statements = Template(corruption.statements).substitute(records.names)
        copy.run(corruption.service, statements)
        copy.run("inventory", Template(corruption.besides).substitute(records.names))
        id_ = Template(corruption.id).safe_substitute(records.names).strip("$")
        findings = found(copy, corruption.finds, id_)
        assert all(finding.repair for finding in findings)


def _provider(records: Records, name: str) -> Intent:
    (intent,) = (intent for intent in records.intents if intent.order_id == records.names[name])
    return intent


def _changed(name: str, **changes: object) -> Callable[[Records], None]:
    """The provider's record of an order's payment is another one."""

    def change(records: Records) -> None:
        intent = _provider(records, name)
        records.intents[records.intents.index(intent)] = replace(intent, **changes)  # type: ignore[arg-type]

    return change


def _added(name: str, **changes: object) -> Callable[[Records], None]:
    """The provider has one more payment like that of an order."""
    return lambda records: records.intents.append(replace(_provider(records, name), id="pi_more", **changes))  # type: ignore[arg-type]


PROVIDER: list[tuple[Callable[[Records], None], str, str]] = [
    (lambda records: records.intents.remove(_provider(records, "paid")), "provider-charge", "paid"),
    (_changed("paid", status="canceled"), "provider-charge", "paid"),
    (_changed("paid", amount_minor=1), "provider-charge", "paid"),
    (_changed("paid", currency="EUR"), "provider-charge", "paid"),
    (_changed("paid", payment_id="other"), "provider-charge", "paid"),
    (_changed("paid", refunded_minor=1), "provider-charge", "paid"),
    (_changed("partly", refunded_minor=0), "provider-charge", "partly"),
    (_changed("paid", dispute=ProviderDispute(id="dp_x", amount_minor=1, status="needs_response", age_seconds=3600)),
        "provider-dispute", "paid"),
    (_changed("paid", dispute=ProviderDispute(id="dp_x", amount_minor=1, status="lost")), "journal-provider", "paid"),
    (_added("paid"), "provider-stray", "paid"),
    (_added("paid"), "balance", "USD"),
    (_added("failed", status="succeeded"), "provider-stray", "failed"),
    (_added("paid", order_id=""), "provider-stray", ""),
    (_added("paid", order_id="ffffffff-0000-7000-8000-000000000000"), "provider-stray", ""),
    (_added("paid", status="requires_payment_method"), "provider-open", "paid"),
    (_changed("abandoned", status="requires_payment_method"), "provider-open", "abandoned"),
    (_changed("abandoned", status="succeeded"), "provider-stray", "abandoned"),
    (_changed("partly", refunds=()), "provider-refunds", "partly"),
    (_changed("paid", refunds=(ProviderRefund(id="re_x", refund_id="lost", amount_minor=1),)), "provider-refunds",
        "paid"),
    (_changed("partly", refunds=(ProviderRefund(id="re_x", refund_id="", amount_minor=1999),)), "provider-refunds",
        "partly"),
]  # fmt: skip


@pytest.mark.parametrize(("corrupt", "finds", "id_"), PROVIDER)
def test_wrong_records_of_the_provider_are_found(
    records: Records, corrupt: Callable[[Records], None], finds: str, id_: str
) -> None:
    with records.copy() as copy:
        corrupt(copy)
        found(copy, finds, records.names.get(id_, id_))


@pytest.mark.parametrize("name", ["paid", "pending", "expired"])
def test_a_lost_event_is_found(records: Records, name: str) -> None:
    with records.copy() as copy:
        copy.lost.add(records.names[name])
        found(copy, "event-lost", records.names[name])


def test_a_lost_event_of_a_payment_is_found(records: Records) -> None:
    with records.copy() as copy:
        copy.lost.add(_provider(records, "paid").payment_id)
        found(copy, "event-lost", _provider(records, "paid").payment_id)


def test_dead_letters_are_found(records: Records) -> None:
    with records.copy() as copy:
        copy.broker = replace(copy.broker, dead_letters={"orders-payments": 2})
        found(copy, "dead-letters", "orders-payments")


@pytest.mark.parametrize("counter", [GateCounter(0), GateCounter(-3), GateCounter(None, "hash")])
def test_a_gate_that_is_wrong_in_a_quiet_sale_is_found(records: Records, counter: GateCounter) -> None:
    with records.copy() as copy:
        copy.run("inventory", "UPDATE flash_sales SET update_time = now() - interval '1 hour',"
            " start_time = now() - interval '1 hour', create_time = now() - interval '2 hours'")  # fmt: skip
        copy.counters[records.names["sale"]] = counter
        found(copy, "gate-counter", records.names["sale"])


# These only request what a running service does.
LATER = {"order-refunded", "order-payment-copy", "order-disputed"}
MENDED = [corruption for corruption in STATEMENTS if BY_NAME[corruption.finds].mend and corruption.finds not in LATER]


@pytest.mark.parametrize("corruption", MENDED, ids=lambda corruption: corruption.name.replace(" ", "-"))
def test_mended_rows_are_found_no_more(records: Records, corruption: Corruption) -> None:
    """`python -m deploy.audit repair` derives the lost value from other rows, unless those are lost too."""
    with records.copy() as copy:
        copy.run(corruption.service, Template(corruption.statements).substitute(records.names))
        for finding in found(copy, corruption.finds):
            with contextlib.suppress(psycopg.errors.CheckViolation), copy.connections[corruption.service].transaction():
                mend(finding.check, finding.ids[0], copy.connections[corruption.service])
        left = [finding.text for finding in copy.findings(BY_NAME[corruption.finds])]
        assert bool(left) == (corruption.name in BEYOND_REPAIR), left


def test_every_check_has_a_corruption_that_it_finds() -> None:
    """Partitions are tried where there are some."""
    tried = {corruption.finds for corruption in STATEMENTS} | {finds for _, finds, _ in PROVIDER}
    tried |= {"event-lost", "dead-letters", "gate-counter"}
    untried = {name for name in BY_NAME if not name.endswith("-partitions")} - tried
    assert untried == set()
    assert len(STATEMENTS) + len(PROVIDER) > 200
