"""All that can happen to one order, in every order of up to four steps: against a model of its possible ends.

Client, provider, buyer and clock know nothing of each other. Whatever comes first, twice, or too late, money and stock
end as one thing. Every sequence has an order of its own; all of them run side by side, on one sale.
"""

import asyncio
import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import pytest

from tests.e2e.clock import time_passes
from tests.e2e.shop import DECLINED, ENDS, VISA, Buyer, Shop, assert_books_add_up
from tests.e2e.shopping.test_webhooks import deliver
from tests.support import WHOLE
from tests.support.rest import Json, new_id
from tests.support.waiting import eventually

STEPS = ("pay", "webhook", "cancel", "expire", "retry")
# All 780 sequences in `make prove`; else those of up to two steps, and some of the longer ones.
_LONGEST, _SOME = 4, 70
_ALL = tuple(itertools.chain(*(itertools.product(STEPS, repeat=n) for n in range(1, _LONGEST + 1))))
_SHORTER = len(STEPS) + len(STEPS) ** 2
SEQUENCES = _ALL if WHOLE else (*_ALL[:_SHORTER], *random.Random(1).sample(_ALL[_SHORTER:], _SOME))
PRICE = 700
_BUYERS, _AT_ONCE, _ENDS_SECONDS, _WRONG_MOST = 20, 64, 20, 20

# --- what may happen ---


@dataclass(frozen=True)
class World:
    """How one order may stand, behind what can be seen of it."""

    money: str = "open"
    """At the provider: `open`, then for ever `moved` or `closed`."""
    overdue: bool = False
    """The hold's time is up."""
    asked: str = ""
    """The end that was asked for. `EXPIRED` comes too late once the money has moved; `CANCELLED` never does."""
    state: str = "PENDING"

    def by_itself(self) -> Iterable["World"]:
        """The worlds that may follow without any further step, at any moment."""
        if self.state != "PENDING":
            return
        if self.overdue and not self.asked:
            yield replace(self, asked="EXPIRED")
        if self.asked == "CANCELLED" and self.money == "moved":
            yield replace(self, money="closed", state="CANCELLED")  # refunded
        elif self.money == "moved":
            yield replace(self, state="PAID")
        elif self.money == "closed":
            yield replace(self, state=self.asked)
        elif self.asked:
            yield replace(self, money="closed")

    def paid(self) -> tuple["World", str]:
        """The world after the buyer's payment, with the provider's answer."""
        return (replace(self, money="moved"), "succeeded") if self.money == "open" else (self, "refused")

    def asked_to_end(self) -> "World":
        """The world after the buyer's cancellation, which comes too late for an order that has ended."""
        return replace(self, asked="CANCELLED") if self.state == "PENDING" else self

    def out_of_time(self) -> "World":
        """The world after the end of the hold."""
        return replace(self, overdue=True) if self.state == "PENDING" else self


Worlds = frozenset[World]
AT_FIRST = frozenset({World()})


def in_time(worlds: Iterable[World]) -> Worlds:
    """These, and all that they may have become meanwhile."""
    found = set(worlds)
    left = list(found)
    while left:
        new = set(left.pop().by_itself()) - found
        found |= new
        left.extend(new)
    return frozenset(found)


def observed(worlds: Worlds, step: str, answer: str) -> Worlds:
    """The worlds in which `step` is answered so; none where that must not be."""
    now = in_time(worlds)
    if step == "pay":
        return frozenset(after for after, said in (world.paid() for world in now) if said == answer)
    if step == "cancel":  # the answer says what has come of it in a while
        later = in_time(world.asked_to_end() for world in now)
        states = ("PAID", "EXPIRED") if answer == "WRONG_STATE" else {answer} & {"CANCELLED", "PENDING"}
        return frozenset(world for world in later if world.state in states)
    if step == "expire":
        return frozenset(world.out_of_time() for world in now)
    if step == "retry":
        return frozenset(world for world in now if world.state == answer)
    return now


def ends(worlds: Worlds) -> set[str]:
    """The states in which an order may be left that nothing happens to any more."""
    return {world.state for world in in_time(worlds) if not list(world.by_itself())}


def allows(history: Iterable[tuple[str, str]], end: str) -> bool:
    """Whether an order may have had these answers, and come to this end."""
    worlds = AT_FIRST
    for step, answer in history:
        worlds = observed(worlds, step, answer)
    return end in ends(worlds)


