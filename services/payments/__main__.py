"""`python -m services.payments [serve|migrate]`."""

from contextlib import aclosing

from services.chassis.process import Process, run
from services.payments.desk import Desk
from services.payments.flights import Flights
from services.payments.provider import Stripe
from services.payments.rpc import ChargeService, PaymentService
from services.payments.settings import Settings
from services.payments.webhooks import Inbox
from services.payments.worker import Worker
from stampede.payments.v1 import charge_service_pb2_grpc, payment_service_pb2_grpc

_DRAIN_SECONDS = 12.0


async def main(config: Settings) -> None:
    provider = Stripe(
        config.stripe_api_key.get_secret_value(), api_base=config.stripe_api_base,
        calls_per_second=config.provider_calls_per_second, concurrency=config.provider_concurrency,
    )  # fmt: skip
    async with aclosing(provider), Process("payments", config) as process:
        flights = Flights(process.db, provider, process.relay.nudge)
        worker = Worker(process.db, flights, process.relay)
        desk, inbox = Desk(process.db, flights, process.relay.nudge), Inbox(process.db, worker.nudge)
        secret = config.stripe_webhook_secret.get_secret_value()
        charge_service_pb2_grpc.add_ChargeServiceServicer_to_server(ChargeService(desk), process.server)
        payment_service_pb2_grpc.add_PaymentServiceServicer_to_server(
            PaymentService(desk, inbox, secret), process.server
        )
        process.exchange_events()
        for loop in (worker.reconcile, worker.renew, worker.read_inbox, worker.tidy, worker.count):
            process.background(loop.__name__, loop)
        await process.serve("stampede.payments.v1.ChargeService", "stampede.payments.v1.PaymentService")
        await flights.drain(seconds=_DRAIN_SECONDS)


run("payments", Settings, main)
