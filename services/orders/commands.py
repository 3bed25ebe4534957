"""`python -m services.orders sagas …`: the saga console, for whoever has a shell and no account."""

import argparse
import getpass
import os
import sys
import uuid

from services.chassis.data import db as database
from services.chassis.data.db import Database
from services.chassis.errors import AppError
from services.orders import console
from services.orders.console import SagaView
from services.orders.domain import Mover
from services.orders.settings import Settings

_MOST = 200


def describe(parser: argparse.ArgumentParser) -> None:
    """Declares what `sagas` takes."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|show|resume|compensate")
    listing = actions.add_parser("list", help=f"the {_MOST} that have not got on for the longest time")
    listing.add_argument("--stuck", action="store_true", help="only those that wait for no customer, for a minute now")
    for name, text in (
        ("show", "one order's, with what is in its way"),
        ("resume", "have it take its next step now"),
        ("compensate", "take it back: the money, if any moved, and the stock"),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument("order_id", type=uuid.UUID)
        if name == "compensate":
            action.add_argument("--reason", default="", help="stands in the order's log")


async def sagas(config: Settings, arguments: argparse.Namespace) -> int:
    """Carries out what `describe` declared; 1 where it cannot be done. The service's processes do the work."""
    engine, db = database.connect(config.database_url.get_secret_value(), pool_size=1)
    try:
        await _act(db, arguments)
    except AppError as error:
        _say(f"{error.reason}: {error}")
        return 1
    finally:
        await engine.dispose()
    return 0


async def _act(db: Database, arguments: argparse.Namespace) -> None:
    if arguments.action == "list":
        found = await console.sagas(db, stuck=arguments.stuck, after=None, most=_MOST)
        for saga in found:
            _say(_line(saga))
        _say(f"{len(found)} {'stuck' if arguments.stuck else 'under way'}{', and more' * (len(found) == _MOST)}")
        return
    by = Mover(f"operator:{_user()}", note=getattr(arguments, "reason", ""))
    if arguments.action == "resume":
        await console.resume(db, arguments.order_id, by)
    elif arguments.action == "compensate":
        await console.compensate(db, arguments.order_id, by)
    _say(_line(await console.get(db, arguments.order_id)))
    if arguments.action != "show":
        _say("a process of the service takes it up; look again with: sagas show")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # containers run as a user who has a number and no name
        return str(os.getuid())


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def _line(saga: SagaView) -> str:
    waits = "waits for its customer" if saga.waits_for_customer else "stuck" if saga.stuck else "under way"
    turned = saga.progress.reason or saga.progress.asked
    parts = [
        f"{saga.order_id}  {saga.progress.kind:8}  {saga.progress.phase:8}  {saga.progress.step:7}  {waits}",
        f"since {saga.progress_time:%Y-%m-%d %H:%M:%S}",
        f"{saga.attempts} attempts",
        turned and f"because {turned}",
        saga.cause,
    ]
    return "  ".join(part for part in parts if part)
