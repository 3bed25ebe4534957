"""A seeded sample of stories, each crossed with a fault and the point at which it happens."""

import asyncio
import contextlib
import itertools
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.chaos.faults import DIES, FAULTS
from tests.chaos.stories import PATIENCE_SECONDS, PRICE, STORIES, Act
from tests.e2e.shop import ENDS, Buyer, Shop, assert_books_add_up, patient
from tests.support.crashing import Trap
from tests.support.waiting import eventually

# How far into a story a process dies at most: about as many points as it passes in one. Orders is the one to be shown.
VICTIMS = {"orders": 20, "payments": 16, "inventory": 6}
_SHARES = (4, 1, 1)
_BUYERS = 12
# Some points come after the orders' ends: events on their way.
_LINGER_SECONDS = 0.3
_NEVER_SECONDS = 600
KNOWN = (
    # Only the fencing token keeps the first worker from confirming what the second one has reversed.
    "overtaken orders:stalls 1 after BatchConfirm",
    # Only the idempotency key keeps the second call from refunding again.
    "refunded_in_parts payments 1 after POST v1/refunds",
    # An order was seen to end before its money was back.
    "compensated payments 1 after commit of charges.reverse",
    # The hold's answer is lost before there is an order.
    "hold_lost orders 1 before BatchReserve",
    # A repeated return must not count twice.
    "cancelled_by_staff inventory 1 after commit of returns.take_back",
    # Money moves without anybody hearing of it.
    "paid payments 1 after POST v1/payment_intents",
)
"""Points that chance rarely meets, at which a guard alone keeps an order right. `CHAOS_AT` plays one of them."""
_KNOWN_EVERY = 4


@dataclass(frozen=True)
class Round:
    """One story, and the fault that happens when a process comes to a point in it."""

    number: int
    story: str
    victim: str
    occurrence: int
    name: str = ""
    """Counts only points so named, where given."""
    fault: str = DIES

    @classmethod
    def at(cls, number: int, point: str) -> "Round":
        """As `Outcome.again` names it: `paid payments 1 after POST v1/payment_intents`, `paid orders:stalls 3`."""
        story, victim, occurrence, *name = point.split(" ", 3)
        victim, _, fault = victim.partition(":")
        return cls(number, story, victim, int(occurrence), "".join(name), fault or DIES)

    @property
    def who(self) -> str:
        """The victim and its fault, as `at` reads them."""
        return self.victim if self.fault == DIES else f"{self.victim}:{self.fault}"

    def __str__(self) -> str:
        return f"{self.number:>4}  {self.story:<20}{self.who:<18}#{self.occurrence:<4}"


