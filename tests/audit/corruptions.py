"""Corruptions of the records of orders and inventory: the case, the check that must find it, the id, the statement.

`$name` stands for an id of `day.spend`. Foreign keys are off; a statement that a constraint refuses drops it first.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Corruption:
    """A change of the records that no service makes."""

    name: str
    finds: str
    """The name of the check."""
    id: str
    """The first id of the finding, or a part of it."""
    service: str
    statements: str
    besides: str = ""
    """The statements that corrupt inventory as well."""


def corruptions(service: str, *rows: tuple[str, ...]) -> list[Corruption]:
    """One for each row: its name, the check that finds it, the id, the statements, and those for inventory if any."""
    return [
        Corruption(name, finds, id_, service, statements, *besides) for name, finds, id_, statements, *besides in rows
    ]


_SHIP = """UPDATE orders SET state = 'SHIPPED', version = version + 1,
    shipment = '{"ship_time": "2026-01-01T00:00:00Z"}' WHERE id = '$paid'"""

ORDERS = corruptions(
    "orders",
    ("a failed order is lost", "log-complete", "$failed", "DELETE FROM orders WHERE id = '$failed'"),
    ("a failed order is lost without trace in orders", "order-lost", "$failed",
        "DELETE FROM orders WHERE id = '$failed'; DELETE FROM order_log WHERE order_id = '$failed';"
        " DELETE FROM order_products WHERE order_id = '$failed'"),
    ("an expired order is lost", "log-complete", "$expired", "DELETE FROM orders WHERE id = '$expired'"),
    ("a paid order is lost", "order-lost", "$paid", "DELETE FROM orders WHERE id = '$paid'"),
    ("a pending order is lost", "saga-of-order", "$pending", "DELETE FROM orders WHERE id = '$pending'"),
    ("an order moved without log and event", "log-complete", "$paid",
        _SHIP),
    ("an order moved with a log entry and no event", "event-lost", "$paid",
        f"""{_SHIP};
        INSERT INTO order_log (order_id, version, state, reason, actor, request_id)
        VALUES ('$paid', 1, 'SHIPPED', '', '', '')"""),
    ("the last log entry is missing", "log-complete", "$shipped",
        "DELETE FROM order_log WHERE order_id = '$shipped' AND state = 'SHIPPED'"),
    ("a log entry in the middle is missing", "log-moves", "$shipped",
        "DELETE FROM order_log WHERE order_id = '$shipped' AND state = 'PAID'"),
    ("the entry of the payment is missing before a refund", "log-moves", "$partly",
        "DELETE FROM order_log WHERE order_id = '$partly' AND cause = 'paid'"),
    ("the beginning of a refund is missing in the log", "log-moves", "$partly",
        "DELETE FROM order_log WHERE order_id = '$partly' AND cause = 'RefundOrder begun'"),
    ("the first log entry is missing", "log-complete", "$paid",
        "DELETE FROM order_log WHERE order_id = '$paid' AND state = 'PENDING'"),
    ("a whole log is missing", "log-complete", "$delivered", "DELETE FROM order_log WHERE order_id = '$delivered'"),
    ("all logs are missing", "log-complete", "$paid", "TRUNCATE order_log"),
    ("an illegal move is in the log", "log-moves", "$failed",
        """INSERT INTO order_log (order_id, version, state, reason, actor, request_id)
        VALUES ('$failed', 9, 'PAID', '', '', ''), ('$failed', 9, 'FAILED', 'CARD_DECLINED', '', '')"""),
    ("versions fall in the log", "log-moves", "$shipped",
        "UPDATE order_log SET version = 1 WHERE order_id = '$shipped' AND state = 'SHIPPED'"),
    ("the log names a version that is still to come", "log-complete", "$paid",
        "UPDATE orders SET version = 1 WHERE id = '$paid'"),
    ("the log has other refunds", "log-complete", "$refunded",
        "UPDATE order_log SET refunded_minor = 1 WHERE order_id = '$refunded'"),
    ("refunding without a saga", "saga-of-order", "$paid", "UPDATE orders SET refunding = true WHERE id = '$paid'"),
    ("an accepted cancellation is forgotten", "cancel-of-order", "$paid",
        "UPDATE orders SET cancel_requested = true WHERE id = '$paid'"),
    ("a cancellation that nobody accepted", "cancel-of-order", "$pending",
        "UPDATE sagas SET cancel_reason = 'CANCELLED'"),
    ("nobody compares an order with payments", "payment-check", "$paid",
        "INSERT INTO payment_checks (order_id, due_time) VALUES ('$paid', now() - interval '3 hours')"),
    ("pending without a saga", "saga-of-order", "$pending", "DELETE FROM sagas"),
    ("a saga without an order", "saga-of-order", "00000000-0000-0000-0000-000000000007",
        "UPDATE sagas SET order_id = '00000000-0000-0000-0000-000000000007'"),
    ("a purchase saga of a paid order", "saga-of-order", "$paid", "UPDATE sagas SET order_id = '$paid'"),
    ("a saga of another kind", "saga-of-order", "$pending", "UPDATE sagas SET kind = 'REFUND', refund = '{}'"),
    ("a saga with impossible progress", "saga-shape", "$pending", "UPDATE sagas SET steps_done = 7"),
    ("a saga in an unknown phase", "saga-shape", "$pending", "UPDATE sagas SET phase = 'SIDEWAYS'"),
    ("a saga that never wakes", "saga-shape", "$pending", "UPDATE sagas SET next_time = now() + interval '1 day'"),
    ("a saga without progress for hours", "saga-stuck", "$pending",
        "UPDATE sagas SET paused = false, progress_time = now() - interval '3 hours'"),
    ("a saga that waits for a provider that has nothing to do", "saga-waits", "$pending",
        "UPDATE sagas SET waits_for_provider = true, cause = 'x', progress_time = now() - interval '3 hours'"),
    ("a saga that waits for the provider for a month", "saga-stuck", "$pending",
        "UPDATE sagas SET waits_for_provider = true, cause = 'x', progress_time = now() - interval '3 hours',"
        " create_time = now() - interval '1 month'"),
    ("a hold far past its end with a saga that waits", "saga-past-hold", "$pending",
        "UPDATE orders SET hold_expire_time = now() - interval '2 hours', create_time = now() - interval '3 hours'"
        " WHERE id = '$pending'"),
    ("an order whose hold never ends", "hold-of-order", "$pending",
        "UPDATE orders SET hold_expire_time = 'infinity' WHERE id = '$pending'"),
    ("two orders of one request", "order-once", "$",
        """ALTER TABLE orders DROP CONSTRAINT orders_one_per_request;
        UPDATE orders SET (customer_id, request_id) = (SELECT customer_id, request_id FROM orders WHERE id = '$mixed')
        WHERE id = '$paid'"""),
    ("an order is doubled", "order-once", "$",
        """ALTER TABLE orders DROP CONSTRAINT orders_one_per_request;
        INSERT INTO orders SELECT (jsonb_populate_record(o, '{"id": "00000000-0000-7000-8000-000000000001"}')).*
        FROM orders o WHERE id = '$failed'"""),
    ("the guard against two orders of one request is gone", "orders-constraints", "orders",
        "ALTER TABLE orders DROP CONSTRAINT orders_one_per_request"),
    ("a total that is not the sum of its lines", "order-total", "$failed",
        "UPDATE orders SET total_minor = total_minor + 1 WHERE id = '$failed'"),
    ("a total in another currency", "order-total", "$paid", "UPDATE orders SET currency = 'EUR' WHERE id = '$paid'"),
    ("an order that was free has a price", "payment-of-paid-order", "$free",
        """UPDATE orders SET total_minor = 500, lines = jsonb_set(lines, '{0,unit_price,minor}', '500')
        WHERE id = '$free'"""),
    ("a line with another price", "order-total", "$mixed",
        "UPDATE orders SET lines = jsonb_set(lines, '{0,unit_price,minor}', '1') WHERE id = '$mixed'"),
    ("a flash line at another price than its sale's", "order-sale-price", "$paid",
        """UPDATE orders SET lines = jsonb_set(lines, '{0,unit_price,minor}', '500'), total_minor = 1000
        WHERE id = '$paid'"""),
    ("an order for other lines than its reservation", "order-reservation", "$failed",
        """UPDATE orders SET lines = jsonb_set(lines, '{0,quantity}', '2'), total_minor = 2 * total_minor
        WHERE id = '$failed'"""),
    ("an order of another customer", "order-reservation", "$expired",
        "UPDATE orders SET customer_id = '$paid_buyer' WHERE id = '$expired'"),
    ("an order of an unknown customer", "order-customer", "00000000-0000-7000-8000-000000000002",
        "UPDATE orders SET customer_id = '00000000-0000-7000-8000-000000000002' WHERE id = '$expired'"),
    ("an order's refunded amount is too small", "order-refunded", "$refunded",
        "UPDATE orders SET refunded_minor = 0, state = 'PAID' WHERE id = '$refunded'"),
    ("an order's refunded amount is too large", "order-refunded", "$partly",
        "UPDATE orders SET refunded_minor = refunded_minor + 1 WHERE id = '$partly'"),
    ("a refund in an order that was never charged", "order-refunded", "$abandoned",
        "UPDATE orders SET refunded_minor = 1 WHERE id = '$abandoned'"),
    ("refunded in full, but only in part by amount", "order-state", "$refunded",
        "UPDATE orders SET refunded_minor = 5 WHERE id = '$refunded'"),
    ("an unknown state", "order-state", "$failed", "UPDATE orders SET state = 'LOST' WHERE id = '$failed'"),
    ("a shipped order without a shipment", "order-state", "$shipped",
        "UPDATE orders SET shipment = NULL WHERE id = '$shipped'"),
    ("a delivered order that never arrived", "order-state", "$delivered",
        "UPDATE orders SET shipment = shipment - 'deliver_time' WHERE id = '$delivered'"),
    ("the copy of a payment has another state", "order-payment-copy", "$paid",
        """UPDATE orders SET payment = jsonb_set(payment, '{state}', '"PROCESSING"') WHERE id = '$paid'"""),
    ("the copy of a payment is of another payment", "order-payment-copy", "$paid",
        "UPDATE orders SET payment = (SELECT payment FROM orders WHERE id = '$mixed') WHERE id = '$paid'"),
    ("the copy of a payment is lost", "order-payment-copy", "$shipped",
        "UPDATE orders SET payment = NULL WHERE id = '$shipped'"),
    ("a failed order that says that it was charged", "order-payment-copy", "$failed",
        """UPDATE orders SET payment = jsonb_set(payment, '{state}', '"SUCCEEDED"') WHERE id = '$failed'"""),
    ("an order counts as disputed", "order-disputed", "$paid", "UPDATE orders SET disputed = true WHERE id = '$paid'"),
    ("the copy of a payment names another provider", "order-payment-copy", "$paid",
        """UPDATE orders SET payment = jsonb_set(payment, '{provider}', '"other"') WHERE id = '$paid'"""),
    ("a return that its order does not count", "order-returned", "$partly",
        "UPDATE orders SET returned = '{}' WHERE id = '$partly'"),
    ("a paid order counts as failed", "order-without-money", "$paid",
        "UPDATE orders SET state = 'FAILED' WHERE id = '$paid'"),
    ("a failed order counts as paid", "payment-of-paid-order", "$failed",
        "UPDATE orders SET state = 'PAID', state_reason = '' WHERE id = '$failed'"),
    ("a paid order counts as pending", "saga-of-order", "$paid",
        "UPDATE orders SET state = 'PENDING' WHERE id = '$paid'"),
    ("an order is not in the list of its product", "order-products", "$paid",
        "DELETE FROM order_products WHERE order_id = '$paid'"),
    ("an order is in the list of another product", "order-products", "$paid",
        "UPDATE order_products SET product_id = '$clock' WHERE order_id = '$paid'"),
    ("an order of an unknown product", "order-product", "00000000-0000-7000-8000-000000000003",
        """UPDATE orders SET lines = jsonb_set(lines, '{0,product_id}', '"00000000-0000-7000-8000-000000000003"')
        WHERE id = '$failed'"""),
    ("a request id points nowhere", "orders-requests", "$shipped",
        "DELETE FROM orders WHERE id = '$shipped'"),
    ("the next partition of the log is missing", "orders-partitions", "orders",
        """DO $$$$ BEGIN EXECUTE format('DROP TABLE %I',
            'order_log_' || to_char(now() AT TIME ZONE 'UTC' + interval '1 month', 'YYYY_MM')); END $$$$"""),
    ("an event is stuck in the outbox for an hour", "outbox", "orders",
        """INSERT INTO outbox (event_id, subject, key, payload, create_time)
        VALUES (gen_random_uuid(), 's', 'k', '', now() - interval '1 hour')"""),
)  # fmt: skip

INVENTORY = corruptions(
    "inventory",
    ("stock on hand is one too many", "stock-counters", "$clock",
        "UPDATE stock SET on_hand = on_hand + 1 WHERE product_id = '$clock'"),
    ("stock on hand is one too few", "stock-counters", "$clock",
        "UPDATE stock SET on_hand = on_hand - 1 WHERE product_id = '$clock'"),
    ("stock held is one too many", "stock-counters", "$clock",
        "UPDATE stock SET held = held + 1 WHERE product_id = '$clock'"),
    ("stock held is one too few", "stock-counters", "$clock",
        "UPDATE stock SET held = held - 1 WHERE product_id = '$clock'"),
    ("a stock is lost", "stock-counters", "$clock", "DELETE FROM stock WHERE product_id = '$clock'"),
    ("a sale holds one too many", "sale-counters", "$sale",
        "UPDATE flash_sales SET held = held + 1 WHERE id = '$sale'"),
    ("a sale holds one too few", "sale-counters", "$sale",
        "UPDATE flash_sales SET held = held - 1 WHERE id = '$sale'"),
    ("a sale sold one too many", "sale-counters", "$sale",
        "UPDATE flash_sales SET sold = sold + 1 WHERE id = '$sale'"),
    ("a sale sold one too few", "sale-counters", "$sale",
        "UPDATE flash_sales SET sold = sold - 1 WHERE id = '$sale'"),
    ("a sale gave back one too many", "sale-closed", "$sale",
        "UPDATE flash_sales SET returned = returned + 1 WHERE id = '$sale'"),
    ("a closed sale gave back one too few", "sale-closed", "$closed",
        "UPDATE flash_sales SET returned = returned - 1 WHERE id = '$closed'"),
    ("an allocation is one too many", "sale-ledger", "$sale",
        "UPDATE flash_sales SET allocation = allocation + 1 WHERE id = '$sale'"),
    ("an allocation is one too few", "sale-ledger", "$scheduled",
        "UPDATE flash_sales SET allocation = allocation - 1 WHERE id = '$scheduled'"),
    ("a sale is oversold", "sale-counters", "$sale",
        """ALTER TABLE flash_sales DROP CONSTRAINT flash_sales_never_oversold;
        UPDATE flash_sales SET sold = allocation + 1 WHERE id = '$sale'"""),
    ("a sale is lost", "sale-counters", "$sale", "DELETE FROM flash_sales WHERE id = '$sale'"),
    ("a sale that is over is not closed", "sale-closed", "$brief",
        """UPDATE flash_sales SET start_time = now() - interval '3 hours', end_time = now() - interval '2 hours'
        WHERE id = '$brief'"""),
    ("a sale was closed and kept its units", "sale-closed", "$sale",
        "UPDATE flash_sales SET closed_as = 'ENDED' WHERE id = '$sale'"),
    ("a closed sale is open again", "sale-closed", "$closed",
        "UPDATE flash_sales SET closed_as = NULL WHERE id = '$closed'"),
    ("two sales of a product at a time", "sale-overlap", "$sale",
        "UPDATE flash_sales SET product_id = '$bell' WHERE id = '$brief'"),
    ("a sale at a negative price", "sale-terms", "$brief",
        """ALTER TABLE flash_sales DROP CONSTRAINT flash_sales_price_not_negative;
        UPDATE flash_sales SET price_minor = -1 WHERE id = '$brief'"""),
    ("a sale in an impossible currency", "sale-terms", "$brief",
        "UPDATE flash_sales SET currency = 'dollars' WHERE id = '$brief'"),
    ("a sale in another currency than its product", "sale-currency", "$scheduled",
        "UPDATE flash_sales SET currency = 'JPY' WHERE id = '$scheduled'"),
    ("a sale that ends before it begins", "sale-terms", "$scheduled",
        """ALTER TABLE flash_sales DROP CONSTRAINT flash_sales_end_after_start;
        UPDATE flash_sales SET end_time = start_time - interval '1 hour' WHERE id = '$scheduled'"""),
    ("a sale without a hold time", "sale-terms", "$brief",
        "UPDATE flash_sales SET hold_seconds = 0 WHERE id = '$brief'"),
    ("the price of a sale changed after it sold", "reservation-lines", "$paid",
        "UPDATE flash_sales SET price_minor = 1 WHERE id = '$sale'"),
    ("a movement is missing", "movement-of-order", "$shipped",
        "DELETE FROM stock_movements WHERE reference_id = '$shipped'"),
    ("a movement is doubled", "movement-of-order", "$shipped",
        """INSERT INTO stock_movements (product_id, delta, kind, reference_id)
        SELECT product_id, delta, kind, reference_id FROM stock_movements WHERE reference_id = '$shipped'"""),
    ("a movement of an adjustment is missing", "stock-counters", "$clock",
        "DELETE FROM stock_movements WHERE product_id = '$clock' AND kind = 'ADJUSTED'"),
    ("a ledger row names another reservation", "movement-of-order", "$shipped",
        "UPDATE stock_movements SET reference_id = '$failed' WHERE reference_id = '$shipped'"),
    ("a ledger row names another product", "movement-of-order", "$shipped",
        "UPDATE stock_movements SET product_id = '$bell' WHERE reference_id = '$shipped'"),
    ("a ledger row of another kind", "movement-of-order", "$shipped",
        "UPDATE stock_movements SET kind = 'ADJUSTED' WHERE reference_id = '$shipped'"),
    ("a ledger row of an unknown kind", "movement-kind", "$clock",
        "UPDATE stock_movements SET kind = 'STOLEN' WHERE product_id = '$clock' AND kind = 'ADJUSTED'"),
    ("an allocation in the ledger names no sale", "movement-kind", "$bell",
        "UPDATE stock_movements SET reference_id = '$paid' WHERE reference_id = '$sale'"),
    ("a restock is missing in the ledger", "movement-of-order", "$partly",
        "DELETE FROM stock_movements WHERE reference_id = '$partly' AND kind = 'RESTOCKED'"),
    ("a paid order without a confirmed reservation", "order-units", "$paid",
        "UPDATE reservations SET state = 'RELEASED' WHERE id = '$paid'"),
    ("a confirmed reservation without a paid order", "order-without-money", "$failed",
        "UPDATE reservations SET state = 'CONFIRMED' WHERE id = '$failed'"),
    ("an ended order that still holds units", "order-without-money", "$abandoned",
        "UPDATE reservations SET state = 'HELD' WHERE id = '$abandoned'"),
    ("a paid order's reservation is lost", "order-reservation", "$mixed",
        "DELETE FROM reservations WHERE id = '$mixed'"),
    ("a failed order's reservation is lost", "order-reservation", "$failed",
        "DELETE FROM reservations WHERE id = '$failed'"),
    ("a reservation for other lines", "order-reservation", "$paid",
        "UPDATE reservations SET lines = jsonb_set(lines, '{0,quantity}', '3') WHERE id = '$paid'"),
    ("a reservation at another price than its sale's", "reservation-lines", "$paid",
        "UPDATE reservations SET lines = jsonb_set(lines, '{0,price_minor}', '1') WHERE id = '$paid'"),
    ("a reservation of another customer", "order-reservation", "$pending",
        "UPDATE reservations SET customer_id = '$paid_buyer' WHERE id = '$pending'"),
    ("a reservation in the list of another sale", "reservation-lines", "$paid",
        "UPDATE reservations SET sale_id = '$brief' WHERE id = '$paid'"),
    ("a reservation in an unknown state", "hold-length", "$failed",
        "UPDATE reservations SET state = 'LOST' WHERE id = '$failed'"),
    ("a hold far past its end", "hold-overdue", "$pending",
        """UPDATE reservations SET expire_time = now() - interval '2 hours', create_time = now() - interval '3 hours'
        WHERE id = '$pending'"""),
    ("a hold that never ends", "hold-length", "$pending",
        "UPDATE reservations SET expire_time = 'infinity' WHERE id = '$pending'"),
    ("a hold that counts other units than its lines", "reservation-lines", "$pending",
        "UPDATE reservations SET units = 7 WHERE id = '$pending'"),
    ("two open holds of a customer in one slot", "hold-slot", "$",
        """DROP INDEX reservations_slot;
        INSERT INTO reservations (id, customer_id, state, lines, expire_time, slot)
        SELECT '00000000-0000-7000-8000-000000000009', customer_id, state, lines, expire_time, coalesce(slot, 1)
        FROM reservations WHERE id = '$pending';
        UPDATE reservations SET slot = coalesce(slot, 1) WHERE id = '$pending'"""),
    ("more abandoned holds than have ended", "abandoned-holds", "$brief",
        "UPDATE abandoned_holds SET holds = 9 WHERE sale_id = '$brief'"),
    ("an abandoned hold of a customer who held nothing", "abandoned-holds", "$sale",
        "INSERT INTO abandoned_holds (sale_id, customer_id, holds) VALUES ('$sale', '$expired_buyer', 1)"),
    ("a hold without an order, long over", "order-lost", "00000000-0000-7000-8000-000000000004",
        """INSERT INTO reservations (id, customer_id, state, lines, expire_time)
        SELECT '00000000-0000-7000-8000-000000000004', customer_id, 'HELD', lines, now() - interval '1 hour'
        FROM reservations WHERE id = '$failed'"""),
    ("a return is lost", "stock-counters", "$clock",
        "DELETE FROM returns WHERE reservation_id = '$partly'"),
    ("a return is doubled", "movement-of-order", "$partly",
        """INSERT INTO returns (id, reservation_id, asked, lines)
        SELECT gen_random_uuid(), reservation_id, asked, lines FROM returns WHERE reservation_id = '$partly'"""),
    ("more units came back than were sold", "order-returns", "$partly",
        "UPDATE returns SET lines = jsonb_set(lines, '{0,quantity}', '9') WHERE reservation_id = '$partly'"),
    ("other units came back than were asked for", "return-lines", "$partly",
        "UPDATE returns SET lines = jsonb_set(lines, '{0,quantity}', '2') WHERE reservation_id = '$partly'"),
    ("units came back to an order that has none", "return-lines", "$failed",
        "UPDATE returns SET reservation_id = '$failed' WHERE reservation_id = '$partly'"),
    ("units came back without a refund", "return-without-refund", "$shipped",
        """INSERT INTO returns (id, reservation_id, asked, lines)
        SELECT gen_random_uuid(), id, '{}', lines FROM reservations WHERE id = '$shipped'"""),
    ("a customer is counted once too often", "customer-units", "$sale",
        "UPDATE sale_customers SET units = units + 1 WHERE sale_id = '$sale' AND customer_id = '$paid_buyer'"),
    ("a customer is not counted", "customer-units", "$sale",
        "DELETE FROM sale_customers WHERE sale_id = '$sale' AND customer_id = '$paid_buyer'"),
    ("a customer is counted in another sale", "sale-customers", "$brief",
        "UPDATE sale_customers SET sale_id = '$brief' WHERE customer_id = '$paid_buyer'"),
    ("a customer is over the limit after the terms changed", "customer-limit", "$sale",
        "UPDATE flash_sales SET per_customer_limit = 1, version = version + 1 WHERE id = '$sale'"),
    ("a customer is over the limit by late money", "customer-limit", "$sale",
        """UPDATE reservations SET state = 'CONFIRMED', update_time = expire_time + interval '1 second',
            customer_id = '$paid_buyer' WHERE id IN ('$cancelled', '$mixed', '$pending');
        UPDATE sale_customers SET units = 5 WHERE sale_id = '$sale' AND customer_id = '$paid_buyer'"""),
    ("a limit that nobody is counted for", "customer-units", "$brief",
        """UPDATE flash_sales SET per_customer_limit = 1 WHERE id = '$brief';
        UPDATE reservations SET state = 'HELD' WHERE id = '$expired'"""),
    ("the guard against overselling is gone", "inventory-constraints", "inventory",
        "ALTER TABLE flash_sales DROP CONSTRAINT flash_sales_never_oversold"),
    ("a request id points to no sale", "inventory-requests", "$scheduled",
        "DELETE FROM flash_sales WHERE id = '$scheduled'"),
    ("units moved without an entry in ledger and counters", "units", "$clock",
        """UPDATE stock_movements SET delta = delta + 1 WHERE product_id = '$clock' AND kind = 'ADJUSTED'"""),
)  # fmt: skip
