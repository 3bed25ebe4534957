"""The tables `provider_customers` and `saved_methods`: customers at providers, and the cards that these keep."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis import ids
from services.chassis.data.db import Database, run_autocommit
from services.payments.providers.results import Card


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedMethod:
    """A card that a customer has agreed to save."""

    id: uuid.UUID
    customer_id: uuid.UUID
    provider: str
    card: Card
    create_time: datetime


_CUSTOMERS = text("SELECT provider, reference FROM provider_customers WHERE customer_id = :customer")
# A concurrent request may have been faster: the first one stays.
_INSERT_CUSTOMER = text("""
    INSERT INTO provider_customers (customer_id, provider, reference) VALUES (:customer, :provider, :reference)
    ON CONFLICT (customer_id, provider) DO UPDATE SET reference = provider_customers.reference RETURNING reference
""")
_COLUMNS = "id, customer_id, provider, reference, brand, last4, expire_month, expire_year, create_time"
_LIST = text(f"""
    SELECT {_COLUMNS} FROM saved_methods WHERE customer_id = :customer AND remove_time IS NULL AND id < :before
    ORDER BY id DESC LIMIT :most
""")  # noqa: S608  # columns of our own
_READ = text(f"""
    SELECT {_COLUMNS} FROM saved_methods WHERE customer_id = :customer AND id = :id AND remove_time IS NULL
""")  # noqa: S608
# Cards that were removed here stay removed, also while the provider has not heard of it.
_PUT = text("""
    INSERT INTO saved_methods (id, customer_id, provider, reference, brand, last4, expire_month, expire_year)
    SELECT n.id, :customer, :provider, n.reference, n.brand, n.last4, n.expire_month, n.expire_year
    FROM unnest(CAST(:ids AS uuid[]), CAST(:references AS text[]), CAST(:brands AS text[]), CAST(:last4s AS text[]),
        CAST(:months AS integer[]), CAST(:years AS integer[]))
        AS n (id, reference, brand, last4, expire_month, expire_year)
    ORDER BY n.reference
    ON CONFLICT (provider, reference) DO UPDATE SET brand = excluded.brand, last4 = excluded.last4,
        expire_month = excluded.expire_month, expire_year = excluded.expire_year, update_time = now()
    WHERE (saved_methods.brand, saved_methods.last4, saved_methods.expire_month, saved_methods.expire_year)
        IS DISTINCT FROM (excluded.brand, excluded.last4, excluded.expire_month, excluded.expire_year)
""")
# Cards that are gone at the provider.
_DROP = text("""
    UPDATE saved_methods SET remove_time = now(), detach_time = now(), update_time = now()
    WHERE customer_id = :customer AND provider = :provider AND remove_time IS NULL
        AND NOT (reference = ANY(CAST(:references AS text[])))
""")
_REMOVE = text("""
    UPDATE saved_methods SET remove_time = coalesce(remove_time, now()), update_time = now()
    WHERE customer_id = :customer AND id = :id RETURNING provider, reference, detach_time IS NOT NULL AS is_detached
""")
_PENDING = text("""
    SELECT provider, reference FROM saved_methods WHERE remove_time IS NOT NULL AND detach_time IS NULL
    ORDER BY remove_time LIMIT :most
""")
_DETACHED = text("""
    UPDATE saved_methods SET detach_time = now(), update_time = now()
    WHERE provider = :provider AND reference = :reference AND detach_time IS NULL
""")


async def customers(db: Database, customer_id: uuid.UUID) -> dict[str, str]:
    """Return the customer's ids at providers, by provider."""
    return {row.provider: row.reference for row in await run_autocommit(db, _CUSTOMERS, {"customer": customer_id})}


async def insert_customer(db: Database, customer_id: uuid.UUID, provider: str, reference: str) -> str:
    """Store a customer's id at a provider; return the one that counts, which never changes."""
    arguments = {"customer": customer_id, "provider": provider, "reference": reference}
    async with db.begin() as tx:
        return str((await tx.execute(_INSERT_CUSTOMER, arguments)).scalar_one())


async def page(db: Database, customer_id: uuid.UUID, *, before: uuid.UUID, most: int) -> list[SavedMethod]:
    """Return saved methods of a customer with ids before `before`, newest first."""
    arguments = {"customer": customer_id, "before": before, "most": most}
    return [_method(row) for row in await run_autocommit(db, _LIST, arguments)]


async def read(db: Database, customer_id: uuid.UUID, method_id: uuid.UUID) -> SavedMethod | None:
    """Return a saved method of a customer; None if there is none, or no longer."""
    rows = await run_autocommit(db, _READ, {"customer": customer_id, "id": method_id})
    return _method(rows[0]) if rows else None


async def put(tx: AsyncSession, customer_id: uuid.UUID, provider: str, cards: Sequence[Card]) -> None:
    """Store the cards that a provider keeps for a customer, newest first, and drop those that it does not."""
    oldest_first = list(reversed(cards))
    arguments = {
        "customer": customer_id, "provider": provider, "ids": [ids.new() for _ in oldest_first],
        "references": [card.reference for card in oldest_first], "brands": [card.brand for card in oldest_first],
        "last4s": [card.last4 for card in oldest_first], "months": [card.expire_month for card in oldest_first],
        "years": [card.expire_year for card in oldest_first],
    }  # fmt: skip
    await tx.execute(_PUT, arguments)
    await tx.execute(_DROP, {name: arguments[name] for name in ("customer", "provider", "references")})


async def remove(db: Database, customer_id: uuid.UUID, method_id: uuid.UUID) -> tuple[str, str] | None:
    """Remove a method here. Return its provider and reference there, both empty if the provider knows.

    None if the customer has no such method.
    """
    rows = await run_autocommit(db, _REMOVE, {"customer": customer_id, "id": method_id})
    if not rows:
        return None
    return ("", "") if rows[0].is_detached else (rows[0].provider, rows[0].reference)


async def pending(db: Database, *, most: int) -> list[tuple[str, str]]:
    """Return removed methods of which the provider does not know yet, as providers and references."""
    return [(row.provider, row.reference) for row in await run_autocommit(db, _PENDING, {"most": most})]


async def mark_detached(db: Database, provider: str, reference: str) -> None:
    """Note that the provider has removed a card."""
    async with db.begin() as tx:
        await tx.execute(_DETACHED, {"provider": provider, "reference": reference})


def _method(row: Any) -> SavedMethod:
    card = Card(
        reference=row.reference, brand=row.brand, last4=row.last4, expire_month=row.expire_month,
        expire_year=row.expire_year,
    )  # fmt: skip
    return SavedMethod(
        id=row.id, customer_id=row.customer_id, provider=row.provider, card=card, create_time=row.create_time
    )
