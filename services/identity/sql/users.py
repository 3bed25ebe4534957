"""The table `users`."""

import uuid
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.errors import Unauthenticated
from services.identity.domain import EmailTaken
from services.identity.sql.schema import EMAIL_KEY, User


async def insert_user(tx: AsyncSession, **values: Any) -> User:
    """Insert a row of these columns. Raises `EmailTaken`."""
    # Without a conflict clause, PostgreSQL would quote the address in its log.
    insertion = insert(User).values(**values).on_conflict_do_nothing(constraint=EMAIL_KEY).returning(User)
    if user := await tx.scalar(insertion):
        return user
    raise EmailTaken()


async def get_user(tx: AsyncSession, user_id: uuid.UUID) -> User:
    """Return the user. Raises `Unauthenticated` if the account was deleted."""
    if user := await tx.get(User, user_id):
        return user
    raise Unauthenticated()


async def find_user_by_email(tx: AsyncSession, email: str) -> User | None:
    user: User | None = await tx.scalar(select(User).where(User.email == email))
    return user


async def has_admin(tx: AsyncSession) -> bool:
    return await tx.scalar(select(User.id).where(User.roles.contains(["admin"])).limit(1)) is not None


async def replace_password_hash(tx: AsyncSession, user: User, password_hash: str) -> None:
    """Replace the hash of `user`, unless the password was changed since `user` was read."""
    unchanged = User.password_hash == user.password_hash
    await tx.execute(update(User).where(User.id == user.id, unchanged).values(password_hash=password_hash))
