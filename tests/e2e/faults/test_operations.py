"""Faults that operators see: a full disk, a broker that lost its data, a stolen signing key."""

import asyncio
import resource
from collections.abc import Iterator
from contextlib import contextmanager

from deploy.local.ports import SERVICES
from tests.e2e.shop import Shop, assert_books_add_up
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
