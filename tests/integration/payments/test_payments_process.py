"""The process itself: migrated, started, killed and drained."""

import asyncio
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.chassis.data import db
from services.chassis.data.db import Base
from services.payments.sql import schema
from stampede.payments.v1 import charge_service_pb2 as pb
from stampede.payments.v1.charge_service_pb2_grpc import ChargeServiceStub
from tests.integration.payments.conftest import KEY, ORDERS, ROOT, WEBHOOK_SECRET, Sandbox, State, an_order, until
from tests.support.infra import Infra
from tests.support.ports import free_port
from tests.support.tokens import MESH_SECRET

OWN = {table.__tablename__ for table in (schema.Payment, schema.Refund, schema.ProviderEvent)}


class Running:
    """`python -m services.payments` and a channel to it."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self._environment, self._log = environment, log

    async def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "services.payments",
                cwd=ROOT, env=self._environment, stdout=log, stderr=log,
            )  # fmt: skip
        self.channel = grpc.aio.insecure_channel(self._environment["LISTEN"])
        self.charges = ChargeServiceStub(self.channel)
        health = health_pb2_grpc.HealthStub(self.channel)

        async def serving() -> bool:
            assert self.process.returncode is None, self._log.read_text()
            try:
                answer = await health.Check(health_pb2.HealthCheckRequest())
            except grpc.aio.AioRpcError:
                return False
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

        await until(serving, seconds=60)  # on a busy machine, imports alone take long

    async def stop(self, number: int) -> int:
        self.process.send_signal(number)
        code = await asyncio.wait_for(self.process.wait(), 20)
        await self.channel.close()
        return code

    async def charge(self, *items: pb.Charge) -> list[pb.PaymentStatus]:
        answer = await self.charges.BatchCharge(pb.BatchChargeRequest(charges=items), metadata=ORDERS)
        return [outcome.payment for outcome in answer.outcomes]

    async def refund_part(self, part: pb.Refund) -> pb.RefundStatus:
        answer = await self.charges.BatchCreateRefunds(pb.BatchCreateRefundsRequest(refunds=[part]), metadata=ORDERS)
        return answer.outcomes[0].refund


@asynccontextmanager
async def a_process(infra: Infra, sandbox: Sandbox, home: Path) -> AsyncIterator[Running]:
    name = "payments_process"
    infra.admin(f"DROP DATABASE IF EXISTS {name}", f"CREATE DATABASE {name}")
    url = infra.database_url(name)
    environment = {
        **os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/protos/gen", "ENVIRONMENT": "local",
        "LISTEN": f"127.0.0.1:{free_port()}", "HTTP_LISTEN": "127.0.0.1:0",
        "METRICS_LISTEN": f"127.0.0.1:{free_port()}",
        "DATABASE_URL": url, "MIGRATION_DATABASE_URL": url, "NATS_URL": infra.nats_url, "MESH_SECRET": MESH_SECRET,
        "PAGE_SECRET": "seals pages in tests", "STRIPE_API_KEY": KEY, "STRIPE_WEBHOOK_SECRET": WEBHOOK_SECRET,
        "STRIPE_API_BASE": sandbox.url, "PROVIDER_CALLS_PER_SECOND": "0",
    }  # fmt: skip
    migrating = [sys.executable, "-m", "services.payments", "migrate"]
    await asyncio.to_thread(subprocess.run, migrating, cwd=ROOT, env=environment, check=True)
    running = Running(environment, home / "payments.log")
    try:
        await running.start()
        yield running
    finally:
        if running.process.returncode is None:
            await running.stop(signal.SIGKILL)
        infra.admin(f"DROP DATABASE {name} WITH (FORCE)")


async def test_sigterm_lets_charges_in_flight_finish(infra: Infra, sandbox: Sandbox, tmp_path: Path) -> None:
    async with a_process(infra, sandbox, tmp_path) as running:
        await sandbox.faults(latency_ms={"fixed": 1000, "jitter": 0})
        item = an_order()
        charging = asyncio.create_task(running.charge(item))

        async def committed() -> bool:
            engine, sessions = db.connect(infra.database_url("payments_process"), pool_size=1)
            async with sessions() as tx:
                found = await tx.scalar(sqlalchemy.text("SELECT count(*) FROM payments"))
            await engine.dispose()
            return bool(found)

        await until(committed)
        code = await running.stop(signal.SIGTERM)
        assert (code, [p.state for p in await charging]) == (0, [State.SUCCEEDED])
        log = (tmp_path / "payments.log").read_text()
        assert '"stopped"' in log
        assert not any(secret in log for secret in ("pm_card", "_secret_", KEY, WEBHOOK_SECRET))


@pytest.mark.parametrize("latency", [0, 150])
async def test_a_killed_process_finishes_what_it_began_when_it_is_back(
    infra: Infra, sandbox: Sandbox, tmp_path: Path, latency: int
) -> None:
    async with a_process(infra, sandbox, tmp_path) as running:
        await sandbox.faults(latency_ms={"fixed": latency, "jitter": latency})
        items = [an_order() for _ in range(60)]
        charging = asyncio.create_task(running.charge(*items))

        async def some_charged() -> bool:
            return bool(
                (await sandbox.control("GET", "ledger")) and await sandbox.intents(*(i.order_id for i in items))
            )

        await until(some_charged)
        await running.stop(signal.SIGKILL)
        await asyncio.gather(charging, return_exceptions=True)
        await running.start()

        async def all_paid() -> bool:
            return {p.state for p in await running.charge(*items)} == {State.SUCCEEDED}

        await until(all_paid)
        intents = await sandbox.intents(*(item.order_id for item in items))
        assert (len(intents), {i["status"] for i in intents}) == (60, {"succeeded"})
        assert await running.stop(signal.SIGTERM) == 0


async def test_a_refund_of_a_killed_process_is_paid_back_once_when_it_is_back(
    infra: Infra, sandbox: Sandbox, tmp_path: Path
) -> None:
    async with a_process(infra, sandbox, tmp_path) as running:
        item = an_order()
        await running.charge(item)
        (intent,) = await sandbox.intents(item.order_id)
        await sandbox.faults(error_500=True)
        part = pb.Refund(refund_id=str(uuid.uuid4()), order_id=item.order_id)
        refunding = asyncio.create_task(running.refund_part(part))

        async def committed() -> bool:
            engine, sessions = db.connect(infra.database_url("payments_process"), pool_size=1)
            async with sessions() as tx:
                found = await tx.scalar(sqlalchemy.text("SELECT count(*) FROM refunds"))
            await engine.dispose()
            return bool(found)

        await until(committed)
        await running.stop(signal.SIGKILL)
        await asyncio.gather(refunding, return_exceptions=True)
        await sandbox.control("DELETE", "faults")
        await running.start()

        async def paid_back() -> bool:  # nobody asks payments for it
            return bool(await sandbox.refunds(intent["id"]))

        await until(paid_back)

        async def whole() -> bool:
            return (await running.refund_part(part)).whole

        await until(whole)
        assert [refund["amount"] for refund in await sandbox.refunds(intent["id"])] == [1999]


async def test_the_migrations_make_what_the_tables_say(infra: Infra, template: Callable[[str], Awaitable[str]]) -> None:
    url = infra.database_url(await template("payments"))

    def differences() -> list[object]:
        engine = sqlalchemy.create_engine(url)
        with engine.connect() as connection:
            context = MigrationContext.configure(
                connection,
                opts={
                    "include_name": lambda name, kind, _: kind != "table" or name in OWN,
                    "include_object": lambda thing, _n, kind, _r, _c: kind != "table" or thing.name in OWN,
                },
            )
            found = compare_metadata(context, Base.metadata)
        engine.dispose()
        return list(found)

    assert await asyncio.to_thread(differences) == []
