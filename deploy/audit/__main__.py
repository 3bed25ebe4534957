"""Check that units and money add up, over all databases and the payment provider. Read only.

Reads the local mesh (STAMPEDE_PORT, STAMPEDE_HOME), or the addresses in CATALOG_DATABASE_URL, IDENTITY_DATABASE_URL,
INVENTORY_DATABASE_URL, ORDERS_DATABASE_URL, PAYMENTS_DATABASE_URL and SANDBOX_URL.
Amounts are minor units. Exit status: 0 adds up, 1 does not add up, 2 could not be read.
"""

import argparse
import sys
import time
import uuid

from deploy.audit.audit import audit
from deploy.audit.show import lines
from deploy.audit.sources import Sources, Unreachable

ADDS_UP, DOES_NOT_ADD_UP, NOT_READ = 0, 1, 2


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m deploy.audit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--product", action="extend", nargs="+", default=[], type=uuid.UUID, metavar="ID",
        help="check only orders, sales and stock of these products (default: all)",
    )  # fmt: skip
    made.add_argument(
        "--patience", type=float, default=15.0, metavar="SECONDS",
        help="how long to wait for orders in progress (default: %(default)s)",
    )  # fmt: skip
    made.add_argument("--watch", action="store_true", help="repeat the audit until Ctrl-C")
    made.add_argument(
        "--every",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="the pause with --watch (default: %(default)s)",
    )
    return made


def main() -> int:
    options = parser().parse_args()
    products = {str(id_) for id_ in options.product}
    code = ADDS_UP
    try:
        while True:
            report = audit(Sources.here(), products=products, patience_seconds=options.patience)
            print("\n".join(lines(report)), flush=True)
            code = ADDS_UP if report.adds_up else DOES_NOT_ADD_UP
            if not options.watch:
                return code
            time.sleep(options.every)
            print(flush=True)
    except Unreachable as problem:
        print(f"{problem}\nIs the mesh up? `make status` shows it, `make up` starts it.", file=sys.stderr)
        return NOT_READ
    except KeyboardInterrupt:
        return code


if __name__ == "__main__":
    sys.exit(main())
