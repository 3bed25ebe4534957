"""What identity can do; each function is one transaction, or two with a password's slow hash between them."""

import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis import ids
from services.chassis.data import idempotency
from services.chassis.data.db import Database, violated
from services.chassis.errors import Unauthenticated
from services.chassis.request_context import RequestKey
from services.identity import domain, tokens
from services.identity.domain import EmailTaken, Lifetimes, RefreshTokenRefused, WrongCredentials
from services.identity.passwords import Passwords
from services.identity.tables import EMAIL_KEY, RefreshToken, Session, SigningKey, User
from services.identity.tokens import Key, Keyring, Vault

log = structlog.get_logger()

# Any constant will do; replicas that look after the keys at the same time queue on it.
_KEYS_LOCK = 727_010
_SWEEP_MOST = 5_000


@dataclass(frozen=True, slots=True)
class Pair:
    """A session's current tokens."""

    access_token: str
    refresh_token: str


@dataclass(frozen=True, slots=True)
class Signer:
    """What it takes to give out tokens."""

    keyring: Keyring
    lifetimes: Lifetimes


async def register(
    db: Database, passwords: Passwords, *, email: str, password: str, display_name: str, key: RequestKey | None
) -> User:
    """The new customer; for a repeat, the one made the first time. Raises `EmailTaken` or `RateLimited`."""
    password_hash = await passwords.hash(password)
    try:
        async with db.begin() as tx:
            user_id = ids.new()
            if first := await idempotency.repeated(tx, key, user_id):
                return await tx.get_one(User, first)
            return (
                await tx.scalars(
                    insert(User)
                    .values(
                        id=user_id, email=domain.address(email), password_hash=password_hash,
                        display_name=display_name, roles=["customer"], email_verified=False,
                    )
                    .returning(User)
                )
            ).one()  # fmt: skip
    except IntegrityError as error:
        if violated(error) == EMAIL_KEY:
            raise EmailTaken() from error
        raise


async def login(db: Database, passwords: Passwords, signer: Signer, *, email: str, password: str) -> Pair:
    """The tokens of a new session. Raises `WrongCredentials` or `RateLimited`."""
    async with db.begin() as tx:
        user = await tx.scalar(select(User).where(User.email == domain.address(email)))
    # Also for an unknown address: the time an answer takes must not tell who has an account.
    if not await passwords.verify(password, user.password_hash if user else None) or user is None:
        raise WrongCredentials()
    renewed = await passwords.hash(password) if passwords.outdated(user.password_hash) else None
    async with db.begin() as tx:
        if renewed:
            # Not over a password that was changed meanwhile.
            unchanged = User.password_hash == user.password_hash
            await tx.execute(update(User).where(User.id == user.id, unchanged).values(password_hash=renewed))
        ends = func.now() + timedelta(seconds=signer.lifetimes.session_seconds)
        session = (
            await tx.scalars(insert(Session).values(id=ids.new(), user_id=user.id, expire_time=ends).returning(Session))
        ).one()
        return await _next_pair(tx, signer, user, session, session.create_time)


async def refresh(db: Database, signer: Signer, *, refresh_token: str) -> Pair:
    """The session's next tokens. Raises `RefreshTokenRefused`; for a token that was used before, also ends the session.

    Of two calls with one token at the same time, one gets the next pair and the other is taken for a thief's, so the
    session ends. Which of them is the user's cannot be known; a client must not send the same token twice.
    """
    digest = tokens.digest(refresh_token)
    async with db.begin() as tx:
        # One statement looks and takes, so that a token cannot be used twice.
        taken = (
            await tx.execute(
                update(RefreshToken)
                .where(
                    RefreshToken.hash == digest,
                    RefreshToken.used_time.is_(None),
                    RefreshToken.expire_time > func.now(),
                )
                .values(used_time=func.now())
                .returning(RefreshToken.session_id, RefreshToken.used_time)
            )
        ).one_or_none()
        if taken:
            pair = await _continued(tx, signer, taken.session_id, taken.used_time)
        else:
            pair = None
            await _revoke(tx, digest, only_if_used=True)
    # After the transaction, for the end of the session must stay although the call fails.
    if pair is None:
        raise RefreshTokenRefused()
    return pair


async def logout(db: Database, *, refresh_token: str) -> None:
    """Ends the token's session, if there is one."""
    async with db.begin() as tx:
        await _revoke(tx, tokens.digest(refresh_token), only_if_used=False)


async def get_user(db: Database, user_id: uuid.UUID) -> User:
    """The signed-in user. Raises `Unauthenticated` where the account is gone and only its token is left."""
    async with db.begin() as tx:
        user = await tx.get(User, user_id)
    if user is None:
        raise Unauthenticated()
    return user


