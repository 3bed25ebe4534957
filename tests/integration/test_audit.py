"""The audit on real databases with the services' schemas finds each row that was tampered with."""

import http.server
import json
import threading
import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import psycopg
import pytest

from deploy.audit import Invariant, Report, Sources, Unreachable, audit
from deploy.local.ports import SERVICES
from services.chassis.data.db import Database

SHOE, SALE, ANN, ORDER, PAYMENT = (str(uuid.UUID(int=n)) for n in range(1, 6))
LINE = {"product_id": SHOE, "sale_id": SALE, "quantity": 2}
ENTRY = {
    "id": "pi_1", "amount": 3998, "currency": "usd", "amount_refunded": 0,
    "metadata": {"order_id": ORDER, "payment_id": PAYMENT},
}  # fmt: skip

GOOD = {
    "catalog": f"""INSERT INTO products (id, sku, slug, name, description, category, price_minor, currency, attributes,
        active) VALUES ('{SHOE}', 'S', 's', 'Shoe', '', '', 4999, 'USD', '{{}}', true)""",
    "identity": f"""INSERT INTO users (id, email, password_hash, display_name, roles, email_verified)
        VALUES ('{ANN}', 'ann@demo.example', '', 'Ann', '{{customer}}', true)""",
    "inventory": f"""
        INSERT INTO stock (product_id, on_hand, held) VALUES ('{SHOE}', 90, 0);
        INSERT INTO stock_movements (product_id, delta, kind, reference_id)
            VALUES ('{SHOE}', 100, 'ADJUSTED', '{ANN}'), ('{SHOE}', -10, 'ALLOCATED', '{SALE}');
        INSERT INTO flash_sales (id, product_id, title, price_minor, currency, allocation, per_customer_limit,
            start_time, end_time, hold_seconds, sold)
            VALUES ('{SALE}', '{SHOE}', 'Sale', 1999, 'USD', 10, 2, now(), now() + interval '1 hour', 600, 2);
        INSERT INTO sale_customers (sale_id, customer_id, units) VALUES ('{SALE}', '{ANN}', 2);
        INSERT INTO reservations (id, customer_id, state, lines, expire_time)
            VALUES ('{ORDER}', '{ANN}', 'CONFIRMED', '{json.dumps([LINE])}', now() + interval '10 minutes')""",
    "orders": f"""INSERT INTO orders (id, customer_id, request_id, digest, state, lines, currency,
        total_minor, hold_expire_time)
        VALUES ('{ORDER}', '{ANN}', '{ANN}', '', 'PAID', '{json.dumps([LINE])}', 'USD', 3998, now())""",
    "payments": f"""INSERT INTO payments (id, order_id, customer_id, amount_minor, currency, state, provider,
        customer_pays, provider_reference, attempt, attempt_time, failure_reason, refunded_minor, refunding_minor,
        cancel_requested, checks, version)
        VALUES ('{PAYMENT}', '{ORDER}', '{ANN}', 3998, 'USD', 'SUCCEEDED', 'stripe', false, 'pi_1', 1, now(), '', 0, 0,
        false, 0, 1)""",
}


