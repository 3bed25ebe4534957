"""Actions on accounts and sessions. Each function is one transaction, or two with a slow password hash between them."""

import uuid
from dataclasses import dataclass
from datetime import datetime

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis import ids
from services.chassis.data import idempotency
from services.chassis.data.db import Database
from services.chassis.request_context import RequestKey
from services.identity import domain, tokens
from services.identity.domain import EmailTaken, RefreshTokenRefused, WrongCredentials
from services.identity.passwords import Passwords
from services.identity.sql import sessions, users
from services.identity.sql.schema import Session, User
from services.identity.tokens import Keyring

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class TokenPair:
    """The current tokens of a session."""

    access_token: str
    refresh_token: str


async def register(
    db: Database, passwords: Passwords, *, email: str, password: str, display_name: str, key: RequestKey | None
) -> User:
    """Create a customer. A repeat of the request returns the user that the first call created.

    Raises `EmailTaken` or `RateLimited`.
    """
    email = domain.normalize_email(email)
    async with passwords.turn(email) as turn:
        password_hash = await turn.hash(password)
    async with db.begin() as tx:
        user_id = ids.new()
        if first := await idempotency.find_repeat(tx, key, user_id):
            return await users.get_user(tx, first)
        user = await users.insert_user(
            tx, id=user_id, email=email, password_hash=password_hash,
            display_name=display_name, roles=["customer"], email_verified=False,
        )  # fmt: skip
    passwords.remember(email)  # not where another user has the address
    return user


async def login(db: Database, passwords: Passwords, keyring: Keyring, *, email: str, password: str) -> TokenPair:
    """Start a session. Raises `WrongCredentials` or `RateLimited`."""
    email = domain.normalize_email(email)
    async with passwords.turn(email) as turn:
        async with db.begin() as tx:
            user = await users.find_user_by_email(tx, email)
        # An unknown address costs the same hash as a known one, so response times do not show which addresses exist.
        if not await turn.verify(password, user.password_hash if user else None) or user is None:
            raise WrongCredentials()
        new_hash = await turn.hash(password) if passwords.is_outdated(user.password_hash) else None
    passwords.remember(email)
    async with db.begin() as tx:
        if new_hash:
            await users.replace_password_hash(tx, user, new_hash)
        session = await sessions.insert_session(tx, ids.new(), user.id, seconds=keyring.lifetimes.session_seconds)
        return await _issue_tokens(tx, keyring, session, user, session.create_time)


async def refresh(db: Database, keyring: Keyring, *, refresh_token: str) -> TokenPair:
    """Exchange a refresh token for the next pair. Raises `RefreshTokenRefused`.

    A second use of a token also ends its session, because either the user or a thief holds a copy. This includes
    two concurrent calls with one token, so a client must not send a token twice.
    """
    digest = tokens.digest(refresh_token)
    pair = None
    async with db.begin() as tx:
        if used := await sessions.use_refresh_token(tx, digest):
            session_id, now = used
            if live := await sessions.find_live_session(tx, session_id):
                pair = await _issue_tokens(tx, keyring, *live, now)
        else:
            await sessions.revoke_session(tx, digest, only_if_used=True)
    # Raised after the commit: an error inside the transaction would roll back the end of the session.
    if pair is None:
        raise RefreshTokenRefused()
    return pair


async def logout(db: Database, *, refresh_token: str) -> None:
    """End the session of the token, if the token exists."""
    async with db.begin() as tx:
        await sessions.revoke_session(tx, tokens.digest(refresh_token), only_if_used=False)


async def get_user(db: Database, user_id: uuid.UUID) -> User:
    """Return the signed-in user. Raises `Unauthenticated` if the account of a valid token was deleted."""
    async with db.begin() as tx:
        return await users.get_user(tx, user_id)


async def ensure_first_admin(db: Database, passwords: Passwords, password: str | None) -> None:
    """Create the first administrator if the address is free and a password is given."""
    async with db.begin() as tx:
        if await users.find_user_by_email(tx, domain.FIRST_ADMIN):
            return
        if password is None:
            if not await users.has_admin(tx):
                log.warning("there is no administrator: set ADMIN_PASSWORD and restart identity")
            return
    async with passwords.turn(domain.FIRST_ADMIN) as turn:
        password_hash = await turn.hash(password)
    try:
        async with db.begin() as tx:
            admin = await users.insert_user(
                tx, id=ids.new(), email=domain.FIRST_ADMIN, password_hash=password_hash,
                display_name="Administrator", roles=["admin"], email_verified=True,
            )  # fmt: skip
    except EmailTaken:
        return  # another replica created the account meanwhile
    log.info("first administrator created", user_id=str(admin.id))


async def _issue_tokens(tx: AsyncSession, keyring: Keyring, session: Session, user: User, now: datetime) -> TokenPair:
    refresh_token = tokens.new_refresh_token()
    expire_time = domain.refresh_expire_time(now, session.expire_time, keyring.lifetimes)
    await sessions.insert_refresh_token(tx, tokens.digest(refresh_token), session.id, expire_time)
    access_token = keyring.sign(user_id=user.id, roles=user.roles, session_id=session.id, now=now)
    return TokenPair(access_token, refresh_token)
