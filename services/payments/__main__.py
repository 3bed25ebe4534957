"""Composes and starts the payments service."""

from contextlib import aclosing

from services.chassis.process import Command, Process, run
from services.payments import cli
from services.payments.charges import Charges
from services.payments.dispatch.dispatcher import ChargeDispatcher
from services.payments.dispatch.reconciler import Reconciler
from services.payments.providers import registry
from services.payments.refunds.create import Refunds
from services.payments.rpc import ChargeService, PaymentService
from services.payments.settings import Settings
from services.payments.sql import provider_events, refunds
from services.payments.webhooks.inbox import Inbox
from services.payments.webhooks.walk import EventWalk
from stampede.payments.v1 import charge_service_pb2_grpc, payment_service_pb2_grpc

_DRAIN_SECONDS = 12.0


async def main(config: Settings) -> None:
    providers = registry.open_providers(config)
    async with aclosing(providers), Process("payments", config) as process:
        dispatcher = ChargeDispatcher(process.db, providers, process.relay.nudge)
        reconciler = Reconciler(process.db, dispatcher, process.relay)
        charges = Charges(process.db, dispatcher, process.relay.nudge, provider=providers.default.name)
        refunding, inbox = Refunds(process.db, dispatcher), Inbox(process.db, reconciler.wake)
        charge_service_pb2_grpc.add_ChargeServiceServicer_to_server(ChargeService(charges, refunding), process.server)
        payment_service_pb2_grpc.add_PaymentServiceServicer_to_server(
            PaymentService(charges, refunding, inbox, providers), process.server
        )
        process.exchange_events()
        process.run_cleanups(provider_events.CLEANUP, refunds.REQUESTS_CLEANUP)
        for loop in (
            reconciler.reconcile, reconciler.renew_leases, reconciler.apply_events, reconciler.watch_events,
            reconciler.count_open,
        ):  # fmt: skip
            process.background(loop.__name__, loop)
        for name, provider in providers.items():
            walk = EventWalk(process.db, provider, inbox)
            process.background(f"events of {name}", walk.run)
        await process.serve("stampede.payments.v1.ChargeService", "stampede.payments.v1.PaymentService")
        await dispatcher.drain(seconds=_DRAIN_SECONDS)


if __name__ == "__main__":
    events = Command("provider events that were parked: list, retry or drop them", cli.describe_events, cli.events)
    parked = Command(
        "refunds and payments that wait for an operator: list, resume, abandon, or mark them as done",
        cli.describe_parked, cli.parked,
    )  # fmt: skip
    run("payments", Settings, main, commands={"events": events, "parked": parked})
