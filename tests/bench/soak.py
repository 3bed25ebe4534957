"""Memory over a long time: `make soak`, or `python -m tests.bench.soak` for a quick look.

Sale after sale is rushed by 10,000 customers; one attempt in twenty gets a unit, which is paid. The memory of every
process is looked at before, and after each sale, when all orders have ended. That of the services and the gateway must
be flat: the straight line through what was seen in the second half may rise by a few hundredths. The others' is shown,
for they keep what they are told.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import linear_regression

from deploy.local.ports import SERVICES
from tests.bench.measure import Pids, load, memory_bytes, say
from tests.bench.mesh import mesh
from tests.bench.report import Verdict, counted, table
from tests.bench.shop import Shop

JUDGED = (*SERVICES, "gateway")
GROWTH_MOST = 0.03
_ROUNDS = 20
_ATTEMPTS_PER_UNIT = 20
_CUSTOMERS, _CONNECTIONS, _SAGAS = 10_000, 256, 512
_RENEW_SECONDS = 600.0
"""When tokens are replaced; they last a quarter of an hour."""
_MIB = 1 << 20

Sample = Mapping[str, int]
"""Bytes of memory by part."""


def judge(samples: Sequence[Sample]) -> list[Verdict]:
    """Says how much each part's memory grows in the second half. The first sample was taken before the start."""
    verdicts = []
    first, second_half = samples[0], samples[len(samples) // 2 :]
    for part in first:
        sizes = [sample[part] for sample in second_half]
        line = linear_regression(range(len(sizes)), sizes)
        growth = line.slope * (len(sizes) - 1) / line.intercept
        more = f"{first[part] / _MIB:,.0f} → {sizes[0] / _MIB:,.0f} → {sizes[-1] / _MIB:,.0f} MiB"
        bar = f"at most {GROWTH_MOST:.0%}" if part in JUDGED else ""
        verdicts.append(Verdict(f"memory of {part}", f"{growth:+.1%}", bar, not bar or growth <= GROWTH_MOST, more))
    return verdicts


async def soak(
    shop: Shop, pids: Pids, attempts: int, *, customers: int = _CUSTOMERS, rounds: int = _ROUNDS
) -> list[Verdict]:
    """All rounds, of which there are at least two; shows the memory after each."""
    answers, each = Counter[str](), attempts // rounds
    tokens, renew = list[str](), 0.0
    say("MiB after   " + "".join(f"{part:>11}" for part in pids))
    earlier, samples = await shop.unsettled(), [_sample(pids, 0)]
    for round_ in range(1, rounds + 1):
        if time.monotonic() > renew:
            tokens, renew = await shop.tokens(customers), time.monotonic() + _RENEW_SECONDS
        job = shop.job(
            await shop.sale(max(each // _ATTEMPTS_PER_UNIT, 1)),
            tokens=tokens, connections=_CONNECTIONS, requests=each, shuffled=True, progress="attempts",
        )  # fmt: skip
        answers.update((await load(job)).answers)
        await shop.settled(but=earlier)
        samples.append(_sample(pids, round_ * each))
    odd = {kind: count for kind, count in answers.items() if kind not in ("200", "400 SOLD_OUT")}
    right = "WRONG" if odd else "right"
    return [Verdict("answers", right, "all right", not odd, counted(answers)), *judge(samples)]


def _sample(pids: Pids, attempts: int) -> Sample:
    sample = memory_bytes(pids)
    say(f"{attempts:>9,}   " + "".join(f"{size / _MIB:>11,.1f}" for size in sample.values()))
    return sample


async def main(attempts: int) -> bool:
    """Prints the report; returns whether memory is flat."""
    with tempfile.TemporaryDirectory(prefix="stampede-soak-") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL may run as another user
        async with mesh(Path(folder) / "mesh", sagas_at_once=_SAGAS) as (shop, pids):
            verdicts = await soak(shop, pids, attempts)
    say(f"\nmemory over {attempts:,} attempts: growth in the second half; before → half-time → end")
    for line in table(verdicts):
        say(line)
    return all(verdict.met for verdict in verdicts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.bench.soak", description=__doc__)
    parser.add_argument("--attempts", type=int, default=50_000, help="in all (default: %(default)s)")
    sys.exit(not asyncio.run(main(parser.parse_args().attempts)))
