"""Composes and starts the orders service."""

import socket
import uuid
from functools import partial

from services.chassis.data import idempotency, partitions
from services.chassis.events import subscriber
from services.chassis.process import Command, Process, run
from services.chassis.server.paging import Pages
from services.orders import cli, consumers
from services.orders.actions import Orders, order_watch
from services.orders.clients import Catalog, Inventory, Payments
from services.orders.events import CANCELLING
from services.orders.placing.paying import Payer
from services.orders.placing.place import Placer
from services.orders.placing.recent_orders import RECENT_MOST, RecentOrders
from services.orders.placing.sold_out_cache import SoldOutCache
from services.orders.rpc import OrderService, SagaService
from services.orders.saga import operators
from services.orders.saga.comparer import Comparer
from services.orders.saga.steps import MeshSteps
from services.orders.saga.worker import Worker
from services.orders.settings import Settings
from services.orders.sql import order_lists, sagas
from stampede.orders.v1.order_service_pb2_grpc import add_OrderServiceServicer_to_server
from stampede.orders.v1.saga_service_pb2_grpc import add_SagaServiceServicer_to_server

_DRAIN_SECONDS = 5.0


async def main(config: Settings) -> None:
    async with Process("orders", config) as process:
        db, watch = process.db, order_watch(process.db, watchers_per_user=config.watchers_per_user)
        catalog = Catalog(process.target("catalog", config.catalog_target))
        inventory = Inventory(
            process.target("inventory", config.inventory_target), unpaid_stock_seconds=config.unpaid_stock_hold_seconds
        )
        payments_target = process.target("payments", config.payments_target)
        payments = Payments(
            payments_target, still_wanted=partial(sagas.still_wanted, db), events_arrive=lambda: withdrawals.live
        )
        steps = MeshSteps(catalog, inventory, payments)
        # A container's host name is its own, and two processes of one host never listen at one port.
        name = f"{socket.gethostname()}/{config.listen}"
        worker = Worker(db, steps, process.relay, watch, at_once=config.sagas_at_once, holder=name)

        def changed(order_id: uuid.UUID) -> None:
            process.relay.nudge()
            watch.nudge(order_id)

        sold_out, recent, withdrawals = SoldOutCache(), RecentOrders(), consumers.Withdrawals(worker.withdraw)
        placer = Placer(
            db,
            catalog=catalog,
            inventory=inventory,
            worker=worker,
            sold_out=sold_out,
            recent=recent,
            relay=process.relay,
            backlog_max=config.backlog_max,
        )
        comparer = Comparer(db, payments, changed)
        orders, pages = Orders(db, worker, comparer, watch, process.relay), Pages(*config.page_secret.values())
        payer = Payer(db, orders, worker, catalog=catalog, inventory=inventory, payments=payments)
        add_OrderServiceServicer_to_server(OrderService(placer, payer, orders, pages), process.server)
        add_SagaServiceServicer_to_server(SagaService(db, orders, pages), process.server)

        await worker.take_over()
        recent.add(await order_lists.recent_ids(db, RECENT_MOST))
        # Only live views follow the events of orders, and they read the database after a gap.
        process.exchange_events(*consumers.consumers(db), keep=False)
        process.listen("stampede.orders.order.*", consumers.order_changed(watch), listener=watch)
        process.listen(CANCELLING, withdrawals.receive, listener=withdrawals)
        process.listen("stampede.inventory.sale.*", sold_out.receive, listener=sold_out)
        process.make_partitions("order_log")
        process.run_cleanups(
            subscriber.CLEANUP, idempotency.CLEANUP, partitions.roll("order_log", keep_months=config.log_keep_months)
        )
        process.background("sagas", worker.run)
        process.background("payment checks", comparer.run_checks)
        process.background("payment walk", comparer.walk)
        process.background("saga metrics", lambda: operators.measure(db))
        process.background("watch", watch.run)
        await process.serve("stampede.orders.v1.OrderService", "stampede.orders.v1.SagaService")
        await placer.drain(_DRAIN_SECONDS)
        await worker.drain(_DRAIN_SECONDS)


if __name__ == "__main__":
    command = Command("stuck sagas: list, show, resume or compensate them", cli.describe, cli.sagas)
    run("orders", Settings, main, consumers=consumers.consumers, commands={"sagas": command})
