"""Starts the inventory service: the one place where its parts are put together."""

import asyncio

from services.chassis import once
from services.chassis.paging import Pages
from services.chassis.process import Process, run
from services.inventory import actions, settling
from services.inventory.gate import Gate
from services.inventory.rpc import FlashSaleService, ReservationService, StockService
from services.inventory.settings import Settings
from services.inventory.watch import sale_watch
from stampede.inventory.v1.flash_sale_service_pb2_grpc import add_FlashSaleServiceServicer_to_server
from stampede.inventory.v1.reservation_service_pb2_grpc import add_ReservationServiceServicer_to_server
from stampede.inventory.v1.stock_service_pb2_grpc import add_StockServiceServicer_to_server

_TICK_SECONDS = 0.25


async def main(config: Settings) -> None:
    async with Process("inventory", config) as process:
        db, pages, watch = process.db, Pages(config.page_secret.get_secret_value()), sale_watch(process.db)
        gate = Gate(config.valkey_url.get_secret_value())

        async def tick() -> None:
            while True:
                await actions.close_ended_sales(db)
                while expired := await settling.expire(db):
                    process.relay.nudge()
                    await gate.give_back_reservations(expired)
                await asyncio.sleep(_TICK_SECONDS)

        add_StockServiceServicer_to_server(StockService(db, pages), process.server)
        add_FlashSaleServiceServicer_to_server(FlashSaleService(db, pages, watch), process.server)
        add_ReservationServiceServicer_to_server(ReservationService(db, gate), process.server)
        process.exchange_events()
        process.forget(once.FORGET)
        process.background("sale clock and expiry", tick)
        process.background("gate", lambda: gate.keep_healing(db))
        process.background("watch", watch.run)
        try:
            await process.serve(
                "stampede.inventory.v1.StockService",
                "stampede.inventory.v1.FlashSaleService",
                "stampede.inventory.v1.ReservationService",
            )
        finally:
            await gate.close()


if __name__ == "__main__":
    run("inventory", Settings, main)
