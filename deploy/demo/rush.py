"""The rush: the attempts in their order, and the orders that result."""

import asyncio
import contextlib
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import aiohttp

from deploy.client import Answer, Json, Rest, RestError, User, new_id
from deploy.demo.options import PER_CUSTOMER, Options
from deploy.demo.stage import Stage
from deploy.demo.tally import Tally

GOOD_CARD, BAD_CARD = "pm_card_visa", "pm_card_chargeDeclined"
_LOOKS_AT_ONCE = 8
_LOOK_SECONDS = 0.3
_REOPEN_SECONDS = 0.5
_SETTLE_SECONDS = 120.0
_WAVES_MOST = 20


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt to buy one unit."""

    buyer: int
    card: str


def cards(percent: float, generator: random.Random) -> Iterator[str]:
    """Endless cards, of which `percent` are declined; these are spread evenly, so that even few attempts have some."""
    share, owed = percent / 100, generator.random()
    while True:
        owed += share
        yield BAD_CARD if owed >= 1 else GOOD_CARD
        owed -= owed >= 1


def plan(options: Options) -> list[Attempt]:
    """All attempts in their order; the same for the same seed.

    A few greedy customers make all of their attempts first, so that the customer limit applies while units are left.
    All others come in random order.
    """
    generator = random.Random(options.seed)  # noqa: S311 - to be repeatable
    buyers = list(range(options.buyers))
    generator.shuffle(buyers)
    turns = [buyers[number % options.buyers] for number in range(options.attempts)]
    greedy = set(buyers[: min(max(options.buyers // 100, 1), max(options.units // (4 * PER_CUSTOMER), 1))])
    first = [buyer for buyer in turns if buyer in greedy]
    others = [buyer for buyer in turns if buyer not in greedy]
    generator.shuffle(first)
    generator.shuffle(others)
    pay = cards(options.decline_percent, generator)
    return [Attempt(buyer, next(pay)) for buyer in (*first, *others)]


class Rush:
    """Sends attempts, and follows the orders that result."""

    def __init__(self, rest: Rest, staff: Rest, stage: Stage, options: Options, tally: Tally) -> None:
        """`staff` reads orders over connections of its own, so that customers' requests do not delay it."""
        self._rest, self._staff, self._stage, self._options, self._tally = rest, staff, stage, options, tally
        self._pending: dict[str, User] = {}

    async def run(self) -> None:
        """Sends all attempts, then second chances, and returns when every order has ended."""
        watching = asyncio.create_task(self._watch_sale())
        following = asyncio.create_task(self._follow_orders())
        try:
            self._tally.begin("rush", self._options.attempts, "attempts")
            await self._send(plan(self._options))
            self._tally.rush_seconds = time.monotonic() - self._tally.began
            await self._settle("orders settle")
            await self._second_chances()
        finally:
            for task in (watching, following):
                task.cancel()
            await asyncio.gather(watching, following, return_exceptions=True)

    async def _send(self, attempts: Sequence[Attempt]) -> None:
        waiting = iter(attempts)
        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._options.connections, len(attempts))):
                group.create_task(self._buy(waiting))

    async def _buy(self, waiting: Iterable[Attempt]) -> None:
        for attempt in waiting:
            customer = self._stage.buyers[attempt.buyer]
            answer = await self._rest.as_(customer).post("/v1/orders", self._order(attempt))
            self._count(answer, customer)

    def _order(self, attempt: Attempt) -> Json:
        return {
            "requestId": new_id(),
            "lines": [{"productId": self._stage.product_id, "quantity": 1, "flashSaleId": self._stage.sale_id}],
            "paymentMethod": attempt.card,
        }

    def _count(self, answer: Answer, customer: User) -> None:
        tally = self._tally
        tally.done += 1
        tally.latencies.append(answer.seconds)
        if not answer.ok:
            tally.unanswered += answer.status == 0 or answer.status >= 500
            tally.refused[answer.reason or f"HTTP_{answer.status}"] += 1
            return
        tally.placed += 1
        tally.order_latencies.append(answer.seconds)
        if tally.placed == self._options.units:
            tally.sold_out_seconds = time.monotonic() - tally.began
        self._pending[answer.json["id"]] = customer
        tally.pending = len(self._pending)

    async def _settle(self, phase: str) -> None:
        """Waits until every order has ended, for at most two minutes."""
        self._tally.begin(phase, len(self._pending), "orders")
        deadline = time.monotonic() + _SETTLE_SECONDS
        while self._pending and time.monotonic() < deadline:
            self._tally.done = max(self._tally.of - len(self._pending), 0)
            await asyncio.sleep(0.05)

    async def _second_chances(self) -> None:
        """Offers the units of declined cards to customers who have none."""
        if self._options.attempts < self._options.units:
            return  # units are left anyway
        generator = random.Random(self._options.seed + 1)  # noqa: S311 - to be repeatable
        pay = cards(self._options.decline_percent, generator)
        for _ in range(_WAVES_MOST):
            sale = (await self._staff.get(f"/v1/flash-sales/{self._stage.sale_id}")).expect().json
            losers = [i for i, buyer in enumerate(self._stage.buyers) if buyer.email not in self._tally.paid]
            if (sale["remaining"] == 0 and sale["held"] == 0) or not losers:
                return
            wave = generator.sample(losers, min(len(losers), sale["remaining"]))
            self._tally.second_chances += len(wave)
            self._tally.second_waves += bool(wave)
            self._tally.begin("second chance", len(wave), "attempts")
            await self._send([Attempt(buyer, next(pay)) for buyer in wave])
            await self._settle("orders settle")
            if not wave:
                await asyncio.sleep(1.0)  # units are still held

    async def _watch_sale(self) -> None:
        now, path = self._tally.sale, f"/v1/flash-sales/{self._stage.sale_id}:watch"
        while True:  # a stream that broke is opened again
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError, RestError):
                async with self._staff.watching(path) as messages:
                    async for sale in messages:
                        now.messages += 1
                        now.state = sale.get("state", "")
                        now.remaining, now.held, now.sold = sale["remaining"], sale["held"], sale["sold"]
            await asyncio.sleep(_REOPEN_SECONDS)

    async def _follow_orders(self) -> None:
        slots = asyncio.Semaphore(_LOOKS_AT_ONCE)

        async def look(order_id: str) -> None:
            async with slots:
                answer = await self._staff.get(f"/v1/orders/{order_id}")
            if answer.ok and answer.json["state"] != "PENDING":
                self._ended(order_id, answer.json)

        while True:
            await asyncio.gather(*(look(order_id) for order_id in list(self._pending)))
            await asyncio.sleep(_LOOK_SECONDS)

    def _ended(self, order_id: str, order: dict[str, str]) -> None:
        customer = self._pending.pop(order_id)
        self._tally.pending = len(self._pending)
        if order["state"] == "PAID":
            self._tally.paid[customer.email] += 1
        else:
            self._tally.ended[order.get("stateReason") or order["state"]] += 1
