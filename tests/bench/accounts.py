"""Thousands of customers: accounts written to identity's database, and tokens signed with identity's keys.

Registering and signing in 10,000 customers through the gateway takes 65 to 75 seconds on two cores: 3.0 and 4.4 ms of
identity's CPU each, with bcrypt at its four rounds. This way takes three seconds, with identity's own code.
"""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from sqlalchemy import insert

from deploy.local import Site
from services.chassis import ids
from services.chassis.data import db
from services.chassis.data.db import Database
from services.identity import keys
from services.identity.domain import Lifetimes
from services.identity.passwords import Passwords
from services.identity.sql.schema import User
from services.identity.tokens import Keyring, KeySealer

_ROUNDS = 4


class Accounts:
    """The customers of one mesh; more are created when they are needed."""

    def __init__(self, database: Database, keyring: Keyring) -> None:
        self._db, self._keyring = database, keyring
        self._customers: list[uuid.UUID] = []

    @classmethod
    @asynccontextmanager
    async def of(cls, site: Site) -> AsyncIterator["Accounts"]:
        engine, database = db.connect(site.database_url("identity"), pool_size=1)
        keyring = Keyring(Lifetimes())
        try:
            await keys.load_keys(database, KeySealer(site.secrets["keys"]), keyring)
            yield cls(database, keyring)
        finally:
            await engine.dispose()

    async def tokens(self, count: int) -> list[str]:
        """Return new access tokens of the first `count` customers, with identity's own lifetime."""
        await self._create(count - len(self._customers))
        now, session = datetime.now(UTC), ids.new()
        return [
            self._keyring.sign(user_id=customer, roles=["customer"], session_id=session, now=now)
            for customer in self._customers[:count]
        ]

    async def _create(self, missing: int) -> None:
        if missing <= 0:
            return
        passwords = Passwords(rounds=_ROUNDS)
        async with passwords.turn("") as turn:
            password_hash = await turn.hash("correct horse")
        passwords.close()
        created = [ids.new() for _ in range(missing)]
        rows = [
            {
                "id": customer, "email": f"{customer}@bench.example", "password_hash": password_hash,
                "display_name": "", "roles": ["customer"], "email_verified": False,
            }
            for customer in created
        ]  # fmt: skip
        async with self._db.begin() as tx:
            await tx.execute(insert(User), rows)
        self._customers += created
