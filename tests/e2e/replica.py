"""A second process of orders beside a mesh's own."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc

from deploy.local import probes, process
from deploy.local.location import Site
from deploy.local.parts import Part, service_environment
from stampede.orders.v1 import order_service_pb2 as pb
from stampede.orders.v1.order_service_pb2_grpc import OrderServiceStub
from tests.e2e.shop import VISA, Buyer
from tests.support.ports import free_port
from tests.support.rest import Json, new_id
from tests.support.waiting import eventually


class Replica:
    """A second process of orders; the gateway does not know of it."""

    def __init__(self, site: Site, **settings: str) -> None:
        grpc_port, http, metrics = free_port(), free_port(), free_port()
        self._address, self._log = f"127.0.0.1:{grpc_port}", site.log("orders-2")
        self._part = Part(
            name="orders-2",
            command=(sys.executable, "-m", "services.orders", "serve"),
            environment={
                **service_environment(site, "orders"),
                **settings,
                "LISTEN": self._address,
                "HTTP_LISTEN": f"127.0.0.1:{http}",
                "METRICS_LISTEN": f"127.0.0.1:{metrics}",
            },
            ready=probes.grpc_health(grpc_port),
        )
        self._channel = grpc.aio.insecure_channel(self._address, options=[("grpc.max_reconnect_backoff_ms", 200)])
        self._orders = OrderServiceStub(self._channel)
        self.process: asyncio.subprocess.Process | None = None
        # Those before it have written there too.
        self._ended_before = self._settled_lines()

    async def start(self) -> None:
        """Returns once it answers."""
        self.process = await process.spawn(self._part, self._log)

        async def answers() -> bool:
            assert self.process
            assert self.process.returncode is None, self._log.read_text()[-2000:]
            assert self._part.ready
            try:
                return bool(await asyncio.wait_for(self._part.ready(), 2))
            except (grpc.aio.AioRpcError, TimeoutError):
                return False

        await eventually(answers, bool, seconds=30)

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.returncode is None

    def signal(self, number: signal.Signals) -> None:
        assert self.process
        process.signal_to(self.process, number)

    async def ends(self) -> int:
        """How many sagas it has brought to an end, by its own account."""
        return self._settled_lines() - self._ended_before

    def _settled_lines(self) -> int:
        return self._log.read_text().count("order settled") if self._log.exists() else 0

    async def buy(self, buyer: Buyer, sale: Json, *, card: str | None = VISA, request_id: str = "") -> str:
        """Places an order here; its id."""
        line = pb.PlaceOrderLine(product_id=sale["productId"], flash_sale_id=sale["id"], quantity=1)
        body = pb.PlaceOrderRequest(request_id=request_id or new_id(), lines=[line], payment_method=card or "")
        metadata: Any = [("authorization", f"Bearer {buyer.rest.token}")]
        order = await self._orders.PlaceOrder(body, metadata=metadata, timeout=20, wait_for_ready=True)
        return str(order.id)

    async def watch(self, buyer: Buyer, order_id: str) -> AsyncIterator[pb.Order]:
        """The states of the order that this process streams, until its end."""
        metadata: Any = [("authorization", f"Bearer {buyer.rest.token}")]
        async for order in self._orders.WatchOrder(pb.WatchOrderRequest(order_id=order_id), metadata=metadata):
            yield order

    async def close(self) -> None:
        await self._channel.close()
        if self.process:
            await process.stop(self.process, signal.SIGTERM)