@pytest.mark.parametrize(
    ("history", "end"),
    [
        ([], "PENDING"),
        ([("pay", "succeeded")], "PAID"),
        ([("pay", "succeeded"), ("cancel", "WRONG_STATE")], "PAID"),
        ([("cancel", "CANCELLED"), ("pay", "refused"), ("retry", "CANCELLED")], "CANCELLED"),
        ([("expire", ""), ("pay", "succeeded"), ("cancel", "WRONG_STATE")], "PAID"),
        ([("expire", ""), ("pay", "refused"), ("cancel", "WRONG_STATE")], "EXPIRED"),
        ([("expire", ""), ("cancel", "CANCELLED")], "CANCELLED"),
        ([("pay", "succeeded"), ("cancel", "CANCELLED")], "CANCELLED"),
        ([("pay", "succeeded"), ("expire", ""), ("cancel", "PENDING")], "CANCELLED"),
    ],
)
def test_the_model_allows_what_may_be(history: list[tuple[str, str]], end: str) -> None:
    assert allows(history, end)


@pytest.mark.parametrize(
    ("history", "end"),
    [
        ([], "CANCELLED"),
        ([("pay", "refused")], "PENDING"),
        ([("pay", "succeeded")], "PENDING"),
        ([("pay", "succeeded"), ("pay", "succeeded")], "PAID"),
        ([("pay", "succeeded"), ("expire", "")], "EXPIRED"),
        ([("pay", "succeeded"), ("cancel", "CANCELLED")], "PAID"),
        ([("cancel", "PENDING")], "EXPIRED"),
        ([("cancel", "CANCELLED"), ("pay", "succeeded")], "CANCELLED"),
        ([("cancel", "CANCELLED"), ("pay", "succeeded")], "PAID"),
        ([("cancel", "CANCELLED"), ("retry", "PENDING")], "CANCELLED"),
        ([("cancel", "WRONG_STATE")], "PAID"),
        ([("expire", "")], "PENDING"),
        ([("expire", ""), ("retry", "EXPIRED"), ("pay", "succeeded")], "PAID"),
        ([("expire", ""), ("pay", "refused")], "PAID"),
        ([("expire", ""), ("retry", "CANCELLED")], "CANCELLED"),
    ],
)
def test_the_model_refuses_what_must_not_be(history: list[tuple[str, str]], end: str) -> None:
    assert not allows(history, end)


# --- what does happen ---


class Post:
    """The provider's events; the provider itself delivers none here."""

    def __init__(self, shop: Shop) -> None:
        self._shop, self._reading = shop, asyncio.Lock()
        self._events: dict[str, list[Json]] = defaultdict(list)
        self._newest = ""

    async def of(self, intent: str) -> list[Json]:
        """All events of a payment so far, newest first, as they would come out of order."""
        async with self._reading:
            await self._read()
        return list(reversed(self._events[intent]))

    async def _read(self) -> None:
        fresh: list[Json] = []
        after = ""
        while True:
            page = (await self._shop.sandbox.get(f"/v1/events?limit=100{after}"))["data"]
            known = [event["id"] for event in page]
            if self._newest in known:
                page = page[: known.index(self._newest)]
            fresh.extend(page)
            if len(page) < 100:
                break
            after = f"&starting_after={page[-1]['id']}"
        for event in reversed(fresh):
            self._newest = event["id"]
            subject = event["data"]["object"]
            self._events[subject.get("payment_intent") or subject["id"]].append(event)


@dataclass
class Story:
    """One order, and what happened to it."""

    shop: Shop
    post: Post
    sale: Json
    buyer: Buyer
    steps: tuple[str, ...]
    request_id: str = field(default_factory=new_id)
    order: Json = field(default_factory=dict)
    history: list[tuple[str, str]] = field(default_factory=list)
    worlds: Worlds = AT_FIRST
    wrong: list[str] = field(default_factory=list)

    async def run(self) -> None:
        self.order = await self._place()
        for step in self.steps:
            answer = await getattr(self, f"_{step}")()
            self.history.append((step, answer))
            self.worlds = observed(self.worlds, step, answer)
            if not self.worlds:
                self.wrong.append(f"{step} was answered {answer!r}")
                return

    async def deliver_all(self) -> None:
        """The provider's events, each again where it was delivered before."""
        for event in await self.post.of(self._secret.partition("_secret_")[0]):
            (await deliver(self.shop, event)).expect()

    async def check_end(self) -> None:
        """The order as it is left."""
        if self.wrong:
            return
        wanted = ends(self.worlds)
        try:
            self.order = await self.buyer.until(self.order["id"], *wanted, seconds=_ENDS_SECONDS)
        except AssertionError:
            state = (await self.buyer.order(self.order["id"]))["state"]
            self.wrong.append(f"it should become {' or '.join(sorted(wanted))}, and is {state}")

    @property
    def _secret(self) -> str:
        return str(self.order["payment"]["clientSecret"])

    async def _place(self) -> Json:
        answer = await self.buyer.buy(self.sale, card=None, wait=0, request_id=self.request_id)
        return await self.buyer.until_payable(answer.expect().json["id"])

    async def _pay(self) -> str:
        """The buyer's second card is the good one, so there are events of several kinds."""
        await self.shop.sandbox.pay_in_browser(self._secret, DECLINED)
        answer = await self.shop.sandbox.pay_in_browser(self._secret, VISA)
        if answer["http"] == 200:
            return str(answer["status"])
        return "refused" if answer["error"]["code"] == "payment_intent_unexpected_state" else str(answer)

    async def _webhook(self) -> str:
        await self.deliver_all()
        return ""

    async def _cancel(self) -> str:
        answer = await self.buyer.cancel(self.order["id"])
        return str(answer.json["state"]) if answer.status == 200 else answer.reason

    async def _expire(self) -> str:
        await time_passes(self.shop, self.order["id"])
        return ""

    async def _retry(self) -> str:
        answer = await self.buyer.buy(self.sale, card=None, wait=0, request_id=self.request_id)
        again = answer.expect().json
        return str(again["state"]) if again["id"] == self.order["id"] else f"another order, {again['id']}"

    def __str__(self) -> str:
        steps = " → ".join(f"{step} {answer}".rstrip() for step, answer in self.history)
        return f"{' '.join(self.steps)}\n    {self.order.get('id')}: {steps}\n    {'; '.join(self.wrong)}"


