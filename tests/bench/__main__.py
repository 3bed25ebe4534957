"""Measure the cost of an order: `make bench`, one run, as ratios to E and as CPU time by process.

E is an empty grpc.aio method without interceptors, behind the same Envoy build with the transcoder as its only filter.
The mesh is the bench's own, on free ports. A process of its own sends the load over loopback. Each number stands beside
its bar; a missed bar is printed as NO, and is an error only with --strict.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

from tests.bench.measure.jobs import other_load, print_line
from tests.bench.mesh import Baseline, BenchMesh
from tests.bench.report import Verdict, table
from tests.bench.rivals.rival import CELERY, DBOS, PYTHON, Rival
from tests.bench.rows import charging
from tests.bench.rows.paying import PayingPlan, PayingRows
from tests.bench.rows.placing import BACKLOG_MAX, PlacingRows
from tests.bench.rows.rush import RushPlan, rush, rush_gate_off

_SAGAS = 512
_OTHER_LOAD_MAX = 0.2
"""Cores."""
PLACING, PAYING = "placing", "paying"


async def bench(only: Collection[str], requests: int, plan: RushPlan) -> list[Verdict]:
    """Measure the chosen parts."""
    verdicts = []
    if (busy := await other_load()) > _OTHER_LOAD_MAX:
        print_line(f"warning: other programs use {busy:.1f} cores; ratios between programs are unreliable")
    with tempfile.TemporaryDirectory(prefix="stampede-bench-") as folder:
        home = Path(folder)
        home.chmod(0o755)  # PostgreSQL may run as another user
        async with Baseline.running(home) as e:
            if PLACING in only:
                verdicts += await _placing(e, home, requests, plan)
            if PAYING in only:
                verdicts += await _paying(e, home, requests)
    return verdicts


async def _placing(e: Baseline, home: Path, requests: int, plan: RushPlan) -> list[Verdict]:
    """Measure placing alone: no saga runs. The last rows need other settings of a service, and restart it."""
    rows = PlacingRows(e, requests)
    await rows.warm_up()
    async with BenchMesh.running(home / PLACING, sagas_at_once=0) as mesh:
        shop = mesh.shop
        placed = await rows.one_sale(shop, mesh.pids)
        await rows.spread(shop, mesh.pids)
        sold_out = await rows.sold_out(shop, mesh.pids)
        rushed = await rush(shop, mesh.pids, plan)
        await mesh.restart("inventory", GATE_ENABLED="false")
        await rows.gate_off(shop, mesh.pids, placed=placed, sold_out=sold_out)
        rushed += await rush_gate_off(shop, mesh.pids, plan)
        await mesh.restart("inventory")
        await mesh.restart("orders", BACKLOG_MAX=str(BACKLOG_MAX))
        await rows.backlog_full(shop, mesh.pids)
        return [*rows.verdicts, *rushed]


async def _paying(e: Baseline, home: Path, requests: int) -> list[Verdict]:
    async with BenchMesh.running(home / PAYING, sagas_at_once=_SAGAS) as mesh:
        shop, pids = mesh.shop, mesh.pids
        rows = PayingRows(e, shop, pids, PayingPlan(orders=requests // 2))
        # Before the rows that leave a thousand payments open, about which payments asks the provider by the clock.
        charges = await charging.charges(rows, shop)
        async with Rival.running(DBOS, shop.site, pids) as dbos, Rival.running(CELERY, shop.site, pids) as celery:
            verdicts = await rows.measure([dbos, celery])
        return [*verdicts, *charges, await charging.webhooks(e, shop, rows, requests=requests)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", choices=[PLACING, PAYING], help="measure one part without the other")
    parser.add_argument("--requests", type=int, default=6_000, help="requests per row (default: %(default)s)")
    customers = (
        f"customers of the rush, ten attempts each; more than its {RushPlan.units:,} units (default: %(default)s)"
    )
    parser.add_argument("--customers", type=int, default=RushPlan.customers, help=customers)
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a bar is missed")
    options = parser.parse_args()
    if not PYTHON.exists():
        parser.error(f"{PYTHON} is missing: `make bench` sets it up")
    only = [options.only] if options.only else [PLACING, PAYING]
    verdicts = asyncio.run(bench(only, options.requests, RushPlan(customers=options.customers)))
    print_line("\neach ratio is the median of three pairs, or of five rounds: E with as many connections, then the row")
    for line in table(verdicts):
        print_line(line)
    missed = [verdict for verdict in verdicts if not verdict.met]
    print_line(f"\n{len(missed)} of {sum(bool(verdict.bar) for verdict in verdicts)} bars are missed")
    return 1 if missed and options.strict else 0


if __name__ == "__main__":
    sys.exit(main())
