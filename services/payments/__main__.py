"""Composes and starts the payments service."""

from contextlib import aclosing

from services.chassis.process import Command, Process, run
from services.chassis.server.paging import Pages
from services.payments import cli
from services.payments.books import cli as books
from services.payments.books.report import Reporter
from services.payments.books.rpc import BooksService
from services.payments.charges import Charges
from services.payments.dispatch.captures import Captures
from services.payments.dispatch.dispatcher import ChargeDispatcher
from services.payments.dispatch.offers import Offers
from services.payments.dispatch.reconciler import Reconciler
from services.payments.dispatch.saved_methods import SavedMethods
from services.payments.domain import Capture
from services.payments.providers import registry
from services.payments.refunds.create import Refunds
from services.payments.rpc import ChargeService, PaymentService
from services.payments.settings import Settings
from services.payments.sql import provider_events, refunds
from services.payments.webhooks.inbox import Inbox
from services.payments.webhooks.walk import EventWalk
from stampede.payments.v1 import books_service_pb2_grpc, charge_service_pb2_grpc, payment_service_pb2_grpc

_DRAIN_SECONDS = 12.0
_SERVICES = tuple(f"stampede.payments.v1.{name}" for name in ("ChargeService", "PaymentService", "BooksService"))


async def main(config: Settings) -> None:
    providers = registry.open_providers(config)
    async with aclosing(providers), Process("payments", config) as process:
        dispatcher = ChargeDispatcher(process.db, providers, process.relay.nudge)
        reconciler = Reconciler(process.db, dispatcher, process.relay)
        charges = Charges(
            process.db, dispatcher, process.relay.nudge, providers, capture=Capture(config.capture.upper())
        )  # fmt: skip
        captures = Captures(process.db, dispatcher, providers)
        saved = SavedMethods(process.db, providers)
        hosts = [host.strip().lower() for host in config.return_hosts.split(",") if host.strip()]
        offers = Offers(providers, saved, return_hosts=hosts, is_local=config.environment == "local")
        refunding, inbox = Refunds(process.db, dispatcher), Inbox(process.db, reconciler.wake)
        charge_service_pb2_grpc.add_ChargeServiceServicer_to_server(
            ChargeService(charges, refunding, offers), process.server
        )
        payment_service_pb2_grpc.add_PaymentServiceServicer_to_server(
            PaymentService(charges, captures, refunding, saved, inbox, providers, Pages(*config.page_secret.values())),
            process.server,
        )
        books_service_pb2_grpc.add_BooksServiceServicer_to_server(
            BooksService(process.db, Pages(*config.page_secret.values())), process.server
        )
        process.exchange_events()
        process.run_cleanups(provider_events.CLEANUP, refunds.REQUESTS_CLEANUP)
        for loop in (
            reconciler.reconcile, reconciler.renew_leases, reconciler.apply_events, reconciler.watch_events,
            reconciler.count_open, saved.detach_pending,
        ):  # fmt: skip
            process.background(loop.__name__, loop)
        process.background("reports", Reporter(process.db, providers).run)
        for name, provider in providers.items():
            walk = EventWalk(process.db, provider, inbox)
            process.background(f"events of {name}", walk.run)
        await process.serve(*_SERVICES)
        await dispatcher.drain(seconds=_DRAIN_SECONDS)


if __name__ == "__main__":
    events = Command("provider events that were parked: list, retry or drop them", cli.describe_events, cli.events)
    parked = Command(
        "refunds and payments that wait for an operator: list, resume, abandon, mark as done, or write off",
        cli.describe_parked, cli.parked,
    )  # fmt: skip
    journal = Command(
        "the books: the balances of all accounts, or the entries that are missing",
        books.describe_journal, books.act_on_journal,
    )  # fmt: skip
    report = Command(
        "compare the charges of providers with ours: missing ones, other amounts, states or refunds",
        books.describe_report, books.act_on_report,
    )  # fmt: skip
    commands = {"events": events, "parked": parked, "journal": journal, "report": report}
    run("payments", Settings, main, commands=commands)
