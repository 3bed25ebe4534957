"""`python -m services.identity keys …`: the signing keys, and their replacement in an emergency."""

import argparse
import asyncio
from functools import partial

from services.chassis.data import commands
from services.chassis.data.commands import write
from services.chassis.data.db import Database
from services.chassis.data.sealing import WrongSecret
from services.identity import keys
from services.identity.settings import Settings
from services.identity.sql import sessions, signing_keys
from services.identity.tokens import KeySealer

# How often the gateway (gateway/envoy.yaml) and the services (chassis/server/access.py) fetch the keys, and how often
# the replicas of identity load them.
_GATEWAY_SECONDS, _SERVICES_SECONDS, _REPLICAS_SECONDS = 5, 2, 1
_LEAD_SECONDS = _GATEWAY_SECONDS + _REPLICAS_SECONDS + 1
_REFUSED_SECONDS = _SERVICES_SECONDS + _REPLICAS_SECONDS
_NEXT = f"""\
Old access tokens are refused within {_REFUSED_SECONDS} seconds. Clients get new ones with their refresh tokens.
What is left to do:

1. See that /.well-known/jwks.json at the gateway has the new key only.
2. If KEY_SECRET may be known too, replace it now (services/identity/README.md) and run this command again: the
   secret seals the new key.
3. If refresh tokens may be known too, run it again with --end-sessions: everybody must then sign in again.
4. Find what forged tokens did since the theft: moves by staff in the order log and refunds that no member of
   staff made.
"""


def describe(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `keys`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|replace")
    actions.add_parser("list", help="the keys that are published, and from when each signs")
    replace = actions.add_parser("replace", help="a key was stolen: refuse all access tokens, and sign with a new key")
    replace.add_argument("--end-sessions", action="store_true", help="refuse all refresh tokens too")


async def run(config: Settings, arguments: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    return await commands.run(config, partial(_act, config, arguments))


async def _act(config: Settings, arguments: argparse.Namespace, db: Database) -> int:
    if arguments.action == "list":
        await _list(db)
        return 0
    try:
        await _replace(db, KeySealer(*config.key_secret.values()))
    except WrongSecret as error:
        write(str(error))
        return 1
    if arguments.end_sessions:
        async with db.begin() as tx:
            ended = await sessions.revoke_all(tx)
        write(f"{ended} sessions ended")
    write(_NEXT)
    return 0


async def _list(db: Database) -> None:
    async with db() as tx:
        for key in await signing_keys.list_keys(tx):
            ends = f"published until {key.retire_time:%Y-%m-%d %H:%M:%S %Z}" if key.retire_time else "the newest"
            write(f"{key.kid}  signs from {key.sign_from:%Y-%m-%d %H:%M:%S %Z}  {ends}")


async def _replace(db: Database, sealer: KeySealer) -> None:
    kid, others = await keys.publish_replacement(db, sealer, lead_seconds=_LEAD_SECONDS)
    write(f"{kid}: published; it signs in {_LEAD_SECONDS} seconds, when gateway and services know it. Wait.")
    await asyncio.sleep(_LEAD_SECONDS)
    await keys.withdraw_others(db, kid)
    for other in others:
        write(f"{other}: withdrawn")
