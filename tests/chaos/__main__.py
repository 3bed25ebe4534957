"""Kill or stop processes at seeded points of orders that end in every way there is, and see that each ends right.

CHAOS_SEED (default: a new one, which is printed), CHAOS_ROUNDS (default 60). Or one story with a fault at one point, as
a failure names it: CHAOS_AT='paid payments 1 after POST v1/payment_intents', played CHAOS_ROUNDS times (default 1). The
victim dies there; `orders:stalls` has it stand still while another process takes over, `orders:dies-twice` kills it
again later, `orders:postgres` (valkey, nats, gateway, sandbox) kills that server meanwhile.
Exit status: 0 all is right, 1 something is not.
"""

import asyncio
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from deploy.local import Mesh, Site, free_base
from tests.chaos.rounds import Outcome, Round, plan, played
from tests.e2e.shop import Shop

_ROUNDS = 60


def _tell(line: str) -> None:
    print(line, flush=True)


def _wanted(seed: int) -> list[Round]:
    rounds = os.environ.get("CHAOS_ROUNDS")
    if at := os.environ.get("CHAOS_AT"):
        return [Round.at(number, at) for number in range(1, int(rounds or 1) + 1)]
    return plan(seed, int(rounds or _ROUNDS))


async def _run(home: Path, rounds: list[Round]) -> list[Outcome]:
    await asyncio.to_thread(home.chmod, 0o755)  # PostgreSQL may run as another user
    async with Mesh(Site.at(home, free_base())) as mesh, Shop.of(mesh) as shop:
        return await played(shop, rounds, _tell)


def _summary(outcomes: list[Outcome], seconds: float) -> None:
    sprung = Counter(f"{one.round.who} {one.sprung_at}" for one in outcomes if one.sprung_at)
    orders = Counter(state for one in outcomes for state in one.states.values())
    _tell(f"\n{sum(sprung.values())} faults at {len(sprung)} points in {seconds:.0f} s; orders: {dict(orders)}")
    for point, times in sorted(sprung.items()):
        _tell(f"  {times:>3} × {point}")


def main() -> int:
    seed = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(1_000_000))
    rounds = _wanted(seed)
    what = f"CHAOS_AT='{os.environ['CHAOS_AT']}'" if os.environ.get("CHAOS_AT") else f"CHAOS_SEED={seed}"
    _tell(f"{what}, {len(rounds)} rounds: story, victim, fault, and the point at which it happens")
    home, began = Path(tempfile.mkdtemp(prefix="stampede-chaos-")), time.monotonic()
    outcomes = asyncio.run(_run(home, rounds))
    _summary(outcomes, time.monotonic() - began)
    wrong = [one for one in outcomes if one.wrong]
    if not wrong:
        shutil.rmtree(home, ignore_errors=True)
        return 0
    for one in wrong:
        _tell(f"\n{one}\n      it passed: {', '.join(one.passed)}\n      again: make chaos CHAOS_AT='{one.again}'")
    _tell(f"\n{len(wrong)} of {len(outcomes)} rounds went wrong. The logs are in {home / 'logs'}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
