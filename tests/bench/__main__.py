"""What an order costs: `make bench`. Everything in one run, as ratios to E and CPU time by process.

E is an empty grpc.aio method without interceptors, transcoded by the same Envoy build with no other filter. The mesh is
the bench's own, on free ports; the load comes from a process of its own over loopback. Each number stands beside the
bar that it is held to; a bar that is missed is said, and is an error only with --strict.
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from tests.bench.measure import say
from tests.bench.mesh import Yardstick, mesh
from tests.bench.report import Verdict, table
from tests.bench.rows import Rows
from tests.bench.rush import Plan, rush

_SAGAS = 512


async def bench(requests: int, plan: Plan) -> list[Verdict]:
    """All that is measured."""
    with tempfile.TemporaryDirectory(prefix="stampede-bench-") as folder:
        home = Path(folder)
        home.chmod(0o755)  # PostgreSQL may run as another user
        async with Yardstick.running(home) as e:
            rows = Rows(e, requests)
            await rows.warm_up()
            # Their sagas are left for later, so that placing is measured alone.
            async with mesh(home / "placing", sagas_at_once=0) as (shop, pids):
                await rows.hot(shop, pids)
                await rows.spread(shop, pids)
                await rows.sold_out(shop, pids)
                rushed = await rush(shop, pids, plan)
            async with mesh(home / "paying", sagas_at_once=_SAGAS) as (shop, pids):
                await rows.paid(shop, pids)
    return [*rows.verdicts, *rushed]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--requests", type=int, default=6_000, help="requests per row (default: %(default)s)")
    told = f"of the rush, ten attempts each; more than the {Plan.units:,} units, one each (default: %(default)s)"
    parser.add_argument("--customers", type=int, default=Plan.customers, help=told)
    parser.add_argument("--strict", action="store_true", help="exit with 1 where a bar is missed")
    options = parser.parse_args()
    verdicts = asyncio.run(bench(options.requests, Plan(customers=options.customers)))
    say("\nratios are those of the middle one of three pairs: E with as many connections, and the row right after it")
    for line in table(verdicts):
        say(line)
    missed = [verdict for verdict in verdicts if not verdict.met]
    say(f"\n{len(missed)} of {sum(bool(verdict.bar) for verdict in verdicts)} bars are missed")
    return 1 if missed and options.strict else 0


if __name__ == "__main__":
    sys.exit(main())
