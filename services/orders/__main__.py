"""Starts the orders service: the one place where its parts are put together."""

from services.chassis import events
from services.chassis.paging import Pages
from services.chassis.process import Process, run
from services.orders import actions, facts, store
from services.orders.latch import PLACED_MOST, Latch
from services.orders.partners import Catalog, Inventory, Payments, Steps
from services.orders.placing import Placer
from services.orders.rpc import OrderService
from services.orders.settings import Settings
from services.orders.worker import Worker
from stampede.orders.v1.order_service_pb2_grpc import add_OrderServiceServicer_to_server

_DRAIN_SECONDS = 5.0


async def main(config: Settings) -> None:
    async with Process("orders", config) as process:
        db, watch, latch = process.db, actions.order_watch(process.db), Latch()
        catalog = Catalog(process.target("catalog", config.catalog_target))
        inventory = Inventory(process.target("inventory", config.inventory_target))
        payments = Payments(process.target("payments", config.payments_target))
        worker = Worker(db, Steps(inventory, payments), process.relay, watch, at_once=config.sagas_at_once)
        placer = Placer(db, catalog=catalog, inventory=inventory, worker=worker, latch=latch, relay=process.relay)
        service = OrderService(db, placer, worker, watch, Pages(config.page_secret.get_secret_value()))
        add_OrderServiceServicer_to_server(service, process.server)

        latch.placed(await store.recent_ids(db, PLACED_MOST))
        process.exchange_events(*facts.consumers(db))
        process.forget(events.FORGET)
        process.background("sagas", worker.run)
        process.background("saga metrics", worker.measure)
        process.background("watch", watch.run)
        await process.serve("stampede.orders.v1.OrderService")
        await placer.drain(_DRAIN_SECONDS)
        await worker.drain(_DRAIN_SECONDS)


if __name__ == "__main__":
    run("orders", Settings, main)
