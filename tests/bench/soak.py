"""Measure memory over many orders: `make soak`, or `python -m tests.bench.soak` for a short run.

10,000 customers rush one sale after another; one attempt in twenty gets a unit and pays for it. The memory of every
process is read at the start, and after each sale once all its orders have ended. The memory of the services and the
gateway must be flat: a straight line through the second half of the samples may rise by at most 3 %. The other
parts are only shown, because they store what they receive.
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
from tests.bench.measure.jobs import Pids, load, memory_bytes, print_line
from tests.bench.mesh import BenchMesh
from tests.bench.report import Verdict, count_list, table
from tests.bench.shop import Shop

JUDGED = (*SERVICES, "gateway")
GROWTH_MAX = 0.03
_ROUNDS = 20
_ATTEMPTS_PER_UNIT = 20
_CUSTOMERS, _CONNECTIONS, _SAGAS = 10_000, 256, 512
_RENEW_SECONDS = 600.0
"""The age at which tokens are replaced; they expire after 900 seconds."""
_MIB = 1 << 20

Sample = Mapping[str, int]
"""Bytes of memory by part."""


def judge(samples: Sequence[Sample]) -> list[Verdict]:
    """Return each part's growth of memory in the second half; the first sample is that of the start."""
    verdicts = []
    first, second_half = samples[0], samples[len(samples) // 2 :]
    for part in first:
        sizes = [sample[part] for sample in second_half]
        line = linear_regression(range(len(sizes)), sizes)
        growth = line.slope * (len(sizes) - 1) / line.intercept
        more = f"{first[part] / _MIB:,.0f} → {sizes[0] / _MIB:,.0f} → {sizes[-1] / _MIB:,.0f} MiB"
        bar = f"at most {GROWTH_MAX:.0%}" if part in JUDGED else ""
        verdicts.append(Verdict(f"memory of {part}", f"{growth:+.1%}", bar, not bar or growth <= GROWTH_MAX, more))
    return verdicts


async def soak(
    shop: Shop, pids: Pids, attempts: int, *, customers: int = _CUSTOMERS, rounds: int = _ROUNDS
) -> list[Verdict]:
    """Run at least two rounds and print the memory after each."""
    answers, each = Counter[str](), attempts // rounds
    tokens, renew = list[str](), 0.0
    print_line("MiB after   " + "".join(f"{part:>11}" for part in pids))
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
    unexpected = {kind: count for kind, count in answers.items() if kind not in ("200", "400 SOLD_OUT")}
    found = "WRONG" if unexpected else "correct"
    return [Verdict("answers", found, "correct", not unexpected, count_list(answers)), *judge(samples)]


def _sample(pids: Pids, attempts: int) -> Sample:
    sample = memory_bytes(pids)
    print_line(f"{attempts:>9,}   " + "".join(f"{size / _MIB:>11,.1f}" for size in sample.values()))
    return sample


async def main(attempts: int) -> bool:
    """Print the report; return whether memory is flat."""
    with tempfile.TemporaryDirectory(prefix="stampede-soak-") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL may run as another user
        async with BenchMesh.running(Path(folder) / "mesh", sagas_at_once=_SAGAS) as mesh:
            verdicts = await soak(mesh.shop, mesh.pids, attempts)
    print_line(f"\nmemory over {attempts:,} attempts: growth in the second half; start → half → end")
    for line in table(verdicts):
        print_line(line)
    return all(verdict.met for verdict in verdicts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.bench.soak", description=__doc__)
    parser.add_argument("--attempts", type=int, default=50_000, help="in total (default: %(default)s)")
    sys.exit(not asyncio.run(main(parser.parse_args().attempts)))
