"""Stories: events that customers, the provider and the clock bring to orders. Each ends in one way, or one of a few.

Customers are patient: while a part of the shop is unavailable, they retry under the same request id.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from deploy.client import Answer, Json, RestError, new_id
from services.chassis.data.db import connect
from services.orders.domain import Actor
from services.orders.saga import operators
from tests.e2e.clock import time_passes
from tests.e2e.shop import DECLINED, VISA, Buyer, Shop, money, patient
from tests.support.waiting import eventually

BANK_TRANSFER = "pm_usBankAccount_processing"
PRICE = 700
PATIENCE_SECONDS = 60


@dataclass
class Act:
    """One story being played: who is in it, and which end each order may come to."""

    shop: Shop
    buyers: Iterator[Buyer]
    begins: Callable[[], None]
    """Called once: before the first order, or once orders are paid, where what comes later is the story."""
    orders: dict[str, tuple[Buyer, frozenset[str]]] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    """The money of an order that the shop keeps in the end, in minor units, where its state does not imply it."""
    sales: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """Units of a sale that remain, are held, are sold in the end, where the story leaves no choice."""
    turns_back: bool = False
    """Whether an operator compensates the sagas of a process that stands still, while it does."""
    promised: set[str] = field(default_factory=set)
    """Orders that must end `CANCELLED`, whatever else they may come to."""
    _began: bool = False

    def begin(self) -> None:
        """From here on the victim may die."""
        if not self._began:
            self._began = True
            self.begins()

    async def a_sale(self, *, units: int = 5, hold: str = "600s") -> Json:
        return await self.shop.a_sale(units=units, price=PRICE, hold=hold)

    async def order(self, sale: Json, *ends: str, card: str | None = VISA) -> tuple[Buyer, Json]:
        """An order that was placed; it must come to one of these ends."""
        buyer = next(self.buyers)

        async def once() -> Answer:
            return await self.attempt(buyer, sale, *ends, card=card)

        # The hold of a process that died may have expired before the customer's repeat.
        answer = await eventually(once, lambda a: a.reason != "HOLD_ENDED", seconds=PATIENCE_SECONDS)
        return buyer, answer.expect().json

    async def attempt(self, buyer: Buyer, sale: Json, *ends: str, card: str | None = VISA) -> Answer:
        """The same where it may be refused."""
        self.begin()
        answer = await buyer.insist(sale, card=card, wait=0, seconds=PATIENCE_SECONDS)
        if answer.status == 200:
            self.orders[answer.json["id"]] = buyer, frozenset(ends)
        return answer

    async def paid_order(self, sale: Json, *ends: str) -> Json:
        """An order that was paid before anything dies; staff will do something with it."""
        buyer = next(self.buyers)
        order = (await buyer.insist(sale, wait=0)).expect().json
        self.orders[order["id"]] = buyer, frozenset(ends)
        return await buyer.until(order["id"], "PAID")

    async def staff(self, path: str, **body: Any) -> Answer:
        """The answer to what staff want; they are as patient, and ask under one request id."""
        request_id = new_id()
        return await patient(self.shop.staff).post(path, {"requestId": request_id, **body})

    async def refunded(self, order: Json, **body: Any) -> None:
        """Returns once staff have paid an order back, in full or in part."""
        (await self.staff(f"/v1/orders/{order['id']}:refund", **body)).expect()

        async def look() -> Json:
            return (await patient(self.shop.staff).get(f"/v1/orders/{order['id']}")).expect().json

        await eventually(look, lambda now: not now["refunding"], seconds=PATIENCE_SECONDS)

    async def payable(self, sale: Json, *ends: str) -> tuple[Buyer, Json]:
        """An order whose customer can pay in the browser."""
        buyer, order = await self.order(sale, *ends, card=None)

        async def look() -> Json:
            answer = await patient(buyer.rest).get(f"/v1/orders/{order['id']}")
            return answer.expect().json

        ready = lambda found: bool((found.get("payment") or {}).get("clientSecret"))  # noqa: E731
        return buyer, await eventually(look, ready, seconds=PATIENCE_SECONDS)

    async def pay(self, order: Json) -> None:
        """The customer pays in the browser, and tries again until the provider answers."""
        answer = await self.shop.sandbox.pay_in_browser(order["payment"]["clientSecret"])
        # The first try may have succeeded before the provider died.
        has_paid = answer.get("error", {}).get("code") == "payment_intent_unexpected_state"
        assert answer["http"] == 200 or has_paid, answer

    async def compensate(self, order_ids: Iterable[str]) -> None:
        """Has these running sagas turn back, by the command of operators, which needs no process of orders."""
        engine, database = connect(self.shop.mesh.site.database_url("orders"), pool_size=1)
        for order_id in order_ids:
            await operators.compensate(database, uuid.UUID(order_id), Actor("operator:chaos"))
            self.promised.add(order_id)
        await engine.dispose()

    async def ended(self) -> dict[str, str]:
        """The state of every order, once each has come to an end that it may come to."""
        await asyncio.gather(*map(self._end, self.orders))
        return {order_id: (await self._state(order_id)) for order_id in self.orders}

    async def _end(self, order_id: str) -> None:
        def is_end(state: str) -> bool:
            # Looked up each time: a promise may be given while this waits.
            return state in ({"CANCELLED"} if order_id in self.promised else self.orders[order_id][1])

        await eventually(lambda: self._state(order_id), is_end, seconds=PATIENCE_SECONDS)

    async def _state(self, order_id: str) -> str:
        buyer, _ = self.orders[order_id]
        answer = await patient(buyer.rest).get(f"/v1/orders/{order_id}")
        return str(answer.expect().json["state"])


async def paid(act: Act) -> None:
    sale = await act.a_sale()
    await asyncio.gather(*(act.order(sale, "PAID") for _ in range(3)))


async def declined(act: Act) -> None:
    sale = await act.a_sale()
    await asyncio.gather(*(act.order(sale, "FAILED", card=DECLINED) for _ in range(2)))


async def paid_again(act: Act) -> None:
    """After a decline: one whose units went back, and one whose customer is still at it."""
    sale = await act.a_sale()

    async def with_another_card(card: str | None, *cards: str) -> None:
        buyer, order = await act.order(sale, "FAILED" if card else "PAID", card=card)
        if card:
            await buyer.patient().until(order["id"], "FAILED", seconds=PATIENCE_SECONDS)
        act.orders[order["id"]] = buyer, frozenset({"PAID"})
        for method in cards:
            # The process that carries the attempt before may have died: then it is in progress for a moment.
            key = new_id()
            answer = await eventually(
                lambda method=method, key=key: buyer.patient().pay(order, key=key, paymentMethod=method),
                lambda found: found.reason != "PAYMENT_IN_PROGRESS",
                seconds=PATIENCE_SECONDS,
            )
            answer.expect()

    await asyncio.gather(with_another_card(DECLINED, VISA), with_another_card(None, DECLINED, VISA))


async def sold_out(act: Act) -> None:
    """Three want the one unit, and ask until one of them has it."""
    sale, sold = await act.a_sale(units=1), asyncio.Event()

    async def keep_asking() -> Answer:
        buyer = next(act.buyers)

        async def once() -> Answer:
            return await act.attempt(buyer, sale, "PAID")

        # A process that dies between the gate and the database leaves a unit that nobody holds for a moment.
        answer = await eventually(once, lambda a: a.status == 200 or sold.is_set(), seconds=PATIENCE_SECONDS)
        sold.set()
        return answer

    answers = await asyncio.gather(*(keep_asking() for _ in range(3)))
    assert sorted(answer.reason for answer in answers) == ["", "SOLD_OUT", "SOLD_OUT"], [a.text for a in answers]


async def provider_fails(act: Act) -> None:
    """Money moves and the answer is lost; then the provider has troubles of its own."""
    await act.shop.sandbox.faults(drop_after_charge={"next": 1}, error_500={"next": 2}, rate_limit_429={"next": 1})
    sale = await act.a_sale()
    await asyncio.gather(*(act.order(sale, "PAID") for _ in range(2)))
    await act.ended()


async def provider_slow(act: Act) -> None:
    """Slower than a call of payments waits."""
    await act.shop.sandbox.faults(latency_ms={"fixed": 1500, "jitter": 1000})
    sale = await act.a_sale()
    await asyncio.gather(*(act.order(sale, "PAID") for _ in range(2)))
    await act.ended()


async def paid_in_browser(act: Act) -> None:
    sale = await act.a_sale()

    async def pay() -> None:
        _, order = await act.payable(sale, "PAID")
        await act.pay(order)

    await asyncio.gather(pay(), pay())


async def cancelled(act: Act) -> None:
    """By those who have not paid, and by one whose card is just being charged."""
    await act.shop.sandbox.faults(latency_ms={"fixed": 150, "jitter": 150})
    sale = await act.a_sale()

    async def change_of_mind(*ends: str, card: str | None) -> None:
        buyer, order = await act.order(sale, *ends, card=card)
        answer = await buyer.patient().cancel(order["id"])
        assert answer.status == 200 or answer.reason == "WRONG_STATE", answer.text
        if answer.status == 200:  # a promise
            act.orders[order["id"]] = buyer, frozenset({"CANCELLED"})

    await asyncio.gather(
        change_of_mind("CANCELLED", card=None),
        change_of_mind("CANCELLED", card=None),
        change_of_mind("CANCELLED", "PAID", card=VISA),
    )


async def expired(act: Act) -> None:
    sale = await act.a_sale()

    async def walk_away() -> None:
        _, order = await act.order(sale, "EXPIRED", card=None)
        await time_passes(act.shop, order["id"])

    await asyncio.gather(walk_away(), walk_away())


async def paid_late(act: Act) -> None:
    """Nobody is told that it was paid until the hold has ended; there is another unit."""
    await act.shop.sandbox.faults(webhooks={"drop": True})
    sale = await act.a_sale()
    _, order = await act.payable(sale, "PAID")
    await act.pay(order)
    await time_passes(act.shop, order["id"])


async def hold_lost(act: Act) -> None:
    """The same, and another customer waits for the unit. The faster one gets it; the other gets a refund."""
    await act.shop.sandbox.faults(webhooks={"drop": True}, latency_ms={"fixed": 300, "jitter": 0})
    sale, other = await act.a_sale(units=1), next(act.buyers)
    _, order = await act.payable(sale, "PAID", "EXPIRED")
    await act.pay(order)
    await time_passes(act.shop, order["id"])

    async def once() -> bool:
        taken = (await act.attempt(other, sale, "PAID")).status == 200
        return taken or (await act._state(order["id"])) != "PENDING"

    await eventually(once, bool, seconds=PATIENCE_SECONDS)


async def extended(act: Act) -> None:
    """The bank takes longer than the hold."""
    sale = await act.a_sale(hold="4s")
    buyer, order = await act.order(sale, "PAID", "EXPIRED", card=BANK_TRANSFER)

    async def look() -> Json:
        return (await patient(buyer.rest).get(f"/v1/orders/{order['id']}")).expect().json

    def longer(found: Json) -> bool:
        over = datetime.fromisoformat(order["holdExpireTime"]) < datetime.now(UTC)
        return over or found["holdExpireTime"] > order["holdExpireTime"] or found["state"] != "PENDING"

    async def settled() -> bool:
        try:
            await act.shop.sandbox.settle(order["id"])
        except (RestError, RuntimeError):  # the charge has not reached the provider yet, or never will
            return (await look())["state"] != "PENDING"
        return True

    await eventually(look, longer, seconds=PATIENCE_SECONDS)
    await eventually(settled, bool, seconds=PATIENCE_SECONDS)


async def refunded(act: Act) -> None:
    sale = await act.a_sale()
    orders = [await act.paid_order(sale, "REFUNDED") for _ in range(2)]
    act.begin()
    await asyncio.gather(*(act.refunded(order, full=True, restock=True) for order in orders))
    act.sales[sale["id"]] = (5, 0, 0)


async def refunded_in_parts(act: Act) -> None:
    """One until nothing is left, and its unit comes back; the other keeps something, and the customer the unit."""
    # Without webhooks, only the same idempotency key keeps a repeat from refunding twice.
    await act.shop.sandbox.faults(drop_after_refund={"next": 1}, webhooks={"drop": True})
    sale = await act.a_sale()
    whole, some = await act.paid_order(sale, "REFUNDED"), await act.paid_order(sale, "PARTIALLY_REFUNDED")
    act.begin()

    async def first_some() -> None:
        for units in (300, 100):
            await act.refunded(some, amount=money(units))

    async def then_the_rest() -> None:
        await act.refunded(whole, amount=money(300))
        await act.refunded(whole, full=True, restock=True)

    await asyncio.gather(first_some(), then_the_rest())
    act.kept[some["id"]] = PRICE - 400
    act.sales[sale["id"]] = (4, 0, 1)


async def cancelled_by_staff(act: Act) -> None:
    sale = await act.a_sale()
    orders = [await act.paid_order(sale, "CANCELLED") for _ in range(2)]
    act.begin()
    answers = await asyncio.gather(*(act.staff(f"/v1/orders/{order['id']}:cancel") for order in orders))
    assert {answer.status for answer in answers} == {200}, [answer.text for answer in answers]
    act.sales[sale["id"]] = (5, 0, 0)


async def compensated(act: Act) -> None:
    """By an operator: one that was paid and nobody was told, and one whose card is just being charged."""
    await act.shop.sandbox.faults(webhooks={"drop": True}, latency_ms={"fixed": 150, "jitter": 150})
    sale = await act.a_sale()

    async def turned_back(order: Json) -> None:
        answer = await act.staff(f"/v1/admin/sagas/{order['id']}:compensate", reason="the provider is broken")
        # Not found where it has ended: as it was asked to, or before that.
        assert answer.status == 200 or answer.reason == "SAGA_NOT_FOUND", answer.text

    async def after_payment() -> None:
        _, order = await act.payable(sale, "CANCELLED")
        await act.pay(order)
        await turned_back(order)

    async def amid_charge() -> None:
        await turned_back((await act.order(sale, "CANCELLED", "PAID"))[1])

    await asyncio.gather(after_payment(), amid_charge())


async def overtaken(act: Act) -> None:
    """An operator turns orders back whose worker stands still, and another worker reverses them; then both go on."""
    await act.shop.sandbox.faults(webhooks={"drop": True}, latency_ms={"fixed": 300, "jitter": 0})
    act.turns_back = True
    sale = await act.a_sale()
    await asyncio.gather(*(act.order(sale, "PAID") for _ in range(2)))


STORIES: dict[str, Callable[[Act], Awaitable[None]]] = {
    story.__name__: story
    for story in (
        paid, declined, paid_again, sold_out, provider_fails, provider_slow, paid_in_browser, cancelled, expired,
        paid_late, hold_lost, extended, refunded, refunded_in_parts, cancelled_by_staff, compensated,
        overtaken,
    )
}  # fmt: skip
