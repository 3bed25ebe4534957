"""`python -m services.orders sagas …`: help for stuck sagas from a shell, without an account."""

import argparse
import getpass
import os
import sys
import uuid

from services.chassis.data import db as database
from services.chassis.data.db import Database
from services.chassis.errors import AppError
from services.orders.domain import Actor
from services.orders.saga import operators
from services.orders.saga.plan import SagaView
from services.orders.settings import Settings

_MOST = 200


def describe(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `sagas`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|show|resume|compensate")
    listing = actions.add_parser("list", help=f"the {_MOST} longest without progress")
    listing.add_argument(
        "--stuck", action="store_true", help="only those without progress for a minute that wait for no customer"
    )
    for name, text in (
        ("show", "the saga of one order, with the cause of its pause"),
        ("resume", "take its next step now"),
        ("compensate", "turn back: reverse the charge, if any, and release the stock"),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument("order_id", type=uuid.UUID)
        if name == "compensate":
            action.add_argument("--reason", default="", help="for the order's log")


async def sagas(config: Settings, arguments: argparse.Namespace) -> int:
    """Runs the command; returns the exit code, 1 after a refusal. The processes of the service do the work."""
    engine, db = database.connect(config.database_url.get_secret_value(), pool_size=1)
    try:
        await _act(db, arguments)
    except AppError as error:
        _write(f"{error.reason}: {error}")
        return 1
    finally:
        await engine.dispose()
    return 0


async def _act(db: Database, arguments: argparse.Namespace) -> None:
    if arguments.action == "list":
        found = await operators.list_sagas(db, stuck=arguments.stuck, after=None, most=_MOST)
        for saga in found:
            _write(_line(saga))
        _write(f"{len(found)} {'stuck' if arguments.stuck else 'running'}{', and more' * (len(found) == _MOST)}")
        return
    by = Actor(f"operator:{_user()}", note=getattr(arguments, "reason", ""))
    if arguments.action == "resume":
        await operators.resume(db, arguments.order_id, by)
    elif arguments.action == "compensate":
        await operators.compensate(db, arguments.order_id, by)
    _write(_line(await operators.get(db, arguments.order_id)))
    if arguments.action != "show":
        _write("a process of the service claims it; see the result with: sagas show")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container the user has a number and no name
        return str(os.getuid())


def _write(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def _line(saga: SagaView) -> str:
    waits = "waits for its customer" if saga.waits_for_customer else "stuck" if saga.stuck else "running"
    turned = saga.progress.reason or saga.progress.cancel_reason
    parts = [
        f"{saga.order_id}  {saga.progress.kind:8}  {saga.progress.phase:8}  {saga.progress.step:7}  {waits}",
        f"since {saga.progress_time:%Y-%m-%d %H:%M:%S}",
        f"{saga.attempts} attempts",
        turned and f"because {turned}",
        saga.cause,
    ]
    return "  ".join(part for part in parts if part)
