"""The audit reads real databases and a provider: what it reads, waits for, leaves out, and cannot do.

`tests/audit` shows what it finds.
"""

import http.server
import json
import threading
import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import psycopg
import pytest

from deploy.audit import Report, Sources, Unreachable, audit
from deploy.audit.evidence import rows_about
from deploy.audit.repair import NotRepaired, repair
from deploy.local.ports import SERVICES
from services.chassis.data.db import Database

SHOE, SALE, ANN, ORDER, PAYMENT = (str(uuid.UUID(int=n)) for n in range(1, 6))
HELD_LINE = {"product_id": SHOE, "sale_id": SALE, "quantity": 2, "price_minor": 1999, "currency": "USD"}
LINE = {"product_id": SHOE, "sale_id": SALE, "quantity": 2, "unit_price": {"minor": 1999, "currency": "USD"}}
COPY = {"id": PAYMENT, "provider": "stripe", "state": "SUCCEEDED"}
ENTRY = {
    "id": "pi_1", "status": "succeeded", "amount": 3998, "currency": "usd", "amount_refunded": 0, "refunds": [],
    "metadata": {"order_id": ORDER, "payment_id": PAYMENT},
}  # fmt: skip

GOOD = {
    "catalog": f"""INSERT INTO products (id, sku, slug, name, description, category, price_minor, currency, attributes,
        active) VALUES ('{SHOE}', 'S', 's', 'Shoe', '', '', 4999, 'USD', '{{}}', true)""",
    "identity": f"""
        INSERT INTO users (id, email, password_hash, display_name, roles, email_verified)
            VALUES ('{ANN}', 'ann@demo.example', '$2b$', 'Ann', '{{customer}}', true);
        INSERT INTO signing_keys (kid, public_jwk, sealed_private_key, sign_from)
            VALUES ('k', '{{"kid": "k"}}', 'sealed', now())""",
    "inventory": f"""
        INSERT INTO stock (product_id, on_hand, held) VALUES ('{SHOE}', 90, 0);
        INSERT INTO stock_movements (product_id, delta, kind, reference_id)
            VALUES ('{SHOE}', 100, 'ADJUSTED', '{ANN}'), ('{SHOE}', -10, 'ALLOCATED', '{SALE}');
        INSERT INTO flash_sales (id, product_id, title, price_minor, currency, allocation, per_customer_limit,
            start_time, end_time, hold_seconds, sold)
            VALUES ('{SALE}', '{SHOE}', 'Sale', 1999, 'USD', 10, 2, now(), now() + interval '1 hour', 600, 2);
        INSERT INTO sale_customers (sale_id, customer_id, units) VALUES ('{SALE}', '{ANN}', 2);
        INSERT INTO reservations (id, customer_id, state, lines, sale_id, expire_time)
            VALUES ('{ORDER}', '{ANN}', 'CONFIRMED', '{json.dumps([HELD_LINE])}', '{SALE}',
                now() + interval '10 minutes')""",
    "orders": f"""
        INSERT INTO orders (id, customer_id, request_id, digest, state, lines, currency, total_minor,
            hold_expire_time, payment)
            VALUES ('{ORDER}', '{ANN}', '{ANN}', '', 'PAID', '{json.dumps([LINE])}', 'USD', 3998, now(),
                '{json.dumps(COPY)}');
        INSERT INTO order_products (product_id, create_time, order_id) SELECT '{SHOE}', create_time, id FROM orders;
        INSERT INTO order_log (order_id, version, state, reason, actor, request_id)
            VALUES ('{ORDER}', 1, 'PENDING', '', 'customer', ''), ('{ORDER}', 1, 'PAID', '', 'saga', '')""",
    "payments": f"""INSERT INTO payments (id, order_id, customer_id, amount_minor, currency, state, provider,
        customer_pays, provider_reference, attempt, attempt_time, failure_reason, refunded_minor, refunding_minor,
        cancel_requested, checks, version)
        VALUES ('{PAYMENT}', '{ORDER}', '{ANN}', 3998, 'USD', 'SUCCEEDED', 'stripe', false, 'pi_1', 1, now(), '', 0, 0,
        false, 0, 1);
        INSERT INTO journal_entries (payment_id, kind, debit, credit, amount_minor, currency, reference)
        VALUES ('{PAYMENT}', 'CAPTURED', 'provider:stripe', 'customer_payments', 3998, 'USD', 'pi_1')""",
}


@dataclass
class Shop:
    """Five databases and a provider's ledger that add up, until a test tampers with them."""

    sources: Sources
    ledger: list[dict[str, object]]

    def tamper(self, service: str, statement: str) -> None:
        with psycopg.connect(self.sources.databases[service].replace("+psycopg", "")) as connection:
            connection.execute(statement)  # type: ignore[call-overload]

    def audit(self) -> Report:
        return audit(self.sources, patience_seconds=0)

    def broken(self) -> set[str]:
        return {finding.check.name for finding in self.audit().findings.kept}


