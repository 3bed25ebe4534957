"""Two real processes of inventory, beside a database and a Valkey of their own; they may be killed and paused."""

import asyncio
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import redis.asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.chassis import ids
from services.chassis.data.db import Database, connect
from services.inventory import sales
from services.inventory.gate.gate import keys_of
from stampede.inventory.v1 import reservation_service_pb2 as pb
from stampede.inventory.v1.reservation_service_pb2_grpc import ReservationServiceStub
from tests.integration.inventory.conftest import rows_of
from tests.support import tokens
from tests.support.infra import Infra
from tests.support.ports import free_port
from tests.support.valkey import Valkey, a_valkey
from tests.support.waiting import until

ROOT = Path(__file__).parents[3]
ORDERS = tokens.as_service("orders")
State = pb.Reservation.State
# Buyers come again and again; without a rest they would take the processor from whom they ask.
_PAUSE_SECONDS = 0.02


class Replica:
    """`python -m services.inventory`, and a channel to it."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self._environment, self.log = environment, log
        # It outlives the process, whose successor has the same address.
        options = [("grpc.max_reconnect_backoff_ms", 200), ("grpc.initial_reconnect_backoff_ms", 50)]
        self._channel = grpc.aio.insecure_channel(environment["LISTEN"], options=options)
        self.reservations = ReservationServiceStub(self._channel)
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "services.inventory", cwd=ROOT, env=self._environment, stdout=log, stderr=log
            )

    async def ready(self) -> None:
        async def serving() -> bool:
            assert self.process
            assert self.process.returncode is None, self.log.read_text()
            try:
                answer = await health_pb2_grpc.HealthStub(self._channel).Check(
                    health_pb2.HealthCheckRequest(), timeout=2
                )
            except grpc.aio.AioRpcError:
                return False
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

        await until(serving, seconds=120)

    @property
    def pid(self) -> int:
        assert self.process
        return self.process.pid

    def send(self, number: int) -> None:
        assert self.process
        self.process.send_signal(number)

    async def end(self, number: int = signal.SIGKILL) -> int:
        """Ends the process, if it runs; returns its exit code."""
        assert self.process
        if self.process.returncode is None:
            self.send(number)
            if number != signal.SIGKILL:
                self.send(signal.SIGCONT)
        return await asyncio.wait_for(self.process.wait(), 60)

    async def close(self) -> None:
        if self.process:
            await self.end()
        await self._channel.close()

    async def reserve(self, holds: Sequence[pb.Hold]) -> list[pb.ReservationOutcome] | None:
        """The outcomes of `holds`; None where there was no answer."""
        try:
            request = pb.BatchReserveRequest(holds=holds)
            return list((await self.reservations.BatchReserve(request, metadata=ORDERS, timeout=2)).outcomes)
        except grpc.aio.AioRpcError as error:
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise
            return None


class Replicas:
    """Both processes and what they stand on."""

    def __init__(self, db: Database, valkey: Valkey, both: tuple[Replica, Replica]) -> None:
        self.db, self.valkey, self.both = db, valkey, both

    async def leader(self) -> Replica:
        """The process that leads."""
        found: Replica = await until(self._leader)
        return found

    async def _leader(self) -> Replica | None:
        for (holder,) in await rows_of(self.db, "SELECT holder FROM leases WHERE expire_time > clock_timestamp()"):
            for replica in self.both:
                if holder.split("/")[1] == str(replica.pid):
                    return replica
        return None

    def other(self, replica: Replica) -> Replica:
        return self.both[1] if replica is self.both[0] else self.both[0]

    async def rebuilt(self, sale: Any) -> None:
        """Returns once the gate counts as many units left as PostgreSQL."""

        async def agree() -> bool:
            try:
                async with redis.asyncio.Redis.from_url(self.valkey.url) as client:
                    left = await client.get(keys_of(sale.id)[0])
            except redis.RedisError:
                return False
            return left is not None and int(left) == await self.remaining(sale)

        await until(agree)

    async def remaining(self, sale: Any) -> int:
        remaining: int = (await sales.get_sale(self.db, sale.id)).remaining
        return remaining

    async def recover(self) -> None:
        """Whatever the last test did: both run, and so does Valkey."""
        for replica in self.both:
            assert replica.process
            if replica.process.returncode is None:
                replica.send(signal.SIGCONT)
            else:
                await replica.start()
        self.valkey.recover()
        for replica in self.both:
            await replica.ready()
        await self.leader()


class Crowd:
    """Buyers of one unit each, who come through both processes until all is sold, and repeat what got no answer."""

    def __init__(self, replicas: Replicas, sale: Any, *, buyers: int = 8) -> None:
        self._replicas, self._sale, self._buyers = replicas, sale, buyers
        self.held: list[uuid.UUID] = []

    @asynccontextmanager
    async def buying(self) -> AsyncIterator["Crowd"]:
        self._tasks = [asyncio.create_task(self._buy(number)) for number in range(self._buyers)]
        try:
            yield self
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def has_bought(self, units: int, *, seconds: float = 40.0) -> None:
        async def enough() -> bool:
            for task in self._tasks:
                if task.done():
                    task.result()  # buyers do not end by themselves
            return len(self.held) >= units

        await until(enough, seconds=seconds)

    async def _buy(self, number: int) -> None:
        for turn in range(number, sys.maxsize):
            holds = [a_wish(self._sale) for _ in range(3)]
            outcomes = await self._replicas.both[turn % 2].reserve(holds)
            while outcomes is None:
                await asyncio.sleep(_PAUSE_SECONDS)
                turn += 1
                outcomes = await self._replicas.both[turn % 2].reserve(holds)
            for outcome in outcomes:
                if outcome.HasField("reservation"):
                    self.held.append(uuid.UUID(outcome.reservation.id))
                else:
                    assert outcome.refusal.reason == "SOLD_OUT", outcome
            await asyncio.sleep(_PAUSE_SECONDS)


def a_wish(sale: Any) -> pb.Hold:
    """One unit of `sale`, for somebody."""
    line = pb.HoldLine(product_id=str(sale.product_id), quantity=1, flash_sale_id=str(sale.id))
    return pb.Hold(id=str(ids.new()), customer_id=str(ids.new()), lines=[line], duration={"seconds": 600})


@asynccontextmanager
async def two_processes(infra: Infra, template: str, home: Path) -> AsyncIterator[Replicas]:
    name = "test_replicas"
    infra.admin(
        f"DROP DATABASE IF EXISTS {name}", f"CREATE DATABASE {name} TEMPLATE {template}",
        # As deploy/postgres/service.sql sets it for the service's role, but sooner.
        f"ALTER DATABASE {name} SET idle_in_transaction_session_timeout = '2s'",
    )  # fmt: skip
    engine, db = connect(infra.database_url(name), pool_size=5)
    with a_valkey() as valkey:
        environment = {
            **os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/protos/gen", "ENVIRONMENT": "local", "VALKEY_URL": valkey.url,
            "DATABASE_URL": infra.database_url(name), "NATS_URL": infra.nats_url,
            "MESH_SECRET": tokens.MESH_SECRET, "PAGE_SECRET": "seals pages in tests",
        }  # fmt: skip
        first, second = (
            Replica(
                environment
                | {name: f"127.0.0.1:{free_port()}" for name in ("LISTEN", "HTTP_LISTEN", "METRICS_LISTEN")},
                home / f"inventory-{number}.log",
            )
            for number in (1, 2)
        )  # fmt: skip
        replicas = Replicas(db, valkey, (first, second))
        try:
            for replica in replicas.both:
                await replica.start()
            yield replicas
        finally:
            for replica in replicas.both:
                await replica.close()
            await engine.dispose()
            infra.admin(f"DROP DATABASE {name} WITH (FORCE)")
