"""The faults of chaos: what happens to the victim, or to a server, when the victim comes to its point."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.stories import Act
from tests.e2e.clock import leases_are_over, unlocked
from tests.e2e.replica import Replica
from tests.e2e.shop import Shop
from tests.support.waiting import eventually, until

DIES = "dies"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One kind of fault."""

    happens: Callable[[Act, str], Awaitable[None]]
    """Carries the fault out on the victim at its point; returns once the mesh is whole again."""
    share: int
    """How often it is drawn, against the others."""
    stops: bool = True
    """Whether the victim stops at the point, and does not die there."""
    again: bool = False
    """Whether it happens once more, after as many points."""
    victims: frozenset[str] = frozenset({"orders", "payments", "inventory"})


async def _is_started_again(act: Act, victim: str) -> None:
    await leases_are_over(act.shop)
    await act.shop.mesh.restart(victim, timeout=120)


async def _stalls(act: Act, victim: str) -> None:
    """Another process takes the sagas over while the victim stands still; then both work on them."""
    shop = act.shop
    await _stands_still(shop, victim)
    if act.turns_back:
        await act.compensate(await unlocked(shop))
    peer = Replica(shop.mesh.site)
    try:
        await peer.start()
        before = await leases_are_over(shop)

        async def taken_over() -> bool:
            now = await _leases(shop)
            return all(now.get(order_id) != token for order_id, token in before.items())

        await until(taken_over)
        await shop.mesh.kill(victim, signal.SIGCONT)
        await shop.all_parts_answer()
    finally:
        await shop.mesh.kill(victim, signal.SIGCONT)
        await peer.close()


async def _leases(shop: Shop) -> dict[str, int]:
    """The fencing tokens of the sagas that some process carries, by order."""
    rows = await shop.rows("orders", "SELECT order_id::text, fencing_token FROM sagas WHERE NOT paused")
    return {row[0]: row[1] for row in rows}


def _loses(server: str) -> Fault:
    async def happens(act: Act, victim: str) -> None:
        shop = act.shop
        await _stands_still(shop, victim)
        await shop.mesh.kill(server)
        await shop.mesh.kill(victim, signal.SIGCONT)
        await asyncio.gather(shop.mesh.ready(server), shop.mesh.ready(victim))

    return Fault(happens=happens, share=2)


async def _stands_still(shop: Shop, victim: str) -> None:
    stat = Path(f"/proc/{shop.mesh.pid(victim)}/stat")

    async def state() -> str:
        return stat.read_text().rpartition(")")[2].split()[0]

    await eventually(state, lambda now: now == "T")


FAULTS = {
    DIES: Fault(happens=_is_started_again, share=8, stops=False),
    "dies-twice": Fault(happens=_is_started_again, share=3, stops=False, again=True),
    "stalls": Fault(happens=_stalls, share=4, victims=frozenset({"orders"})),
    **{server: _loses(server) for server in ("postgres", "valkey", "nats", "gateway", "sandbox")},
}
