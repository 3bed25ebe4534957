"""Calls to other services: deadlines, retries of UNAVAILABLE, and the circuit breaker."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from services.chassis import request_context
from services.chassis.client import target
from services.chassis.client.target import Target
from services.chassis.errors import RateLimited, Refused, Unavailable, WrongState
from services.chassis.server.access import MeshIdentity
from services.chassis.server.guard import Guard
from services.chassis.server.registry import Registry
from stampede.catalog.v1 import snapshot_service_pb2 as pb
from stampede.catalog.v1.snapshot_service_pb2_grpc import (
    SnapshotServiceServicer,
    SnapshotServiceStub,
    add_SnapshotServiceServicer_to_server,
)
from tests.support import tokens

REQUEST = pb.GetSnapshotsRequest(product_ids=["01890000-0000-7000-8000-0000000000ad"])
ORDERS = MeshIdentity("orders", tokens.MESH_SECRET)


class Catalog(SnapshotServiceServicer):
    def __init__(self) -> None:
        self.answers: list[Exception | grpc.StatusCode] = []
        """The failures of the next calls; later ones succeed."""
        self.calls: list[request_context.Call] = []
        self.attempts = 0
        self.hangs = False

    async def GetSnapshots(self, request: Any, context: Any) -> Any:  # type: ignore[override]
        self.attempts += 1
        self.calls.append(request_context.current())
        if self.hangs:
            await asyncio.Event().wait()
        failure = self.answers.pop(0) if self.answers else None
        if isinstance(failure, grpc.StatusCode):
            await context.abort(failure, "no")
        if failure:
            raise failure
        return pb.GetSnapshotsResponse()


class Served:
    """A target and its server, which can be stopped and started on the same port."""

    def __init__(self, *, guarded: bool) -> None:
        self.catalog, self._guarded, self.port = Catalog(), guarded, 0

    async def start(self) -> None:
        self._server = grpc.aio.server()
        guarded = Registry(Guard("catalog", tokens.gatekeeper("catalog")), self._server)
        add_SnapshotServiceServicer_to_server(self.catalog, guarded if self._guarded else self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()
        self.target = Target("catalog", f"127.0.0.1:{self.port}", ORDERS)

    async def stop(self) -> None:
        await self._server.stop(None)

    async def get(self, **options: Any) -> Any:
        return await self.target.call(SnapshotServiceStub(self.target.channel).GetSnapshots, REQUEST, **options)


@pytest.fixture
async def guarded() -> AsyncIterator[Served]:
    served = Served(guarded=True)
    await served.start()
    yield served
    await served.target.close()
    await served.stop()


@pytest.fixture
async def bare() -> AsyncIterator[Served]:
    """Without the guard, so that the servicer can return any status."""
    served = Served(guarded=False)
    await served.start()
    yield served
    await served.target.close()
    await served.stop()


@pytest.fixture(autouse=True)
def _no_call() -> Any:
    request_context.enter(None)  # type: ignore[arg-type]
    yield
    request_context.enter(None)  # type: ignore[arg-type]


async def test_call_carries_service_name_and_request_id(guarded: Served) -> None:
    request_context.enter(request_context.Call(method="/m", request_id="trace-me"))
    await guarded.get()
    assert guarded.catalog.calls[0].caller.service == "orders"
    assert guarded.catalog.calls[0].request_id == "trace-me"


async def test_deadline_of_the_current_call_limits_the_call(guarded: Served) -> None:
    request_context.enter(request_context.Call(method="/m", request_id="r", deadline=time.monotonic() + 20))
    await guarded.get(seconds=60)
    left = guarded.catalog.calls[0].seconds_left()
    assert left is not None
    assert left < 21, "gRPC rounds a timeout up"


async def test_call_after_the_deadline_is_not_sent(guarded: Served) -> None:
    request_context.enter(request_context.Call(method="/m", request_id="r", deadline=time.monotonic() - 1))
    with pytest.raises(Unavailable):
        await guarded.get()
    assert not guarded.catalog.calls


async def test_no_answer_in_time_is_unavailable(guarded: Served) -> None:
    guarded.catalog.hangs = True
    with pytest.raises(Unavailable):
        await guarded.get(seconds=0.05)


async def test_refusal_is_passed_on_unchanged(guarded: Served) -> None:
    guarded.catalog.answers = [WrongState(resource="product", state="OLD", wanted="NEW")]
    with pytest.raises(Refused) as refused:
        await guarded.get()
    error = refused.value
    assert (error.code, error.reason, error.domain) == ("FAILED_PRECONDITION", "WRONG_STATE", "catalog.stampede")
    assert error.metadata == {"resource": "product", "state": "OLD", "wanted": "NEW"}


async def test_bug_of_another_service_is_not_a_refusal(guarded: Served) -> None:
    guarded.catalog.answers = [ZeroDivisionError()]
    with pytest.raises(grpc.aio.AioRpcError):
        await guarded.get()


async def test_unavailable_is_retried(bare: Served) -> None:
    bare.catalog.answers = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAVAILABLE]
    await bare.get()
    assert bare.catalog.attempts == 3


async def test_other_codes_are_not_retried(bare: Served) -> None:
    bare.catalog.answers = [grpc.StatusCode.ABORTED]
    with pytest.raises(grpc.aio.AioRpcError):
        await bare.get()
    assert bare.catalog.attempts == 1


async def test_circuit_opens_and_closes(guarded: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(target.time, "monotonic", lambda: now)
    guarded.catalog.answers = [Unavailable(part="database")] * 1000
    for _ in range(10):
        with pytest.raises(Unavailable):
            await guarded.get()
    sent = guarded.catalog.attempts
    for _ in range(5):
        with pytest.raises(Unavailable):
            await guarded.get()
    assert guarded.catalog.attempts == sent, "an open circuit sends no call"

    now += 1.1
    outcomes = await asyncio.gather(*(guarded.get() for _ in range(5)), return_exceptions=True)
    assert all(isinstance(outcome, Unavailable) for outcome in outcomes)
    assert 1 <= guarded.catalog.attempts - sent <= 3, "one call probes, with its retries; the others are refused"

    guarded.catalog.answers = []
    sent = guarded.catalog.attempts
    now += 1.1
    await guarded.get()
    await asyncio.gather(*(guarded.get() for _ in range(5)))
    assert guarded.catalog.attempts == sent + 6


async def test_short_deadline_of_one_caller_opens_no_circuit(guarded: Served) -> None:
    guarded.catalog.hangs = True
    for _ in range(12):
        request_context.enter(request_context.Call(method="/m", request_id="r", deadline=time.monotonic() + 0.01))
        with pytest.raises(Unavailable):
            await guarded.get()
    guarded.catalog.hangs = False
    request_context.enter(None)  # type: ignore[arg-type]
    await guarded.get()


async def test_overload_of_another_service_tells_when_to_retry(guarded: Served) -> None:
    guarded.catalog.answers = [RateLimited(what="products")]
    with pytest.raises(Refused) as refused:
        await guarded.get()
    assert (refused.value.code, refused.value.retry_seconds) == ("RESOURCE_EXHAUSTED", 1)


async def test_restarted_service_is_found_again(bare: Served) -> None:
    await bare.get()
    await bare.stop()
    with pytest.raises(Unavailable):
        await bare.get(seconds=1)
    old = bare.target
    await bare.start()
    bare.target, new = old, bare.target
    await new.close()
    async with asyncio.timeout(60):
        while True:
            try:
                await bare.get()
                break
            except Unavailable:
                continue
