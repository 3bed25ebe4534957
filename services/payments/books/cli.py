"""`python -m services.payments journal …`: the books, from a shell."""

import argparse
from functools import partial

from services.chassis.data import commands
from services.chassis.data.commands import write
from services.chassis.data.db import Database
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
