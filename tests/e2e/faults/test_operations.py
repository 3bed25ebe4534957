"""Faults that operators see: a full disk, a broker that lost its data, a stolen signing key."""

import asyncio
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from deploy.local.parts import service_environment
from deploy.local.ports import SERVICES
from tests.e2e.shop import PASSWORD, Shop, assert_books_add_up
from tests.support.waiting import eventually

PRICE = 700


@contextmanager
def full_disk(shop: Shop) -> Iterator[None]:
    """No service can write another byte to a file: each line of its log fails, as on a disk without space."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    pids = [shop.mesh.pid(name) for name in SERVICES]
    for pid in pids:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, most))
    try:
        yield
    finally:
        for pid in pids:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, most))


async def test_full_disk_of_the_logs_stops_no_saga_and_no_event(shop: Shop) -> None:
    buyers, product = await shop.a_crowd(6), await shop.a_product(price=PRICE, stock=20)
    pids = [shop.mesh.pid(name) for name in SERVICES]
    with full_disk(shop):
        answers = [answer.expect().json for answer in await asyncio.gather(*(b.buy(product) for b in buyers))]
        assert {order["state"] for order in answers} == {"PAID"}
        waiting = (await buyers[0].buy(product, card=None, wait=0)).expect().json
        payable = await buyers[0].until_payable(waiting["id"])
        await shop.sandbox.pay_in_browser(payable["payment"]["clientSecret"])
        await buyers[0].until(waiting["id"], "PAID")
        for service in ("orders", "payments"):
            await eventually(
                lambda service=service: shop.rows(service, "SELECT count(*) FROM outbox"), lambda rows: rows == [(0,)]
            )
    assert pids == [shop.mesh.pid(name) for name in SERVICES], "no process was replaced"
    log, begins = shop.mesh.site.log("orders"), shop.mesh.site.log("orders").stat().st_size
    (await buyers[0].buy(product)).expect()
    assert b"order placed" in await eventually(
        lambda: asyncio.to_thread(log.read_bytes), lambda text: len(text) > begins
    )
    await assert_books_add_up(shop, product)


async def test_stolen_signing_key_is_replaced_within_seconds(shop: Shop) -> None:
    """Through the gateway: new tokens work at once, old ones are refused, sessions go on, and the operator is told."""
    buyer, product = await shop.a_buyer(), await shop.a_product(price=PRICE)
    stolen = shop.rest.as_(buyer.rest.token)  # the buyer's own client would sign in again
    for path in ("/v1/auth/me", "/v1/orders"):
        (await stolen.get(path)).expect()
    old = set(await published(shop))
    command = [sys.executable, "-m", "services.identity", "keys", "replace"]
    environment = {**os.environ, **service_environment(shop.mesh.site, "identity")}
    replacing = await asyncio.create_subprocess_exec(
        *command, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    said, failed = await replacing.communicate()
    assert replacing.returncode == 0, failed.decode()
    assert b"What is left to do" in said

    login = (await shop.rest.post("/v1/auth/login", {"email": buyer.email, "password": PASSWORD})).expect().json
    fresh = replace(buyer, rest=shop.rest.as_(login["accessToken"]))
    assert (await fresh.buy(product)).expect().json["state"] == "PAID"
    for path in ("/v1/auth/me", "/v1/orders"):
        await eventually(lambda path=path: stolen.get(path), lambda answer: answer.status == 401)
    renewed = (await shop.rest.post("/v1/auth/refresh", {"refreshToken": login["refreshToken"]})).expect().json
    (await shop.rest.as_(renewed["accessToken"]).get("/v1/orders")).expect()
    assert not old & set(await published(shop))


async def published(shop: Shop) -> list[str]:
    """The ids of the keys that the gateway publishes."""
    return [key["kid"] for key in (await shop.rest.get("/.well-known/jwks.json")).expect().json["keys"]]