async def ensure_first_admin(db: Database, passwords: Passwords, password: str | None) -> None:
    """Creates the first administrator, where the address is free and a password is given."""
    async with db.begin() as tx:
        known = await tx.scalar(select(User.id).where(User.email == domain.FIRST_ADMIN))
        administrator = await tx.scalar(select(User.id).where(User.roles.contains(["admin"])).limit(1))
    if known:
        return
    if password is None:
        if administrator is None:
            log.warning("nobody is administrator: set ADMIN_PASSWORD and start identity again")
        return
    password_hash = await passwords.hash(password)
    async with db.begin() as tx:
        made = await tx.scalar(
            insert(User)
            .values(
                id=ids.new(), email=domain.FIRST_ADMIN, password_hash=password_hash, display_name="Administrator",
                roles=["admin"], email_verified=True,
            )
            .on_conflict_do_nothing(constraint=EMAIL_KEY)
            .returning(User.id)
        )  # fmt: skip
    if made:
        log.info("first administrator created", user_id=str(made))


async def rotate_keys(db: Database, vault: Vault, lifetimes: Lifetimes) -> None:
    """Makes the next signing key when it is time, and forgets those whose last token has expired.

    Raises `WrongSecret`, and makes nothing, where `vault` does not open the current key.
    """
    async with db.begin() as tx:
        await tx.execute(select(func.pg_advisory_xact_lock(_KEYS_LOCK)))
        now = await _clock(tx)
        newest = await tx.scalar(select(SigningKey).order_by(SigningKey.sign_from.desc()).limit(1))
        sign_from = domain.next_key_signs_from(newest.sign_from if newest else None, now, lifetimes)
        if sign_from:
            if newest:
                vault.unseal(newest.sealed_private_key)  # with another secret, nobody else could open the new key
            made = tokens.new_key(sign_from)
            await tx.execute(
                update(SigningKey)
                .where(SigningKey.retire_time.is_(None))
                .values(retire_time=domain.retire_time(sign_from, lifetimes))
            )
            tx.add(
                SigningKey(
                    kid=made.kid,
                    public_jwk=made.public_jwk,
                    sealed_private_key=vault.seal(made.private_key),
                    sign_from=sign_from,
                )
            )
            log.info("signing key made", kid=made.kid, sign_from=sign_from.isoformat())
        await tx.execute(delete(SigningKey).where(SigningKey.retire_time < now))


async def load_keys(db: Database, vault: Vault, keyring: Keyring) -> None:
    """Brings the memory of this process up to date with the database."""
    async with db.begin() as tx:
        rows = (await tx.scalars(select(SigningKey).order_by(SigningKey.sign_from))).all()
    keyring.hold([Key(row.kid, row.sign_from, row.public_jwk, vault.unseal(row.sealed_private_key)) for row in rows])


async def sweep_sessions(db: Database) -> int:
    """Forgets some sessions that have expired, with their tokens; returns how many."""
    async with db.begin() as tx:
        expired = select(Session.id).where(Session.expire_time < func.now()).limit(_SWEEP_MOST)
        gone = await tx.scalars(delete(Session).where(Session.id.in_(expired)).returning(Session.id))
        return len(gone.all())


async def _clock(tx: AsyncSession) -> datetime:
    """The database's time at this moment, not at the transaction's start: locks may have been waited for."""
    now: datetime = (await tx.execute(select(func.clock_timestamp()))).scalar_one()
    return now


async def _continued(tx: AsyncSession, signer: Signer, session_id: uuid.UUID, now: datetime) -> Pair | None:
    """The next pair of a session; None where it has ended."""
    found = (
        await tx.execute(
            select(Session, User)
            .join(User, User.id == Session.user_id)
            .where(Session.id == session_id, Session.revoke_time.is_(None), Session.expire_time > func.now())
        )
    ).one_or_none()
    return await _next_pair(tx, signer, found.User, found.Session, now) if found else None


async def _next_pair(tx: AsyncSession, signer: Signer, user: User, session: Session, now: datetime) -> Pair:
    refresh_token = tokens.new_refresh_token()
    expires = domain.refresh_expiry(now, session.expire_time, signer.lifetimes)
    await tx.execute(
        insert(RefreshToken).values(hash=tokens.digest(refresh_token), session_id=session.id, expire_time=expires)
    )
    access_token = signer.keyring.sign(
        user_id=user.id, roles=user.roles, session_id=session.id, now=now,
        lifetime_seconds=signer.lifetimes.access_seconds,
    )  # fmt: skip
    return Pair(access_token, refresh_token)


async def _revoke(tx: AsyncSession, digest: bytes, *, only_if_used: bool) -> None:
    """Ends the session of the token with `digest`, if there is such a token."""
    family = select(RefreshToken.session_id).where(RefreshToken.hash == digest)
    if only_if_used:
        family = family.where(RefreshToken.used_time.is_not(None))
    await tx.execute(
        update(Session)
        .where(Session.id.in_(family), Session.revoke_time.is_(None))
        .values(revoke_time=func.now())
        .execution_options(synchronize_session=False)
    )