# One of the two units was returned, with a refund of half the price: on sale again, and not counted for the limit.
_ONE = json.dumps([LINE | {"quantity": 1}])
RETURNED = {
    "inventory": f"""
        INSERT INTO returns (id, reservation_id, asked, lines) VALUES ('{ANN}', '{ORDER}', '{{}}', '{_ONE}');
        UPDATE flash_sales SET sold = 1; UPDATE sale_customers SET units = 1""",
    "orders": "UPDATE orders SET state = 'PARTIALLY_REFUNDED'",
    "payments": "UPDATE payments SET refunded_minor = 1999",
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

    def broken(self) -> set[Invariant]:
        return {finding.invariant for finding in self.audit().findings.kept}


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


@pytest.mark.parametrize(
    ("service", "statement", "broken"),
    [
        ("inventory", "UPDATE flash_sales SET sold = 3", {Invariant.SALES}),
        ("inventory", "UPDATE stock SET on_hand = 91", {Invariant.STOCK, Invariant.UNITS}),
        ("inventory", "UPDATE sale_customers SET units = 1", {Invariant.LIMITS}),
        ("inventory", "UPDATE flash_sales SET per_customer_limit = 1", {Invariant.LIMITS}),
        ("inventory", "DELETE FROM reservations", {Invariant.SALES, Invariant.ORDERS, Invariant.LIMITS}),
        ("orders", "UPDATE orders SET state = 'FAILED'", {Invariant.ORDERS, Invariant.MONEY}),
        ("orders", "UPDATE orders SET state = 'PENDING'", {Invariant.ORDERS, Invariant.MONEY}),
        ("orders", "UPDATE orders SET total_minor = 1", {Invariant.MONEY}),
        ("payments", "UPDATE payments SET refunded_minor = 1", {Invariant.MONEY}),
        ("payments", "DELETE FROM payments", {Invariant.MONEY}),
        ("catalog", "DELETE FROM products", {Invariant.REFERENCES}),
        ("identity", "DELETE FROM users", {Invariant.REFERENCES}),
        (
            "orders",
            f"INSERT INTO sagas (order_id, phase, steps_done, payment_method, next_time, create_time)"
            f" SELECT '{ORDER}', 'FORWARD', 1, '', now(), now() - interval '1 hour';"
            f" UPDATE orders SET state = 'PENDING', update_time = now() - interval '1 hour'",
            {Invariant.SAGAS},
        ),
        (
            "orders",
            "INSERT INTO outbox (event_id, subject, key, payload, create_time)"
            " VALUES (gen_random_uuid(), 's', 'k', '', now() - interval '1 hour')",
            {Invariant.OUTBOX},
        ),
    ],
)
async def test_a_tampered_row_is_found(shop: Shop, service: str, statement: str, broken: set[Invariant]) -> None:
    shop.tamper(service, statement)
    assert shop.broken() == broken


@pytest.mark.parametrize(
    ("statement", "broken"),
    [
        ("SELECT", set()),
        ("DELETE FROM returns", {Invariant.SALES, Invariant.LIMITS}),
        ("UPDATE returns SET lines = jsonb_set(lines, '{0,quantity}', '2')", {Invariant.SALES, Invariant.LIMITS}),
        ("UPDATE returns SET lines = lines || lines || lines", {Invariant.SALES, Invariant.LIMITS, Invariant.ORDERS}),
        ("UPDATE returns SET lines = jsonb_set(lines, '{0,sale_id}', 'null')",
            {Invariant.SALES, Invariant.STOCK, Invariant.LIMITS, Invariant.ORDERS}),
    ],
)  # fmt: skip
async def test_returned_units_are_counted(shop: Shop, statement: str, broken: set[Invariant]) -> None:
    for service, statements in RETURNED.items():
        shop.tamper(service, statements)
    shop.ledger[0] = {**ENTRY, "amount_refunded": 1999}
    shop.tamper("inventory", statement)
    assert shop.broken() == broken


async def test_returned_stock_is_neither_sold_nor_put_in(shop: Shop) -> None:
    lines = json.dumps([LINE | {"sale_id": None, "quantity": 3}])
    other = str(uuid.UUID(int=9))
    shop.tamper(
        "inventory",
        f"""
        INSERT INTO reservations (id, customer_id, state, lines, expire_time)
            VALUES ('{other}', '{ANN}', 'CONFIRMED', '{lines}', now());
        INSERT INTO returns (id, reservation_id, asked, lines) VALUES ('{other}', '{other}', '{{}}', '{lines}');
        INSERT INTO stock_movements (product_id, delta, kind, reference_id)
            VALUES ('{SHOE}', -3, 'SOLD', '{other}'), ('{SHOE}', 3, 'RESTOCKED', '{other}')""",
    )
    report = shop.audit()
    assert report.findings.kept == []
    assert str(report.units) == "90 on hand + 8 in sales + 0 held + 2 sold = 100 put in"


async def test_more_or_less_money_at_the_provider_is_found(shop: Shop) -> None:
    shop.ledger.append({**ENTRY, "id": "pi_2", "metadata": {}})
    assert shop.broken() == {Invariant.MONEY}
    shop.ledger.clear()
    assert shop.broken() == {Invariant.MONEY}


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


async def test_the_audit_cannot_write(shop: Shop) -> None:
    with shop.sources.connections() as connections, pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        connections["orders"].execute("DELETE FROM orders")


async def test_an_unreachable_database_is_named() -> None:
    urls = dict.fromkeys(SERVICES, "postgresql+psycopg://nobody@127.0.0.1:9/nothing")
    with pytest.raises(Unreachable, match="the catalog database cannot be reached"):
        audit(Sources(urls))


def test_only_some_addresses_are_refused() -> None:
    with pytest.raises(Unreachable, match="set CATALOG_DATABASE_URL, IDENTITY_DATABASE_URL"):
        Sources.here({"ORDERS_DATABASE_URL": "postgresql://x/orders"})
