"""Signing keys: their rotation in the database, and their copies in the memory of each process."""

import asyncio
import time
from datetime import timedelta

import structlog

from services.chassis.data.db import Database
from services.chassis.telemetry.heartbeats import beat
from services.identity import domain, tokens
from services.identity.domain import Lifetimes
from services.identity.sql import signing_keys
from services.identity.sql.schema import SigningKey
from services.identity.tokens import Key, Keyring, KeySealer

log = structlog.get_logger()

_FOLLOW_SECONDS = 1.0
_ROTATE_SECONDS = 30.0


async def rotate_keys(db: Database, sealer: KeySealer, lifetimes: Lifetimes) -> None:
    """Create the next signing key when it is due, and delete the keys whose last token has expired.

    Raises `WrongSecret` and creates no key if `sealer` does not open the newest key: replicas with the right secret
    could not open the new one.
    """
    async with db.begin() as tx:
        now = await signing_keys.lock_keys(tx)
        newest = next(reversed(await signing_keys.list_keys(tx)), None)
        if sign_from := domain.next_sign_from(newest.sign_from if newest else None, now, lifetimes):
            if newest:
                sealer.open(newest.sealed_private_key)
            made = _row(tokens.new_key(sign_from), sealer)
            await signing_keys.insert_key(tx, made, retire_others=domain.retire_time(sign_from, lifetimes))
            log.info("signing key created", kid=made.kid, sign_from=sign_from.isoformat())
        await signing_keys.delete_retired_keys(tx, now)


async def load_keys(db: Database, sealer: KeySealer, keyring: Keyring) -> None:
    """Load the keys of the database into this process. Raises `WrongSecret`."""
    async with db.begin() as tx:
        rows = await signing_keys.list_keys(tx)
    keyring.hold([Key(row.kid, row.sign_from, row.public_jwk, sealer.open(row.sealed_private_key)) for row in rows])


async def follow_keys(db: Database, sealer: KeySealer, keyring: Keyring) -> None:
    """Load the keys every second, because other replicas and operators change them; rotate them twice a minute."""
    rotate_at = 0.0
    while beat():
        await asyncio.sleep(_FOLLOW_SECONDS)
        if time.monotonic() >= rotate_at:
            await rotate_keys(db, sealer, keyring.lifetimes)
            rotate_at = time.monotonic() + _ROTATE_SECONDS
        await load_keys(db, sealer, keyring)


async def publish_replacement(db: Database, sealer: KeySealer, *, lead_seconds: float) -> tuple[str, list[str]]:
    """Create a key that signs in `lead_seconds`. Return its id, and those of all other keys. Raises `WrongSecret`.

    It is published at once, so that everybody knows it when it signs its first token.
    """
    async with db.begin() as tx:
        now = await signing_keys.lock_keys(tx)
        others = await signing_keys.list_keys(tx)
        for key in others:
            sealer.open(key.sealed_private_key)
        made = _row(tokens.new_key(now + timedelta(seconds=lead_seconds)), sealer)
        await signing_keys.insert_key(tx, made, retire_others=made.sign_from)
    return made.kid, [key.kid for key in others]


async def withdraw_others(db: Database, kid: str) -> None:
    """Delete all keys but one: tokens that they signed are refused from now on."""
    async with db.begin() as tx:
        await signing_keys.lock_keys(tx)
        await signing_keys.delete_others(tx, kid)


def _row(key: Key, sealer: KeySealer) -> SigningKey:
    return SigningKey(
        kid=key.kid, public_jwk=key.public_jwk, sealed_private_key=sealer.seal(key.private_key), sign_from=key.sign_from
    )