@pytest.mark.proof
async def test_whatever_happens_to_an_order_in_any_order_it_ends_as_one_thing(shop: Shop) -> None:
    await shop.sandbox.faults(webhooks={"drop": True})
    # Each buyer lives many stories, and leaves the holds of some unpaid.
    sale = await shop.a_sale(units=len(SEQUENCES), price=PRICE, abandonedHoldLimit=0)
    crowd = await shop.a_crowd(_BUYERS)
    post = Post(shop)
    stories = [
        Story(shop, post, sale, buyer.patient(), steps)
        for steps, buyer in zip(SEQUENCES, itertools.cycle(crowd), strict=False)
    ]  # fmt: skip
    some = asyncio.Semaphore(_AT_ONCE)

    async def live(story: Story) -> None:
        async with some:
            if len(wrong(stories)) >= _WRONG_MOST:
                return  # the first failures are enough to show it
            try:
                await story.run()
                await story.deliver_all()  # in the end they come, and once more where they came before
                await story.check_end()
            except Exception as failure:
                story.wrong.append(repr(failure)[:300])

    await asyncio.gather(*map(live, stories))
    await compare_with_books(shop, stories)
    if wrong(stories):
        pytest.fail("\n".join(["These are not as the model says:", *map(str, wrong(stories)[:_WRONG_MOST])]))

    states = Counter(story.order["state"] for story in stories)
    counters = (len(stories) - states["PAID"] - states["PENDING"], states["PENDING"], states["PAID"])
    await eventually(lambda: shop.counters(sale), lambda found: found == counters)
    await assert_books_add_up(shop, sale)
    for story in stories:
        if story.order["state"] == "PENDING":
            (await story.buyer.cancel(story.order["id"])).expect()


def wrong(stories: list[Story]) -> list[Story]:
    """Those whose order did not do as the model says."""
    return [story for story in stories if story.wrong]


async def compare_with_books(shop: Shop, stories: list[Story]) -> None:
    """Money is kept, and units are sold, where the order is `PAID` and nowhere else; only who waits holds any."""
    by_id = {story.order["id"]: story for story in stories if story.order and not story.wrong}
    kept: Counter[str] = Counter()
    for entry in await shop.sandbox.captured(*by_id):
        kept[entry["metadata"]["order_id"]] += entry["amount"] - entry["amount_refunded"]
    ids = "', '".join(by_id)
    holds = dict(await shop.rows("inventory", f"SELECT id::text, state FROM reservations WHERE id IN ('{ids}')"))
    # Sold a moment before the cancellation, and taken back.
    returned = f"SELECT reservation_id::text, 'RETURNED' FROM returns WHERE reservation_id IN ('{ids}')"
    holds |= dict(await shop.rows("inventory", returned))
    ends_logged = Counter(
        order_id
        for (order_id,) in await shop.rows(
            "orders",
            f"SELECT order_id::text FROM order_log WHERE order_id IN ('{ids}') AND state IN {ENDS!r}",
        )
    )
    wanted = {"PAID": {"CONFIRMED"}, "PENDING": {"HELD"}, "CANCELLED": {"RELEASED", "EXPIRED", "RETURNED"}}
    for order_id, story in by_id.items():
        state = story.order["state"]
        if kept[order_id] != (PRICE if state == "PAID" else 0):
            story.wrong.append(f"it is {state}, and the provider keeps {kept[order_id]}")
        if holds.get(order_id) not in wanted.get(state, {"RELEASED", "EXPIRED"}):
            story.wrong.append(f"it is {state}, and its units are {holds.get(order_id)}")
        if ends_logged[order_id] != (state != "PENDING"):
            story.wrong.append(f"it is {state}, and its log has {ends_logged[order_id]} ends")
