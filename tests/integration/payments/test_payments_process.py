"""The process itself: killed and started again, and stopped while charges are in progress."""

import asyncio
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sqlalchemy import text

from services.chassis.data import db
from stampede.payments.v1 import charge_service_pb2 as pb
from stampede.payments.v1.charge_service_pb2_grpc import ChargeServiceStub
from tests.integration.payments.conftest import KEY, ORDERS, ROOT, WEBHOOK_SECRET, Sandbox, State, an_order
from tests.support.infra import Infra
from tests.support.ports import free_port
from tests.support.tokens import MESH_SECRET
from tests.support.waiting import until


class Process:
    """`python -m services.payments`, a channel to it, and its database."""

    def __init__(self, environment: dict[str, str], log: Path, database: db.Database) -> None:
        self._environment, self.log, self._db = environment, log, database
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it, unless it runs."""
        if self.process is not None and self.process.returncode is None:
            return
        with self.log.open("ab") as log:
            process = self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "services.payments",
                cwd=ROOT, env=self._environment, stdout=log, stderr=log,
            )  # fmt: skip
        self.channel = grpc.aio.insecure_channel(self._environment["LISTEN"])
        self.charges = ChargeServiceStub(self.channel)
        health = health_pb2_grpc.HealthStub(self.channel)

        async def serving() -> bool:
            assert process.returncode is None, self.log.read_text()
            try:
                answer = await health.Check(health_pb2.HealthCheckRequest())
            except grpc.aio.AioRpcError:
                return False
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

        await until(serving, seconds=60)  # on a busy machine, imports alone take long

    async def stop(self, number: int) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = await asyncio.wait_for(self.process.wait(), 60)
        await self.channel.close()
        return code

    async def charge(self, *items: pb.Charge) -> list[pb.PaymentStatus]:
        answer = await self.charges.BatchCharge(pb.BatchChargeRequest(charges=items), metadata=ORDERS)
        return [outcome.payment for outcome in answer.outcomes]

    async def refund(self, line: pb.Refund) -> pb.RefundStatus:
        answer = await self.charges.BatchCreateRefunds(pb.BatchCreateRefundsRequest(refunds=[line]), metadata=ORDERS)
        return answer.outcomes[0].refund

    async def committed(self, query: str) -> None:
        """Wait until `query` finds rows."""

        async def found() -> bool:
            async with self._db() as tx:
                return bool((await tx.execute(text(query))).all())

        await until(found)


@pytest.fixture(scope="module")
async def shared(
    infra: Infra,
    template: Callable[[str], Awaitable[str]],
    sandbox_process: Sandbox,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Process]:
    name = "payments_process"
    infra.admin(f"CREATE DATABASE {name} TEMPLATE {await template('payments')}")
    url = infra.database_url(name)
    engine, database = db.connect(url, pool_size=1)
    environment = {
        **os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/protos/gen", "ENVIRONMENT": "local",
        "LISTEN": f"127.0.0.1:{free_port()}", "HTTP_LISTEN": "127.0.0.1:0",
        "METRICS_LISTEN": f"127.0.0.1:{free_port()}",
        "DATABASE_URL": url, "NATS_URL": infra.nats_url, "MESH_SECRET": MESH_SECRET,
        "PAGE_SECRET": "signs pages in tests", "STRIPE_API_KEY": KEY, "STRIPE_WEBHOOK_SECRET": WEBHOOK_SECRET,
        "STRIPE_API_BASE": sandbox_process.url, "PROVIDER_CALLS_PER_SECOND": "0",
    }  # fmt: skip
    process = Process(environment, tmp_path_factory.mktemp("payments") / "log", database)
    try:
        yield process
    finally:
        if process.process is not None and process.process.returncode is None:
            await process.stop(signal.SIGKILL)
        await engine.dispose()
        infra.admin(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def running(shared: Process, sandbox: Sandbox) -> Process:
    """The shared process, started if an earlier test has stopped it."""
    await shared.start()
    return shared


async def test_a_killed_process_completes_its_charges_later(running: Process, sandbox: Sandbox) -> None:
    await sandbox.faults(latency_ms={"fixed": 150, "jitter": 150})
    items = [an_order() for _ in range(60)]
    charging = asyncio.create_task(running.charge(*items))

    async def some_charged() -> bool:
        return bool(await sandbox.intents(*(item.order_id for item in items)))

    await until(some_charged)
    await running.stop(signal.SIGKILL)
    await asyncio.gather(charging, return_exceptions=True)
    await sandbox.control("DELETE", "faults")
    await running.start()

    async def all_paid() -> bool:
        return {p.state for p in await running.charge(*items)} == {State.SUCCEEDED}

    await until(all_paid)
    intents = await sandbox.intents(*(item.order_id for item in items))
    assert (len(intents), {i["status"] for i in intents}) == (60, {"succeeded"})


async def test_a_killed_process_completes_its_refunds_later(running: Process, sandbox: Sandbox) -> None:
    item = an_order()
    await running.charge(item)
    (intent,) = await sandbox.intents(item.order_id)
    await sandbox.faults(error_500=True)
    line = pb.Refund(refund_id=str(uuid.uuid4()), order_id=item.order_id)
    refunding = asyncio.create_task(running.refund(line))
    await running.committed("SELECT 1 FROM refunds")
    await running.stop(signal.SIGKILL)
    await asyncio.gather(refunding, return_exceptions=True)
    await sandbox.control("DELETE", "faults")
    await running.start()

    async def refunded() -> bool:  # by the reconciler: no caller repeats the request
        return bool(await sandbox.refunds(intent["id"]))

    await until(refunded)

    async def whole() -> bool:
        return (await running.refund(line)).whole

    await until(whole)
    assert [refund["amount"] for refund in await sandbox.refunds(intent["id"])] == [1999]


async def test_sigterm_lets_charges_in_flight_end(running: Process, sandbox: Sandbox) -> None:
    await sandbox.faults(latency_ms={"fixed": 1000, "jitter": 0})
    item = an_order()
    charging = asyncio.create_task(running.charge(item))
    await running.committed(f"SELECT 1 FROM payments WHERE order_id = '{item.order_id}'")
    code = await running.stop(signal.SIGTERM)
    assert (code, [p.state for p in await charging]) == (0, [State.SUCCEEDED])
    log = running.log.read_text()
    assert '"stopped"' in log
    assert not any(secret in log for secret in ("pm_card", "_secret_", KEY, WEBHOOK_SECRET))
