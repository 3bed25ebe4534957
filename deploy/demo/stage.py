"""Prepares the sale: a product with stock, customers with accounts, and a flash sale that is live."""

import asyncio
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from deploy.client import Rest, User, shop
from deploy.demo.options import PER_CUSTOMER, Options
from deploy.demo.tally import Tally

PRICE_MINOR, SALE_PRICE_MINOR, CURRENCY = 4999, 1999, "USD"
# Hashing a password keeps a core of identity busy; more concurrent sign-ups would only wait there.
_SIGN_UPS_AT_ONCE = 16
_SALE_LASTS = timedelta(minutes=30)


@dataclass(frozen=True)
class Stage:
    """Everything the rush needs."""

    product_id: str
    sale_id: str
    buyers: list[User]


async def build(rest: Rest, staff: Rest, options: Options, tally: Tally) -> Stage:
    """Creates the product, the customers, and the sale, which is live at once. Raises `RestError`."""
    run = secrets.token_hex(4)
    tally.begin("stocking up")
    product = await shop.create_product(
        staff, price=shop.money(PRICE_MINOR, CURRENCY), stock=options.units, sku=f"DEMO-{run}",
        name="Stampede demo sneaker", description="Sold by the hundred, wanted by the thousand.", category="demo",
    )  # fmt: skip
    password = secrets.token_urlsafe(16)
    buyers = [User(f"buyer-{number}-{run}@demo.example", password) for number in range(options.buyers)]
    await _sign_up(rest, buyers, tally)
    tally.begin("opening the sale")
    sale = await shop.create_sale(
        staff, product, title="Stampede demo", units=options.units, price=shop.money(SALE_PRICE_MINOR, CURRENCY),
        limit=PER_CUSTOMER, lasts=_SALE_LASTS,
    )  # fmt: skip
    return Stage(product["id"], sale["id"], buyers)


async def _sign_up(rest: Rest, buyers: list[User], tally: Tally) -> None:
    tally.begin("signing up", len(buyers), "buyers")

    async def work(waiting: Iterator[User]) -> None:
        for buyer in waiting:
            await shop.sign_up(rest, buyer)
            tally.done += 1

    waiting = iter(buyers)
    async with asyncio.TaskGroup() as group:
        for _ in range(_SIGN_UPS_AT_ONCE):
            group.create_task(work(waiting))
