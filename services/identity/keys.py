"""Signing keys: their rotation in the database, and their copies in the memory of each process."""

import asyncio

import structlog

from services.chassis.data.db import Database
from services.chassis.telemetry.heartbeats import beat
from services.identity import domain, tokens
from services.identity.domain import Lifetimes
from services.identity.sql import signing_keys
from services.identity.sql.schema import SigningKey
from services.identity.tokens import Key, Keyring, KeySealer

log = structlog.get_logger()

_FOLLOW_SECONDS = 30.0


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
            made = tokens.new_key(sign_from)
            row = SigningKey(
                kid=made.kid, public_jwk=made.public_jwk, sealed_private_key=sealer.seal(made.private_key),
                sign_from=sign_from,
            )  # fmt: skip
            await signing_keys.insert_key(tx, row, retire_others=domain.retire_time(sign_from, lifetimes))
            log.info("signing key created", kid=made.kid, sign_from=sign_from.isoformat())
        await signing_keys.delete_retired_keys(tx, now)


async def load_keys(db: Database, sealer: KeySealer, keyring: Keyring) -> None:
    """Load the keys of the database into this process. Raises `WrongSecret`."""
    async with db.begin() as tx:
        rows = await signing_keys.list_keys(tx)
    keyring.hold([Key(row.kid, row.sign_from, row.public_jwk, sealer.open(row.sealed_private_key)) for row in rows])


async def follow_keys(db: Database, sealer: KeySealer, keyring: Keyring) -> None:
    """Rotate the keys and load them, twice a minute: other replicas create keys too."""
    while beat():
        await asyncio.sleep(_FOLLOW_SECONDS)
        await rotate_keys(db, sealer, keyring.lifetimes)
        await load_keys(db, sealer, keyring)
