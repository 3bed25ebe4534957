"""`python -m services.payments events|parked …`: parked events, refunds and payments, from a shell."""

import argparse
import uuid
from collections.abc import Sequence
from functools import partial

from services.chassis.data import commands
from services.chassis.data.commands import write
from services.chassis.data.db import Database
from services.chassis.errors import AppError
from services.payments.dispatch.parked import abandon, list_parked, mark_as_done, resume, write_off
from services.payments.settings import Settings
from services.payments.sql import provider_events

_MOST = 1000


def describe_events(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `events`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|retry|drop")
    actions.add_parser("list", help=f"the {_MOST} oldest parked events, with their causes")
    retry = actions.add_parser("retry", help="apply parked events again")
    retry.add_argument("event_id", nargs="*")
    retry.add_argument("--all", action="store_true", help="all that are parked")
    actions.add_parser("drop", help="give up parked events").add_argument("event_id", nargs="+")


def describe_parked(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `parked`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|resume|abandon|done|write-off")
    actions.add_parser("list", help=f"the {_MOST} longest parked refunds and payments, with their problems")
    for name, text in (
        ("resume", "make the refund again under a new key, or ask about the payment again"),
        ("abandon", "give the refund up, so that its sum is free again; or cancel the payment"),
        ("done", "count the money as refunded, because it went back another way"),
        ("write-off", "count the money as refunded, although it stays here: nobody claims it any more"),
    ):
        action = actions.add_parser(name, help=text)
        several = "?" if name == "resume" else None
        action.add_argument("id", type=uuid.UUID, nargs=several, help="of a refund or payment that `list` shows")
        action.add_argument("--note", default="", help="kept with the refund")
        if several:
            action.add_argument("--all", action="store_true", help=f"the {_MOST} longest parked, after an outage")


async def parked(config: Settings, arguments: argparse.Namespace) -> int:
    """Runs the command; returns the exit code, 1 after a refusal. The processes of the service do the work."""
    return await commands.run(config, partial(_act_on_parked, arguments))


async def _act_on_parked(arguments: argparse.Namespace, db: Database) -> int:
    by = f"{commands.operator()} {getattr(arguments, 'note', '')}".strip()
    if arguments.action == "resume" and arguments.all == bool(arguments.id):
        write("resume needs either an id that `list` shows, or --all")
        return 1
    if arguments.action == "resume" and arguments.all:
        return await _resume_all(db, by)
    if arguments.action != "list":
        ends = {"resume": resume, "abandon": abandon, "done": mark_as_done, "write-off": write_off}
        await ends[arguments.action](db, arguments.id, by)
        write(f"{arguments.id}: {arguments.action}")
        return 0
    found = await list_parked(db, most=_MOST)
    for one in found:
        write(
            f"{one.kind} {one.id}  order {one.order_id}  {one.state}  {one.currency} {one.amount_minor}"
            f"  since {one.update_time:%Y-%m-%d %H:%M:%S}  {one.problem}  {one.cause}".rstrip()
        )
    write(f"{len(found)} parked{', and more' * (len(found) == _MOST)}")
    return 0


async def _resume_all(db: Database, by: str) -> int:
    """Resumes each that is parked. A refusal of one stops no other."""
    refused = 0
    for one in await list_parked(db, most=_MOST):
        try:
            await resume(db, one.id, by)
            write(f"{one.id}: resume")
        except AppError as error:
            refused += 1
            write(f"{one.id}: {error}")
    return 1 if refused else 0


async def events(config: Settings, arguments: argparse.Namespace) -> int:
    """Runs the command; returns the exit code, 1 if an event is not parked. The processes of the service apply them."""
    return await commands.run(config, partial(_act_on_events, arguments))


async def _act_on_events(arguments: argparse.Namespace, db: Database) -> int:
    if arguments.action == "list":
        parked = await provider_events.list_parked(db, most=_MOST)
        for one in parked:
            write(
                f"{one.id}  {one.type}  {one.reference}  payment {one.payment_id or 'not known'}"
                f"  received {one.received_time:%Y-%m-%d %H:%M:%S}  {one.attempts} attempts  {one.cause}"
            )
        write(f"{len(parked)} parked{', and more' * (len(parked) == _MOST)}")
        return 0
    if arguments.action == "drop":
        return _report(arguments.event_id, await provider_events.drop_parked(db, arguments.event_id), "dropped")
    if arguments.all == bool(arguments.event_id):
        write("retry needs either the ids that `list` shows, or --all")
        return 1
    wanted = None if arguments.all else arguments.event_id
    return _report(wanted or (), await provider_events.retry_parked(db, wanted), "will be applied again")


def _report(wanted: Sequence[str], done: Sequence[str], what: str) -> int:
    for event_id in done:
        write(f"{event_id}: {what}")
    missing = sorted(set(wanted) - set(done))
    for event_id in missing:
        write(f"{event_id}: no such event is parked")
    return 1 if missing else 0
