"""Composes and starts the inventory service."""

import contextlib

from services.chassis.data import idempotency
from services.chassis.data.lease import Lease
from services.chassis.process import Process, run
from services.chassis.server.paging import Pages
from services.inventory.background import leader
from services.inventory.background.sale_watch import sale_watch
from services.inventory.clients import Catalog
from services.inventory.domain import HoldBounds
from services.inventory.gate.gate import Gate
from services.inventory.rpc import FlashSaleService, ReservationService, StockService
from services.inventory.settings import Settings
from services.inventory.sql import abandoned_holds
from stampede.inventory.v1.flash_sale_service_pb2_grpc import add_FlashSaleServiceServicer_to_server
from stampede.inventory.v1.reservation_service_pb2_grpc import add_ReservationServiceServicer_to_server
from stampede.inventory.v1.stock_service_pb2_grpc import add_StockServiceServicer_to_server


async def main(config: Settings) -> None:
    lease = Lease("timers")
    url = config.valkey_url.get_secret_value() if config.gate_enabled else ""
    gate = Gate(url, cluster=config.valkey_cluster)
    # The gate is closed last: those who use it are stopped when the process is left.
    async with contextlib.aclosing(gate), Process("inventory", config) as process:
        db, pages = process.db, Pages(*config.page_secret.values())
        watch = sale_watch(db, watchers_per_address=config.watchers_per_address)
        catalog = Catalog(process.target("catalog", config.catalog_target))
        add_StockServiceServicer_to_server(StockService(db, pages, catalog), process.server)
        add_FlashSaleServiceServicer_to_server(FlashSaleService(db, pages, watch, catalog), process.server)
        bounds = HoldBounds(config.open_orders_max, config.held_units_max)
        reservations = ReservationService(db, gate, process.relay.nudge, bounds)
        add_ReservationServiceServicer_to_server(reservations, process.server)
        process.exchange_events()
        process.run_cleanups(idempotency.CLEANUP, abandoned_holds.CLEANUP)
        process.background("timers", lambda: lease.lead(db, lambda: leader.lead(db, gate, nudge=process.relay.nudge)))
        process.background("metrics", lambda: leader.measure(db))
        process.background("watch", watch.run)
        await process.serve(
            "stampede.inventory.v1.StockService",
            "stampede.inventory.v1.FlashSaleService",
            "stampede.inventory.v1.ReservationService",
        )


if __name__ == "__main__":
    run("inventory", Settings, main)
