"""Rows about payments alone: the cost of a charge, its calls to the provider, and the webhooks that follow.

An order that costs nothing takes the same way as a paid one, without payments: the difference is the cost of a charge,
its webhook and its event included. Work that the mesh does by the clock, with or without orders, counts for neither.
"""

import json
import time

from deploy.client import Json, Rest, new_id
from deploy.client.shop import money
from sandbox.stripe.notices import signature
from tests.bench.load.generator import Job
from tests.bench.measure import order_costs
from tests.bench.measure.jobs import Pids, cpu_seconds, idle_cores, measure, wait_until_idle
from tests.bench.mesh import Baseline
from tests.bench.report import Verdict, against_e, median_pair
from tests.bench.rows.paying import PAID, PayingRows
from tests.bench.shop import PRICE, Shop

CHARGE_US_MAX = 900
WEBHOOK_OF_E = 0.9
_FREE, _WEBHOOK = "order for nothing", "webhook"
_PAIRS = 3
_CONNECTIONS = 64
_INTENTS = 100


async def charges(rows: PayingRows, shop: Shop, *, pairs: int = _PAIRS, idle_seconds: float = 10.0) -> list[Verdict]:
    """Measure paid orders beside orders that cost nothing; the sandbox's own work does not count.

    No other payment may be open: the reconciler asks the provider about those that wait for their customer.
    """
    for name, price in ((PAID, PRICE), (_FREE, money(0))):
        await rows.pay(name, price)  # warms up
    await wait_until_idle(rows.pids)
    idle = await idle_cores(_measured(rows), idle_seconds)
    costs, before, orders = list[tuple[float, float]](), await order_costs.provider_calls(shop.site), 0
    for _ in range(pairs):
        free, _ = await _cost(rows, _FREE, money(0), idle)
        paid, made = await _cost(rows, PAID, PRICE, idle)
        costs.append((paid - free, paid))
        orders += made
    calls = await order_costs.provider_calls(shop.site) - before
    cost, paid = sorted(costs)[pairs // 2]
    more = f"{cost / paid:.0%} of a paid order; the mesh alone uses {idle:.2f} cores"
    each, counted = calls.total() / orders, ", ".join(f"{count:,} x {name}" for name, count in calls.most_common())
    return [
        Verdict("CPU of payments, a charged order", f"{cost:,.0f} µs", f"at most {CHARGE_US_MAX} µs",
                cost <= CHARGE_US_MAX, more),
        Verdict("calls to the provider, a charged order", f"{each:.2f}", "1", calls.total() == orders, counted),
    ]  # fmt: skip


async def _cost(rows: PayingRows, name: str, price: Json, idle: float) -> tuple[float, int]:
    """Return CPU µs of an order, with all that follows it, above the cores that the mesh uses alone; and the orders."""
    clock, before = time.monotonic(), _without_sandbox(rows)
    row = await rows.pay(name, price)
    await wait_until_idle(rows.pids, above=idle)
    seconds = _without_sandbox(rows) - before - idle * (time.monotonic() - clock)
    made = row.result.answers["200"]
    return seconds / made * 1e6, made


def _without_sandbox(rows: PayingRows) -> float:
    return sum(cpu_seconds(_measured(rows)).values())


def _measured(rows: PayingRows) -> Pids:
    return {part: pid for part, pid in rows.pids.items() if part != "sandbox"}


async def webhooks(e: Baseline, shop: Shop, rows: PayingRows, *, requests: int, pairs: int = _PAIRS) -> Verdict:
    """Measure events of paid orders, each new and signed: verified, stored, answered."""
    intents = await _intents(shop)
    measured = []
    for _ in range(pairs):
        await wait_until_idle(rows.pids)
        baseline = await e.measure(connections=_CONNECTIONS, requests=requests)
        measured.append((await measure(_WEBHOOK, _job(shop, intents, requests), rows.pids), baseline))
    row, baseline = median_pair(measured)
    return against_e(row, baseline, WEBHOOK_OF_E, row.others)


async def _intents(shop: Shop) -> list[Json]:
    """Return intents of paid orders, as the provider shows them."""
    async with Rest.open(f"http://127.0.0.1:{shop.site.ports.sandbox}", connections=1) as rest:
        answer = await rest.as_(shop.site.secrets["stripe/key"]).get("/v1/payment_intents", limit=_INTENTS)
    return [intent for intent in answer.expect().json["data"] if intent["status"] == "succeeded"]


def _job(shop: Shop, intents: list[Json], requests: int) -> Job:
    now, secret = int(time.time()), shop.site.secrets["stripe/webhook"]
    bodies = [
        json.dumps({
            "id": f"evt_{new_id()}", "object": "event", "type": "payment_intent.succeeded", "created": now,
            "livemode": False, "data": {"object": intents[number % len(intents)]},
        })
        for number in range(requests)
    ]  # fmt: skip
    headers = [f"stripe-signature: {signature(secret, body.encode(), now)}" for body in bodies]
    return Job(shop.site.ports.gateway, "/v1/webhooks/stripe", bodies, [], _CONNECTIONS, requests, headers)
