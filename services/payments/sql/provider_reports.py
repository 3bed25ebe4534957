"""The table `provider_reports`, and what a comparison with the provider's charges reads."""

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import text

from services.chassis.data.db import Database, run_autocommit


class Booked(NamedTuple):
    """A payment as a comparison needs it. The sums are of refunds that the provider makes."""

    id: uuid.UUID
    order_id: uuid.UUID
    state: str
    provider_reference: str | None
    capture_reference: str | None
    amount_minor: int
    currency: str
    returned_minor: int
    pending_minor: int
    stray_references: Sequence[str]
    """The money that arrived for it and that it does not count, as its refunds name it."""
    quiet_seconds: float
    """The time since its last change."""


_BOOKED = """
    SELECT p.id, p.order_id, p.state, p.provider_reference, p.capture_reference, p.amount_minor, p.currency,
        CAST(coalesce(r.returned, 0) AS bigint) AS returned_minor,
        CAST(coalesce(r.pending, 0) AS bigint) AS pending_minor, coalesce(r.stray, '{}') AS stray_references,
        CAST(extract(epoch FROM now() - p.update_time) AS double precision) AS quiet_seconds
    FROM payments AS p LEFT JOIN LATERAL (
        SELECT
            sum(amount_minor) FILTER (WHERE state = 'SUCCEEDED' AND settlement = 'PROVIDER' AND NOT stray) AS returned,
            sum(amount_minor) FILTER (WHERE state = 'PENDING' AND NOT stray) AS pending,
            array_agg(charge_reference) FILTER (WHERE stray) AS stray
        FROM refunds WHERE payment_id = p.id
    ) AS r ON true
"""
_NAMED = text(f"""{_BOOKED} WHERE p.provider = :provider
    AND (p.provider_reference = ANY(CAST(:references AS text[])) OR p.id = ANY(CAST(:ids AS uuid[])))""")
_CAPTURED = text(f"""{_BOOKED} WHERE p.provider = :provider AND p.state IN ('SUCCEEDED', 'REFUNDED')
    AND p.create_time >= :since AND p.create_time < :until AND p.amount_minor > 0
    AND (CAST(:after AS uuid) IS NULL OR p.id > :after) ORDER BY p.id LIMIT :most""")
_CLAIM = text("""
    INSERT INTO provider_reports AS r (provider, next_time) VALUES (:provider, now() + make_interval(secs => :pause))
    ON CONFLICT (provider) DO UPDATE SET next_time = excluded.next_time WHERE r.next_time <= now()
    RETURNING provider
""")
_FINISH = text("""
    UPDATE provider_reports SET done_time = now(), differences = :differences,
        next_time = now() + make_interval(secs => :pause)
    WHERE provider = :provider RETURNING provider
""")
_READ = text("""
    SELECT provider, differences, CAST(extract(epoch FROM now() - done_time) AS double precision) AS age_seconds
    FROM provider_reports WHERE done_time IS NOT NULL
""")


_NOW = text("SELECT now() AS now")


class Done(NamedTuple):
    """The last comparison with a provider."""

    provider: str
    differences: int
    age_seconds: float


async def read_named(
    db: Database, provider: str, *, references: Sequence[str], ids: Sequence[uuid.UUID]
) -> list[Booked]:
    """Return the payments that charges of the provider name."""
    arguments = {"provider": provider, "references": list(references), "ids": list(ids)}
    return [Booked(**row._mapping) for row in await run_autocommit(db, _NAMED, arguments)]


async def read_captured(
    db: Database, provider: str, *, since: datetime, until: datetime, after: uuid.UUID | None, most: int
) -> list[Booked]:
    """Return a page of the payments that were begun in a span and count money, in the order of their ids."""
    arguments = {"provider": provider, "since": since, "until": until, "after": after, "most": most}
    return [Booked(**row._mapping) for row in await run_autocommit(db, _CAPTURED, arguments)]


async def claim(db: Database, provider: str, *, pause: float) -> bool:
    """Claim the next comparison. It is due again after `pause` seconds if it is not finished."""
    return bool(await run_autocommit(db, _CLAIM, {"provider": provider, "pause": pause}))


async def finish(db: Database, provider: str, *, differences: int, pause: float) -> None:
    """Note that a comparison was made, with its result."""
    await run_autocommit(db, _FINISH, {"provider": provider, "differences": differences, "pause": pause})


async def read_now(db: Database) -> datetime:
    """Return the time by the clock that also stamps the payments."""
    time: datetime = (await run_autocommit(db, _NOW, {}))[0].now
    return time


async def read_done(db: Database) -> list[Done]:
    """Return the last comparison of each provider."""
    return [Done(**row._mapping) for row in await run_autocommit(db, _READ, {})]
