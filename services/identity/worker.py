"""What identity does unasked: keeps keys fresh and forgets what has expired."""

import asyncio

from services.chassis.data.db import Database
from services.identity import actions
from services.identity.domain import Lifetimes
from services.identity.tokens import Keyring, Vault

_LOAD_SECONDS = 30.0
_HOUR_SECONDS = 3600.0


async def follow_keys(db: Database, vault: Vault, keyring: Keyring) -> None:
    """Learns of keys that other replicas made, twice a minute."""
    while True:
        await asyncio.sleep(_LOAD_SECONDS)
        await actions.load_keys(db, vault, keyring)


async def keep_house(db: Database, vault: Vault, lifetimes: Lifetimes) -> None:
    """Every hour: the next key when it is due, and away with expired sessions."""
    while True:
        await actions.rotate_keys(db, vault, lifetimes)
        while await actions.sweep_sessions(db):
            pass
        await asyncio.sleep(_HOUR_SECONDS)
