"""The tables `sessions` and `refresh_tokens`."""

import uuid
from datetime import datetime, timedelta

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.data.cleanup import Cleanup
from services.identity.sql.schema import RefreshToken, Session, User

# Sessions go after their tokens, of which one can have 8,640: a statement that deleted those of many sessions with them
# would exceed its time limit, in every run.
CLEANUPS = (
    Cleanup(
        "refresh_tokens",
        """DELETE FROM refresh_tokens WHERE ctid = ANY(ARRAY(
            SELECT t.ctid FROM sessions s JOIN refresh_tokens t ON t.session_id = s.id
            WHERE s.expire_time < now() LIMIT :most))""",
    ),
    Cleanup(
        "sessions",
        """DELETE FROM sessions WHERE id IN (
            SELECT id FROM sessions s WHERE expire_time < now()
                AND NOT EXISTS (SELECT FROM refresh_tokens WHERE session_id = s.id) LIMIT :most)""",
        overdue="SELECT extract(epoch FROM now() - min(expire_time)) FROM sessions",
    ),
)


async def insert_session(tx: AsyncSession, session_id: uuid.UUID, user_id: uuid.UUID, *, seconds: int) -> Session:
    """Insert a session that expires after `seconds`."""
    values = {"id": session_id, "user_id": user_id, "expire_time": func.now() + timedelta(seconds=seconds)}
    return (await tx.scalars(insert(Session).values(values).returning(Session))).one()


async def find_live_session(tx: AsyncSession, session_id: uuid.UUID) -> tuple[Session, User] | None:
    """Return the session and its user; None if the session was revoked or has expired."""
    query = select(Session, User).join(User, User.id == Session.user_id)
    is_live = (Session.revoke_time.is_(None), Session.expire_time > func.now())
    return (await tx.execute(query.where(Session.id == session_id, *is_live))).one_or_none()


async def revoke_session(tx: AsyncSession, digest: bytes, *, only_if_used: bool) -> None:
    """Revoke the session of the refresh token with `digest`, if the token exists."""
    family = select(RefreshToken.session_id).where(RefreshToken.hash == digest)
    if only_if_used:
        family = family.where(RefreshToken.used_time.is_not(None))
    await tx.execute(
        update(Session)
        .where(Session.id.in_(family), Session.revoke_time.is_(None))
        .values(revoke_time=func.now())
        .execution_options(synchronize_session=False)
    )


async def revoke_all(tx: AsyncSession) -> int:
    """Revoke all sessions; return how many there were."""
    live = update(Session).where(Session.revoke_time.is_(None)).values(revoke_time=func.now()).returning(Session.id)
    return len((await tx.execute(live.execution_options(synchronize_session=False))).all())


async def insert_refresh_token(tx: AsyncSession, digest: bytes, session_id: uuid.UUID, expire_time: datetime) -> None:
    await tx.execute(insert(RefreshToken).values(hash=digest, session_id=session_id, expire_time=expire_time))


async def use_refresh_token(tx: AsyncSession, digest: bytes) -> tuple[uuid.UUID, datetime] | None:
    """Mark the token as used and return its session and the time; None if it is unknown, used or expired.

    One statement checks and marks, so concurrent calls cannot use one token twice.
    """
    is_usable = (RefreshToken.used_time.is_(None), RefreshToken.expire_time > func.now())
    use = update(RefreshToken).where(RefreshToken.hash == digest, *is_usable).values(used_time=func.now())
    return (await tx.execute(use.returning(RefreshToken.session_id, func.now()))).one_or_none()
