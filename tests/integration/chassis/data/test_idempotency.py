"""One request id has one effect, also if its repeats are concurrent."""

import asyncio
import dataclasses
import uuid

import pytest
from sqlalchemy import text

from services.chassis import request_context
from services.chassis.data import idempotency
from services.chassis.data.db import Database
from services.chassis.errors import RequestIdReused
from services.chassis.request_context import Call, Caller, RequestKey
from stampede.catalog.v1.catalog_service_pb2 import CreateProductRequest

CONCURRENT = 15
KEY = RequestKey(caller="ada", method="/m", request_id=uuid.uuid4(), digest=b"content")


async def attempt(db: Database, key: RequestKey | None, resource_id: uuid.UUID) -> uuid.UUID | None:
    async with db.begin() as tx:
        return await idempotency.find_repeat(tx, key, resource_id)


async def test_concurrent_repeats_find_the_first(db: Database) -> None:
    mine = [uuid.uuid4() for _ in range(CONCURRENT)]
    outcomes = await asyncio.gather(*(attempt(db, KEY, resource_id) for resource_id in mine))
    winners = [resource_id for resource_id, found in zip(mine, outcomes, strict=True) if found is None]
    assert len(winners) == 1
    assert set(outcomes) == {None, winners[0]}


async def test_repeat_becomes_the_first_if_the_first_rolls_back(db: Database) -> None:
    async with db() as first:
        assert await idempotency.find_repeat(first, KEY, uuid.uuid4()) is None
        second = asyncio.create_task(attempt(db, KEY, uuid.uuid4()))
        await first.rollback()
    assert await second is None


async def test_repeat_waits_until_the_first_has_committed(db: Database) -> None:
    resource_id = uuid.uuid4()
    async with db() as first:
        assert await idempotency.find_repeat(first, KEY, resource_id) is None
        second = asyncio.create_task(attempt(db, KEY, uuid.uuid4()))
        async with asyncio.timeout(60):
            while not await blocked(db):
                assert not second.done()
        await first.commit()
    assert await second == resource_id


async def blocked(db: Database) -> bool:
    async with db() as tx:
        return bool(
            await tx.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"))
        )


async def test_other_content_under_the_same_id_is_refused(db: Database) -> None:
    await attempt(db, KEY, uuid.uuid4())
    with pytest.raises(RequestIdReused):
        await attempt(db, dataclasses.replace(KEY, digest=b"other"), uuid.uuid4())


@pytest.mark.parametrize("other", [{"caller": "bob"}, {"method": "/n"}, {"request_id": uuid.UUID(int=7)}], ids="-".join)
async def test_request_ids_of_callers_and_methods_are_separate(db: Database, other: dict[str, object]) -> None:
    await attempt(db, KEY, uuid.uuid4())
    assert await attempt(db, dataclasses.replace(KEY, **other), uuid.uuid4()) is None  # type: ignore[arg-type]


async def test_request_without_an_id_is_always_the_first(db: Database) -> None:
    assert await attempt(db, None, uuid.uuid4()) is None
    assert await attempt(db, None, uuid.uuid4()) is None


def test_key_covers_caller_method_and_content() -> None:
    def key_of(request: CreateProductRequest, user_id: uuid.UUID, method: str = "/m") -> RequestKey | None:
        request_context.enter(Call(method=method, request_id="r", caller=Caller(user_id=user_id)))
        return request_context.request_key(request)

    ada, request_id = uuid.uuid4(), str(uuid.uuid4())
    asked = CreateProductRequest(sku="A", attributes={"a": "1", "b": "2"}, request_id=request_id)
    same = CreateProductRequest(sku="A", attributes={"b": "2", "a": "1"}, request_id=request_id)
    other = CreateProductRequest(sku="B", attributes={"a": "1", "b": "2"}, request_id=request_id)
    assert key_of(asked, ada) == key_of(same, ada)
    keys = [key_of(asked, ada), key_of(other, ada), key_of(asked, uuid.uuid4()), key_of(asked, ada, "/n")]
    assert len(set(keys)) == len(keys)
    assert key_of(CreateProductRequest(sku="A"), ada) is None
