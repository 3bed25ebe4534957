"""`python -m services.payments journal|report …`: the books, from a shell."""

import argparse
from collections.abc import Sequence
from contextlib import aclosing
from datetime import timedelta
from functools import partial

from services.chassis.data import commands
from services.chassis.data.commands import write
from services.chassis.data.db import Database
from services.payments.books.report import SPAN, Report, last_span, repair
from services.payments.providers import Providers, registry
from services.payments.settings import Settings
from services.payments.sql import journal


def describe_journal(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `journal`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="balances|complete")
    actions.add_parser("balances", help="the sums of all accounts, by currency, in minor units")
    actions.add_parser("complete", help="enter the money of payments and refunds whose entries are missing")


async def act_on_journal(config: Settings, arguments: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    return await commands.run(config, partial(_act_on_journal, arguments))


async def _act_on_journal(arguments: argparse.Namespace, db: Database) -> None:
    if arguments.action == "complete":
        async with db.begin() as tx:
            made = await journal.complete(tx)
        for entry in made:
            write(f"{entry.payment_id}  {entry.reference}  {entry.debit} < {entry.credit}  {entry.amount_minor}")
        write(f"{len(made)} entries were missing")
        return
    for one in await journal.balances(db):
        debit, credit = f"{one.debit_minor:,}", f"{one.credit_minor:,}"
        write(f"{one.account:<20} {one.currency}  debit {debit:>20}  credit {credit:>20}  {one.net}")


def describe_report(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `report`."""
    parser.add_argument("--provider", action="append", help="only this one; may be repeated")
    hours = SPAN.total_seconds() / 3600
    parser.add_argument("--hours", type=float, default=hours, help=f"how far back it goes; {hours:.0f} if not given")
    parser.add_argument("--repair", action="store_true", help="have the provider asked again where that can help")


async def act_on_report(config: Settings, arguments: argparse.Namespace) -> int:
    """Runs the command; returns the exit code, 1 if something differs or a provider does not answer."""
    async with aclosing(registry.open_providers(config)) as providers:
        return await commands.run(config, partial(report, arguments, providers))


async def report(arguments: argparse.Namespace, providers: Providers, db: Database) -> int:
    """Compares what providers have captured with what we count, and writes what differs."""
    names: Sequence[str] = arguments.provider or list(providers)
    number = 0
    for name in names:
        made = Report(db, providers.get_known(name), *await last_span(db, timedelta(hours=arguments.hours)))
        async for one in made.differences():
            number += 1
            asked = arguments.repair and await repair(db, providers[name], one)
            order = f"  order {one.order_id}" if one.order_id else ""
            write(f"{one.kind}  {name} {one.reference}{order}  {one.text}{'  (asked again)' if asked else ''}")
        write(f"{name}: {made.compared} charges compared")
    write(f"{number} differences")
    return 1 if number else 0
