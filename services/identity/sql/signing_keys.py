"""The table `signing_keys`."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from services.identity.sql.schema import SigningKey

# The number is arbitrary. Replicas that rotate keys concurrently wait for this lock.
_LOCK = 727_010


async def lock_keys(tx: AsyncSession) -> datetime:
    """Lock key rotation for the transaction. Return the database's time after the wait for the lock."""
    await tx.execute(select(func.pg_advisory_xact_lock(_LOCK)))
    now: datetime = (await tx.execute(select(func.clock_timestamp()))).scalar_one()
    return now


async def list_keys(tx: AsyncSession) -> Sequence[SigningKey]:
    """Return all keys, the newest last."""
    return (await tx.scalars(select(SigningKey).order_by(SigningKey.sign_from))).all()


async def insert_key(tx: AsyncSession, key: SigningKey, *, retire_others: datetime) -> None:
    """Insert `key` and set when its predecessors retire."""
    current = SigningKey.retire_time.is_(None)
    await tx.execute(update(SigningKey).where(current).values(retire_time=retire_others))
    tx.add(key)


async def delete_retired_keys(tx: AsyncSession, now: datetime) -> None:
    await tx.execute(delete(SigningKey).where(SigningKey.retire_time < now))


async def delete_others(tx: AsyncSession, kid: str) -> None:
    """Delete all keys but this one."""
    await tx.execute(delete(SigningKey).where(SigningKey.kid != kid))