def plan(seed: int, rounds: int) -> list[Round]:
    """The rounds of a seed; a longer plan begins like a shorter one. All stories come equally often.

    Every fourth round is one of `KNOWN`, in turn.
    """
    chance = random.Random(seed)
    stories = itertools.chain.from_iterable(chance.sample(sorted(STORIES), len(STORIES)) for _ in itertools.count())
    made = []
    for number in range(1, rounds + 1):
        if number % _KNOWN_EVERY == 2:
            made.append(Round.at(number, KNOWN[(seed + number // _KNOWN_EVERY) % len(KNOWN)]))
            continue
        story = next(stories)
        [victim] = chance.choices(list(VICTIMS), _SHARES)
        [fault] = chance.choices(list(FAULTS), [fault.share for fault in FAULTS.values()])
        if victim not in FAULTS[fault].victims:
            fault = DIES
        made.append(Round(number, story, victim, chance.randint(1, VICTIMS[victim]), fault=fault))
    return made


@dataclass
class Outcome:
    """The result of one round."""

    round: Round
    sprung_at: str = ""
    """The point at which the fault happened; empty where the story ended before it came to that point."""
    passed: list[str] = field(default_factory=list)
    """The points that the victim passed."""
    states: dict[str, str] = field(default_factory=dict)
    """How its orders ended."""
    wrong: str = ""
    seconds: float = 0.0

    @property
    def again(self) -> str:
        """The point of the fault by its name, for `Round.at`: other numbers may change from run to run."""
        if not self.sprung_at:
            return f"{self.round.story} {self.round.who} {self.round.occurrence}"
        return f"{self.round.story} {self.round.who} {self.passed.count(self.sprung_at)} {self.sprung_at}"

    def check_point(self) -> None:
        """Fails if a point was named that the victim did not come to: an old name, for example, proves nothing."""
        assert self.sprung_at or not self.round.name, (
            f"{self.round.victim} passed no '{self.round.name}' #{self.round.occurrence} in this story"
        )

    def __str__(self) -> str:
        at = self.sprung_at or f"no fault, {len(self.passed)} points"
        ended = ", ".join(f"{count} {state}" for state, count in sorted(Counter(self.states.values()).items()))
        return f"{self.round} {at:<50} {self.seconds:5.1f} s  {self.wrong or ended}"


@asynccontextmanager
async def rigged(shop: Shop, victims: Collection[str]) -> AsyncIterator[dict[str, Trap]]:
    """The shop, whose `victims` are services that die where their traps say; as before when the block ends."""
    mesh, traps, were = shop.mesh, {}, {}
    for victim in victims:
        traps[victim] = Trap(mesh.site.run / f"crashing-{victim}")
        part = mesh.alter(victim)
        command = (sys.executable, "-m", "tests.support.crashing", victim, "serve")
        environment = {**part.environment, **traps[victim].environment()}
        were[victim] = mesh.alter(victim, command=command, environment=environment)
    await asyncio.gather(*(mesh.restart(victim, timeout=_NEVER_SECONDS) for victim in victims))
    try:
        await shop.all_parts_answer()
        yield traps
    finally:
        for victim, part in were.items():
            mesh.alter(victim, command=part.command, environment=part.environment)
        await asyncio.gather(*(mesh.restart(victim, timeout=_NEVER_SECONDS) for victim in were))
        await shop.all_parts_answer()


async def played(shop: Shop, rounds: list[Round], report: Callable[[str], None]) -> list[Outcome]:
    """Plays the rounds one after the other, then has the books audited. Each outcome holds its failure."""
    outcomes: list[Outcome] = []
    # The provider may be the one that dies.
    shop = replace(shop, sandbox=replace(shop.sandbox, rest=patient(shop.sandbox.rest)))
    buyers = itertools.cycle(await shop.a_crowd(_BUYERS))
    usual = await shop.a_product(stock=10 * len(rounds), price=PRICE)
    async with rigged(shop, {one.victim for one in rounds}) as traps:
        for one in rounds:
            # All parts have found each other again, and what happens now happens to this story.
            await shop.all_parts_answer()
            await next(buyers).insist(usual, wait=10)
            outcomes.append(await _play(shop, one, traps[one.victim], buyers))
            report(str(outcomes[-1]))
        await _audit(shop, outcomes)
    return outcomes


async def _play(shop: Shop, one: Round, trap: Trap, buyers: Iterator[Buyer]) -> Outcome:
    fault, outcome, began = FAULTS[one.fault], Outcome(one), time.monotonic()
    act = Act(shop, buyers, lambda: trap.arm(one.occurrence, name=one.name, stops=fault.stops))
    shop.mesh.keep_down(one.victim)
    trap.forget()
    acting = asyncio.create_task(_until_ended(act, one.story))
    try:
        if await _springs(trap, acting):
            outcome.sprung_at, outcome.passed = trap.sprung_at, trap.passed
            await fault.happens(act, one.victim)
            if fault.again:
                trap.arm(one.occurrence)
                if await _springs(trap, acting):
                    await fault.happens(act, one.victim)
        else:
            outcome.passed = trap.passed
    finally:
        shop.mesh.keep_up(one.victim)
    assert outcome.sprung_at in ("", *outcome.passed[-1:]), "it died of something else"
    try:
        outcome.states = await acting
        await shop.all_parts_answer()
        await _check(shop, act, outcome)
        outcome.check_point()
    except (Exception, ExceptionGroup) as failure:
        lines = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(failure.__traceback__)]
        outcome.wrong = f"WRONG: {failure!r}"[:500] + f" ({' '.join(lines)})"
    with contextlib.suppress(Exception):
        await shop.sandbox.no_faults()
    outcome.seconds = time.monotonic() - began
    return outcome


async def _springs(trap: Trap, acting: asyncio.Task[dict[str, str]]) -> bool:
    """Whether the trap springs before the story has ended, or just after it."""
    springing = asyncio.create_task(trap.sprung(seconds=_NEVER_SECONDS))
    try:
        await asyncio.wait({acting, springing}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait({springing}, timeout=_LINGER_SECONDS)
        if not springing.done() and trap.disarm():
            return False
        return bool(await springing)
    finally:
        springing.cancel()


async def _until_ended(act: Act, story: str) -> dict[str, str]:
    await asyncio.wait_for(STORIES[story](act), PATIENCE_SECONDS)
    # From here on the provider does its best.
    await act.shop.sandbox.no_faults()
    return await act.ended()


async def _check(shop: Shop, act: Act, outcome: Outcome) -> None:
    """Charged at most once, and kept where the order is paid; each order came to each of its ends once."""
    taken: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    for entry in await shop.sandbox.captured(*outcome.states):
        taken[entry["metadata"]["order_id"]] += 1
        kept[entry["metadata"]["order_id"]] += entry["amount"] - entry["amount_refunded"]
    moves = await _moves(shop, *outcome.states)
    for order_id, state in outcome.states.items():
        assert taken[order_id] <= 1, f"{order_id} was charged {taken[order_id]} times"
        due = act.kept.get(order_id, PRICE if state == "PAID" else 0)
        assert kept[order_id] == due, f"{order_id} is {state}; kept: {kept[order_id]}"
        assert len(moves[order_id]) == len(set(moves[order_id])), f"{order_id} went {moves[order_id]}"
        ends = [move for move, _ in moves[order_id] if move in ENDS]
        assert ends in ([state], ["PAID"], ["PAID", "CANCELLED"], ["FAILED", "PAID"]), (
            f"{order_id} went {moves[order_id]}"
        )
        assert moves[order_id][-1][0] == state, f"{order_id} is {state}, and went {moves[order_id]}"
    for sale_id, units in act.sales.items():
        await eventually(lambda sale_id=sale_id: shop.counters({"id": sale_id}), lambda now, units=units: now == units)


async def _moves(shop: Shop, *order_ids: str) -> dict[str, list[tuple[str, int]]]:
    """The states that each order was brought to, one after the other, and the amount refunded by then."""
    ids = "', '".join(order_ids)
    query = (
        f"SELECT order_id::text, state, refunded_minor FROM order_log WHERE order_id IN ('{ids}')"
        " AND state <> 'PENDING' AND cause NOT LIKE '% begun' ORDER BY id"
    )
    moves: dict[str, list[tuple[str, int]]] = {order_id: [] for order_id in order_ids}
    for order_id, state, refunded in await shop.rows("orders", query):
        moves[order_id].append((state, refunded))
    return moves


async def _audit(shop: Shop, outcomes: list[Outcome]) -> None:
    """Every unit and every cent, over all databases and the provider."""
    try:
        await assert_books_add_up(shop, patience_seconds=20)
    except AssertionError as found:
        for outcome in outcomes:
            if any(order_id in str(found) for order_id in outcome.states):
                outcome.wrong = outcome.wrong or "WRONG: its books do not add up"
        outcomes[-1].wrong = outcomes[-1].wrong or f"WRONG: {found}"[:2000]
