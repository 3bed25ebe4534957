"""What must be there before the rush: a product, its stock, customers with accounts, and a sale."""

import asyncio
import secrets
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from deploy.demo.options import PER_CUSTOMER, Options
from deploy.demo.shop import Customer, Shop
from deploy.demo.tally import Tally

PRICE_MINOR, SALE_PRICE_MINOR, CURRENCY = 4999, 1999, "USD"
ADMIN_EMAIL = "admin@stampede.local"
# Hashing a password keeps a core of identity busy; more at once would only wait there.
_SIGN_UPS_AT_ONCE = 16
_SALE_MINUTES = 30


@dataclass
class Stage:
    """Everything the rush needs."""

    admin: Customer
    product_id: str
    buyers: list[Customer]
    sale_id: str = ""


async def build(shop: Shop, admin_password: str, options: Options, tally: Tally) -> Stage:
    """Makes a product with stock, and customers who are signed in. Raises `CannotRun`."""
    tally.begin("stocking up")
    run = secrets.token_hex(4)
    admin = Customer(ADMIN_EMAIL, admin_password)
    await shop.sign_in(admin)
    product = await shop.must(
        "POST",
        "/v1/products",
        {
            "sku": f"DEMO-{run}",
            "name": "Stampede demo sneaker",
            "description": "Sold by the hundred, wanted by the thousand.",
            "category": "demo",
            "price": _money(PRICE_MINOR),
            "requestId": str(uuid.uuid4()),
        },
        by=admin,
    )
    stock = {"onHand": options.units, "reason": "demo", "requestId": str(uuid.uuid4())}
    await shop.must("PUT", f"/v1/stock/{product['id']}", stock, by=admin)
    password = secrets.token_urlsafe(16)
    buyers = [Customer(f"buyer-{number}-{run}@demo.example", password) for number in range(options.buyers)]
    await _sign_up(shop, buyers, tally)
    return Stage(admin, product["id"], buyers)


async def _sign_up(shop: Shop, buyers: list[Customer], tally: Tally) -> None:
    tally.begin("signing up", len(buyers), "buyers")

    async def work(waiting: Iterator[Customer]) -> None:
        for buyer in waiting:
            account = {"email": buyer.email, "password": buyer.password, "requestId": str(uuid.uuid4())}
            await shop.must("POST", "/v1/auth/register", account)
            await shop.sign_in(buyer)
            tally.done += 1

    waiting = iter(buyers)
    async with asyncio.TaskGroup() as group:
        for _ in range(_SIGN_UPS_AT_ONCE):
            group.create_task(work(waiting))


async def open_sale(shop: Shop, stage: Stage, options: Options, tally: Tally) -> None:
    """Puts all units into a sale that is live at once. Raises `CannotRun`."""
    tally.begin("opening the sale")
    end = datetime.now(UTC) + timedelta(minutes=_SALE_MINUTES)
    sale = await shop.must(
        "POST",
        "/v1/flash-sales",
        {
            "productId": stage.product_id,
            "title": "Stampede demo",
            "salePrice": _money(SALE_PRICE_MINOR),
            "allocation": options.units,
            "perCustomerLimit": PER_CUSTOMER,
            "endTime": end.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "requestId": str(uuid.uuid4()),
        },
        by=stage.admin,
    )
    stage.sale_id = sale["id"]


def _money(minor: int) -> dict[str, str]:
    return {"currencyCode": CURRENCY, "minorUnits": str(minor)}
