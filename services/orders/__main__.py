"""Starts the orders service: the one place where its parts are put together."""

from services.chassis.data import idempotency, partitions
from services.chassis.events import subscriber
from services.chassis.process import Command, Process, run
from services.chassis.server.paging import Pages
from services.orders import console, facts, history
from services.orders.actions import Desk, order_watch
from services.orders.commands import describe, sagas
from services.orders.latch import PLACED_MOST, Latch
from services.orders.partners import Catalog, Inventory, Payments, Steps
from services.orders.placing import Placer
from services.orders.rpc import OrderService, SagaService
from services.orders.settings import Settings
from services.orders.worker import Worker
from stampede.orders.v1.order_service_pb2_grpc import add_OrderServiceServicer_to_server
from stampede.orders.v1.saga_service_pb2_grpc import add_SagaServiceServicer_to_server

_DRAIN_SECONDS = 5.0


async def main(config: Settings) -> None:
    async with Process("orders", config) as process:
        db, watch, latch = process.db, order_watch(process.db), Latch()
        catalog = Catalog(process.target("catalog", config.catalog_target))
        inventory = Inventory(process.target("inventory", config.inventory_target))
        payments = Payments(process.target("payments", config.payments_target))
        worker = Worker(db, Steps(inventory, payments), process.relay, watch, at_once=config.sagas_at_once)
        placer = Placer(
            db,
            catalog=catalog,
            inventory=inventory,
            worker=worker,
            latch=latch,
            relay=process.relay,
            backlog_max=config.backlog_max,
        )
        desk, pages = Desk(db, worker, watch, process.relay), Pages(*config.page_secret.values())
        add_OrderServiceServicer_to_server(OrderService(db, placer, desk, pages), process.server)
        add_SagaServiceServicer_to_server(SagaService(db, desk, pages), process.server)

        latch.placed(await history.recent_ids(db, PLACED_MOST))
        process.exchange_events(*facts.consumers(db))
        process.listen("stampede.orders.order.*", facts.changed(watch), listener=watch)
        process.run_cleanups(
            subscriber.CLEANUP, idempotency.CLEANUP, partitions.roll("order_log", keep_months=config.log_keep_months)
        )
        process.background("sagas", worker.run)
        process.background("saga metrics", lambda: console.measure(db))
        process.background("watch", watch.run)
        await process.serve("stampede.orders.v1.OrderService", "stampede.orders.v1.SagaService")
        await placer.drain(_DRAIN_SECONDS)
        await worker.drain(_DRAIN_SECONDS)


if __name__ == "__main__":
    console_of_sagas = Command("orders that do not get on: list, show, resume or compensate them", describe, sagas)
    run("orders", Settings, main, consumers=facts.consumers, commands={"sagas": console_of_sagas})
