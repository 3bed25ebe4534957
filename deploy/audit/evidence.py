"""Reads every row about one id, in all databases and at the provider, for people who must decide."""

import json
from collections.abc import Iterator

from deploy.audit.reading import provider
from deploy.audit.reading.sources import Sources

_MOST = 100
_HIDDEN = "{client_secret,payment_method,shipping_address,password_hash,sealed_private_key,digest,hash,search}"
_ROWS = {
    "catalog": {"products": "t.id = :id"},
    "identity": {"users": "t.id = :id", "sessions": ":id IN (t.id, t.user_id)"},
    "inventory": {
        "stock": "t.product_id = :id", "flash_sales": ":id IN (t.id, t.product_id)", "reservations": "t.id = :id",
        "returns": ":id IN (t.id, t.reservation_id)", "stock_movements": ":id IN (t.product_id, t.reference_id)",
        "sale_customers": "t.sale_id = :id",
    },
    "orders": {
        "orders": "t.id = :id", "sagas": "t.order_id = :id", "order_products": "t.order_id = :id",
        "order_log": "t.order_id = :id",
    },
    "payments": {
        "payments": ":id IN (t.id, t.order_id)",
        "refunds": "t.payment_id IN (SELECT id FROM payments WHERE :id IN (id, order_id)) OR t.id = :id",
        "journal_entries": "t.payment_id IN (SELECT id FROM payments WHERE :id IN (id, order_id))",
        "provider_events": "t.payload->>'payment_id' IN (SELECT id::text FROM payments WHERE :id IN (id, order_id))",
    },
}  # fmt: skip


def rows_about(sources: Sources, id_: str) -> Iterator[str]:
    """The rows, without secrets and addresses, as lines of JSON."""
    with sources.connections() as connections:
        for service, tables in _ROWS.items():
            for table, condition in tables.items():
                where = condition.replace(":id", "%(id)s::uuid")
                query = (
                    f"SELECT to_jsonb(t) - '{_HIDDEN}'::text[] FROM {table} t"
                    f" WHERE {where} ORDER BY t::text LIMIT {_MOST}"
                )
                for (row,) in connections[service].execute(query, {"id": id_}):
                    yield f"{service}.{table}  {json.dumps(row, sort_keys=True)}"
    if sources.ledger_url:
        with provider.intents(sources.ledger_url) as intents:
            yield from (f"provider  {intent}" for intent in intents if id_ in (intent.order_id, intent.payment_id))
