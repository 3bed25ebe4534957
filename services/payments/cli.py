"""`python -m services.payments events …`: provider events that were parked, from a shell."""

import argparse
import sys
from collections.abc import Sequence

from services.chassis.data import db as database
from services.chassis.data.db import Database
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


async def events(config: Settings, arguments: argparse.Namespace) -> int:
    """Runs the command; returns the exit code, 1 if an event is not parked. The processes of the service apply them."""
    engine, db = database.connect(config.database_url.get_secret_value(), pool_size=1)
    try:
        return await _act_on_events(db, arguments)
    finally:
        await engine.dispose()


async def _act_on_events(db: Database, arguments: argparse.Namespace) -> int:
    if arguments.action == "list":
        parked = await provider_events.list_parked(db, most=_MOST)
        for one in parked:
            _write(
                f"{one.id}  {one.type}  {one.reference}  payment {one.payment_id or 'not known'}"
                f"  received {one.received_time:%Y-%m-%d %H:%M:%S}  {one.attempts} attempts  {one.cause}"
            )
        _write(f"{len(parked)} parked{', and more' * (len(parked) == _MOST)}")
        return 0
    if arguments.action == "drop":
        return _report(arguments.event_id, await provider_events.drop_parked(db, arguments.event_id), "dropped")
    if arguments.all == bool(arguments.event_id):
        _write("retry needs either the ids that `list` shows, or --all")
        return 1
    wanted = None if arguments.all else arguments.event_id
    return _report(wanted or (), await provider_events.retry_parked(db, wanted), "will be applied again")


def _report(wanted: Sequence[str], done: Sequence[str], what: str) -> int:
    for event_id in done:
        _write(f"{event_id}: {what}")
    missing = sorted(set(wanted) - set(done))
    for event_id in missing:
        _write(f"{event_id}: no such event is parked")
    return 1 if missing else 0


def _write(line: str) -> None:
    sys.stdout.write(f"{line}\n")
