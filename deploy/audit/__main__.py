"""Check that units and money add up, over all databases, the payment provider, the broker and the gate. Read only.

Reads the mesh of this checkout (STAMPEDE_PORT, STAMPEDE_HOME). With --from-environment it reads the addresses in
CATALOG_DATABASE_URL, IDENTITY_DATABASE_URL, INVENTORY_DATABASE_URL, ORDERS_DATABASE_URL, PAYMENTS_DATABASE_URL,
SANDBOX_URL, NATS_URL and VALKEY_URL.
Amounts are minor units. Exit status: 0 adds up, 1 does not add up, 2 could not be read.
"""

import argparse
import os
import sys
import time
import uuid

from deploy.audit.audit import audit
from deploy.audit.checks.all_checks import BY_NAME
from deploy.audit.evidence import rows_about
from deploy.audit.reading.sources import Sources
from deploy.audit.reading.unreachable import Unreachable
from deploy.audit.repair import NotRepaired, repair
from deploy.audit.show import lines, list_checks
from deploy.local.environment import forget_libraries
from deploy.local.location import Site

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
    made.add_argument("--from-environment", action="store_true", help="read the system that the variables name")
    made.add_argument("--watch", action="store_true", help="repeat the audit until Ctrl-C")
    made.add_argument(
        "--every",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="the pause with --watch (default: %(default)s)",
    )
    actions = made.add_subparsers(dest="action", metavar="checks|show|repair")
    actions.add_parser("checks", help="list all checks, what must hold, and what repairs a finding")
    show = actions.add_parser("show", help="show every row about one order, payment, product, sale or user")
    show.add_argument("id", type=uuid.UUID)
    mend = actions.add_parser(
        "repair",
        help="derive a wrong value from other rows, as the owner of the database (with --from-environment, at"
        " <SERVICE>_MIGRATION_DATABASE_URL)",
    )
    mend.add_argument("check", help="the name of the check, as a finding shows it")
    mend.add_argument("id", help="the first id of the finding")
    return made


def main() -> int:
    options = parser().parse_args()
    forget_libraries(os.environ)
    if options.action == "checks":
        print("\n".join(list_checks()))
        return ADDS_UP
    if options.action == "repair":
        return _repair(options)
    try:
        return _show(options) if options.action == "show" else _audit(options)
    except Unreachable as problem:
        print(f"{problem}\nIs the mesh up? `make status` shows it, `make up` starts it.", file=sys.stderr)
        return NOT_READ


def _sources(options: argparse.Namespace) -> Sources:
    return Sources.named() if options.from_environment else Sources.here()


def _show(options: argparse.Namespace) -> int:
    for line in rows_about(_sources(options), str(options.id)):
        print(line)
    return ADDS_UP


def _audit(options: argparse.Namespace) -> int:
    products = {str(id_) for id_ in options.product}
    code = ADDS_UP
    try:
        while True:
            sources = _sources(options)
            report = audit(sources, products=products, patience_seconds=options.patience, progress=_show_progress)
            print("\n".join(lines(report)), flush=True)
            code = ADDS_UP if report.adds_up else DOES_NOT_ADD_UP
            if not options.watch:
                return code
            time.sleep(options.every)
            print(flush=True)
    except KeyboardInterrupt:
        return code


def _repair(options: argparse.Namespace) -> int:
    name, id_ = options.check, options.id
    service = BY_NAME[name].service if name in BY_NAME else ""
    try:
        if options.from_environment:
            url = os.environ.get(variable := f"{service.upper()}_MIGRATION_DATABASE_URL", "")
            if service and not url:
                raise NotRepaired(f"{variable} is not set")
        else:
            url = Site.here().database_url(service, f"{service}_owner" if service else "postgres")
        repair(name, id_, url)
    except NotRepaired as problem:
        print(problem, file=sys.stderr)
        return DOES_NOT_ADD_UP
    print(f"{name} {id_}: repaired. Audit again: other checks may have waited behind it.")
    return ADDS_UP


def _show_progress(what: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[Kreading: {what} …\r", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
