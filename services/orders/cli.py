"""`python -m services.orders sagas …`: help for stuck sagas from a shell, without an account."""

import argparse
import uuid
from functools import partial

from services.chassis.data import commands
from services.chassis.data.commands import write
from services.chassis.data.db import Database
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
        "--stuck", action="store_true", help="only those without progress for a minute that wait for nobody"
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
    return await commands.run(config, partial(_act, arguments))


async def _act(arguments: argparse.Namespace, db: Database) -> None:
    if arguments.action == "list":
        found = await operators.list_sagas(db, stuck=arguments.stuck, after=None, most=_MOST)
        for saga in found:
            write(_line(saga))
        write(f"{len(found)} {'stuck' if arguments.stuck else 'running'}{', and more' * (len(found) == _MOST)}")
        return
    by = Actor(commands.operator(), note=getattr(arguments, "reason", ""))
    if arguments.action == "resume":
        await operators.resume(db, arguments.order_id, by)
    elif arguments.action == "compensate":
        await operators.compensate(db, arguments.order_id, by)
    write(_line(await operators.get(db, arguments.order_id)))
    if arguments.action != "show":
        write("a process of the service claims it; see the result with: sagas show")


def _line(saga: SagaView) -> str:
    waits = "stuck" if saga.stuck else "running"
    if saga.waits_for_customer or saga.waits_for_provider:
        waits = f"waits for {'its customer' if saga.waits_for_customer else 'the provider'}"
    turned = saga.progress.reason or saga.progress.cancel_reason
    parts = [
        f"{saga.order_id}  {saga.progress.kind:8}  {saga.progress.phase:8}  {saga.progress.step:7}  {waits}",
        f"since {saga.progress_time:%Y-%m-%d %H:%M:%S}",
        f"{saga.attempts} attempts",
        turned and f"because {turned}",
        saga.cause,
    ]
    return "  ".join(part for part in parts if part)