@pytest.fixture
def ledger() -> Iterator[tuple[str, list[dict[str, object]]]]:
    """The address of a provider's ledger, and its entries."""
    entries: list[dict[str, object]] = [ENTRY]

    class Ledger(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.writelines(json.dumps(entry).encode() + b"\n" for entry in entries)

        def log_message(self, *_: object) -> None:
            """Logs nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ledger) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", entries
        server.shutdown()
        thread.join()


@pytest.fixture
async def shop(database: Callable[[str], Awaitable[Database]], ledger: tuple[str, list[dict[str, object]]]) -> Shop:
    urls = {}
    for service in SERVICES:
        engine = (await database(service)).kw["bind"]
        urls[service] = engine.url.render_as_string(hide_password=False)
    made = Shop(Sources(urls, ledger[0]), ledger[1])
    for service, statements in GOOD.items():
        made.tamper(service, statements)
    return made


async def test_untouched_databases_add_up(shop: Shop) -> None:
    report = shop.audit()
    assert report.findings.kept == []
    assert str(report.units) == "90 on hand + 8 in sales + 0 held + 2 sold = 100 put in"
    assert (report.books.captured["USD"], report.books.ordered["USD"], report.books.paid) == (3998, 3998, 1)


async def test_more_or_less_money_at_the_provider_is_found(shop: Shop) -> None:
    shop.ledger.append({**ENTRY, "id": "pi_2", "metadata": {}})
    assert shop.broken() == {"provider-stray", "balance", "journal-balance"}
    shop.ledger.clear()
    assert shop.broken() == {"provider-charge", "balance", "journal-balance", "journal-provider"}


async def test_an_audit_of_one_product_ignores_others(shop: Shop) -> None:
    shop.tamper("inventory", "UPDATE flash_sales SET sold = 3")
    other = str(uuid.UUID(int=99))
    assert audit(shop.sources, products={other}, patience_seconds=0).adds_up
    assert not audit(shop.sources, products={SHOE}, patience_seconds=0).adds_up


async def test_a_problem_that_ends_meanwhile_is_no_finding(shop: Shop) -> None:
    shop.tamper("orders", "UPDATE orders SET state = 'FAILED'")

    def mend(_: float) -> None:
        shop.tamper("orders", "UPDATE orders SET state = 'PAID'")

    report = audit(shop.sources, patience_seconds=5, sleep=mend)
    assert (report.adds_up, report.passes) == (True, 2)


async def test_a_problem_is_read_twice_however_long_a_reading_takes(shop: Shop) -> None:
    """Otherwise every order that moves during a long reading would be a finding."""
    shop.tamper("orders", "UPDATE orders SET state = 'FAILED'")
    report = audit(shop.sources, patience_seconds=0.001, sleep=lambda _: None)
    assert (report.adds_up, report.passes) == (False, 2)


async def test_a_repair_derives_the_value_and_keeps_it(shop: Shop) -> None:
    shop.tamper("orders", f"DELETE FROM order_products WHERE order_id = '{ORDER}'")
    repair("order-products", ORDER, shop.sources.databases["orders"])
    assert shop.audit().adds_up


async def test_a_repair_that_does_not_help_changes_nothing(shop: Shop) -> None:
    shop.tamper("inventory", "UPDATE reservations SET state = 'LOST'")
    with pytest.raises(NotRepaired, match="still wrong, so nothing was changed"):
        repair("hold-length", ORDER, shop.sources.databases["inventory"])
    with pytest.raises(NotRepaired, match="order-total has no statements"):
        repair("order-total", ORDER, shop.sources.databases["orders"])


async def test_all_rows_about_an_order_are_shown_without_secrets(shop: Shop) -> None:
    shop.tamper("payments", "UPDATE payments SET client_secret = 'pi_1_hidden'")
    shown = list(rows_about(shop.sources, ORDER))
    parts = ["inventory.reservations", "orders.orders", "orders.order_log", "payments.payments", "provider"]
    assert all(any(line.startswith(part) for line in shown) for part in parts)
    assert "pi_1_hidden" not in "".join(shown)


async def test_the_audit_cannot_write(shop: Shop) -> None:
    with shop.sources.connections() as connections, pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        connections["orders"].execute("DELETE FROM orders")


async def test_an_unreachable_database_is_named() -> None:
    urls = dict.fromkeys(SERVICES, "postgresql+psycopg://nobody@127.0.0.1:9/nothing")
    with pytest.raises(Unreachable, match="the catalog database cannot be reached"):
        audit(Sources(urls))


def test_only_some_addresses_are_refused() -> None:
    with pytest.raises(Unreachable, match="set CATALOG_DATABASE_URL, IDENTITY_DATABASE_URL"):
        Sources.named({"ORDERS_DATABASE_URL": "postgresql://x/orders"})
