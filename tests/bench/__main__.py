"""What an order costs: `make bench`. Everything in one run, as ratios to E and CPU time by process.

E is an empty grpc.aio method without interceptors, transcoded by the same Envoy build with no other filter. The mesh is
the bench's own, on free ports; the load comes from a process of its own over loopback. Each number stands beside the
bar that it is held to; a bar that is missed is said, and is an error only with --strict.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

from tests.bench import paid
from tests.bench.measure import bystanders, say
from tests.bench.mesh import Yardstick, mesh
from tests.bench.paid import Till
from tests.bench.report import Verdict, table
from tests.bench.rivals import CELERY, DBOS, PYTHON, Rival
from tests.bench.rows import Rows
from tests.bench.rush import Plan, rush

_SAGAS = 512
_BYSTANDERS_MOST = 0.2
"""Cores."""
PLACING, PAYING = "placing", "paying"


async def bench(only: Collection[str], requests: int, plan: Plan) -> list[Verdict]:
    """All that is measured, in those parts."""
    verdicts = []
    if (busy := await bystanders()) > _BYSTANDERS_MOST:
        say(f"others keep {busy:.1f} cores busy: whoever has more processes gets more of the rest, so ratios are off")
    with tempfile.TemporaryDirectory(prefix="stampede-bench-") as folder:
        home = Path(folder)
        home.chmod(0o755)  # PostgreSQL may run as another user
        async with Yardstick.running(home) as e:
            rows = Rows(e, requests)
            await rows.warm_up()
            if PLACING in only:
                # Their sagas are left for later, so that placing is measured alone.
                async with mesh(home / PLACING, sagas_at_once=0) as (shop, pids):
                    await rows.hot(shop, pids)
                    await rows.spread(shop, pids)
                    await rows.sold_out(shop, pids)
                    verdicts += [*rows.verdicts, *await rush(shop, pids, plan)]
            if PAYING in only:
                async with mesh(home / PAYING, sagas_at_once=_SAGAS) as (shop, pids):
                    till = Till(e, shop, pids, paid.Plan(orders=requests // 2))
                    async with (
                        Rival.running(DBOS, shop.site, pids) as dbos,
                        Rival.running(CELERY, shop.site, pids) as celery,
                    ):
                        verdicts += await till.measure([dbos, celery])
    return verdicts


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", choices=[PLACING, PAYING], help="one part of it, without the other")
    parser.add_argument("--requests", type=int, default=6_000, help="requests per row (default: %(default)s)")
    told = f"of the rush, ten attempts each; more than the {Plan.units:,} units, one each (default: %(default)s)"
    parser.add_argument("--customers", type=int, default=Plan.customers, help=told)
    parser.add_argument("--strict", action="store_true", help="exit with 1 where a bar is missed")
    options = parser.parse_args()
    if not PYTHON.exists():
        parser.error(f"{PYTHON} is missing: `make bench` sets it up")
    only = [options.only] if options.only else [PLACING, PAYING]
    verdicts = asyncio.run(bench(only, options.requests, Plan(customers=options.customers)))
    say("\nratios are those of the middle one of three pairs, or five rounds: E with as many connections, then the row")
    for line in table(verdicts):
        say(line)
    missed = [verdict for verdict in verdicts if not verdict.met]
    say(f"\n{len(missed)} of {sum(bool(verdict.bar) for verdict in verdicts)} bars are missed")
    return 1 if missed and options.strict else 0


if __name__ == "__main__":
    sys.exit(main())
