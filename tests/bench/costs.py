"""What orders cost inside: transactions, statements and calls of every service."""

import re
from collections import Counter
from dataclasses import dataclass

from deploy.local import Site
from deploy.local.ports import SERVICES
from tests.bench import statements

_RPC = re.compile(r'^stampede_rpc_total\{.*method="([^"]+)".*\} (\S+)$', re.MULTILINE)
_SQL = re.compile(r'^stampede_sql_statements_total\{cause="\w+"\} (\S+)$', re.MULTILINE)
_WORTH_SAYING = 0.005
"""Calls per order."""


@dataclass(frozen=True)
class Costs:
    """Counters by service at one moment; or, as a difference, between two."""

    transactions: Counter[str]
    """That were committed in the service's database, as PostgreSQL counts them, by whomever."""
    statements: Counter[str]
    """That the service sent, BEGIN, COMMIT and ROLLBACK among them, for calls and in the background."""
    calls: Counter[str]
    """That were answered, by method: those of clients, of other services and of the provider."""

    def __sub__(self, earlier: "Costs") -> "Costs":
        return Costs(
            self.transactions - earlier.transactions,
            self.statements - earlier.statements,
            self.calls - earlier.calls,
        )

    def calls_of(self, service: str) -> int:
        """Calls that `service` answered."""
        return sum(count for method, count in self.calls.items() if method.startswith(f"/stampede.{service}."))


async def read(site: Site) -> Costs:
    """The counters of all services and databases, once the server has told its own."""
    await statements.told()
    sent, calls = Counter[str](), Counter[str]()
    for service in SERVICES:
        text = await statements.metrics(site, service)
        sent[service] = sum(int(float(count)) for count in _SQL.findall(text))
        for method, count in _RPC.findall(text):
            calls[method] += int(float(count))
    return Costs(Counter(await statements.committed(site)), sent, calls)


def per_order(spent: Costs, orders: int) -> list[str]:
    """Lines that say what one order cost, by service."""
    lines = [f"{'per paid order':<16}{'transactions':>14}{'statements':>14}{'calls':>10}"]
    for service in SERVICES:
        counts = (spent.transactions[service], spent.statements[service], spent.calls_of(service))
        shown = [f"{count / orders:.2f}" for count in counts]
        lines.append(f"  {service:<14}{shown[0]:>14}{shown[1]:>14}{shown[2]:>10}")
    for method, count in spent.calls.most_common():
        if count / orders >= _WORTH_SAYING:
            lines.append(f"    {count / orders:>6.3f}  {method.removeprefix('/stampede.')}")
    return lines
