"""The inner cost of an order: transactions, statements and calls of every service."""

import re
from collections import Counter
from dataclasses import dataclass

from deploy.local import Site
from deploy.local.ports import SERVICES
from tests.bench.measure import statements

_RPC = re.compile(r'^stampede_rpc_total\{.*method="([^"]+)".*\} (\S+)$', re.MULTILINE)
_SQL = re.compile(r'^stampede_sql_statements_total\{cause="\w+"\} (\S+)$', re.MULTILINE)
_TO_PROVIDER = re.compile(r'^stampede_provider_seconds_count\{operation="(\w+)"\} (\S+)$', re.MULTILINE)
_CALLS_SHOWN_FROM = 0.005
"""Calls per order; rarer methods are left out of the printed list."""


@dataclass(frozen=True)
class OrderCosts:
    """Counters by service at one moment; or, as a difference, between two."""

    transactions: Counter[str]
    """Transactions committed in the service's database, as PostgreSQL counts them, by all clients."""
    statements: Counter[str]
    """Statements that the service sent, with BEGIN, COMMIT and ROLLBACK, for calls and in the background."""
    calls: Counter[str]
    """Answered calls by method: those of clients, of other services and of the provider."""

    def __sub__(self, earlier: "OrderCosts") -> "OrderCosts":
        return OrderCosts(
            self.transactions - earlier.transactions,
            self.statements - earlier.statements,
            self.calls - earlier.calls,
        )

    def calls_of(self, service: str) -> int:
        """Return the number of calls that `service` answered."""
        return sum(count for method, count in self.calls.items() if method.startswith(f"/stampede.{service}."))


async def read(site: Site) -> OrderCosts:
    """Read the counters of all services and databases."""
    await statements.wait_for_server_counts()
    sent, calls = Counter[str](), Counter[str]()
    for service in SERVICES:
        text = await statements.metrics(site, service)
        sent[service] = sum(int(float(count)) for count in _SQL.findall(text))
        for method, count in _RPC.findall(text):
            calls[method] += int(float(count))
    return OrderCosts(Counter(await statements.committed(site)), sent, calls)


async def provider_calls(site: Site) -> Counter[str]:
    """Read how often payments called its provider for charges so far, by operation.

    The lists that it walks in the background are left out: they grow with time, not with orders.
    """
    made = _TO_PROVIDER.findall(await statements.metrics(site, "payments"))
    return Counter({name: int(float(count)) for name, count in made if not name.startswith("list_")})


def per_order(costs: OrderCosts, orders: int) -> list[str]:
    """Return a table of the cost of one order by service."""
    lines = [f"{'per paid order':<16}{'transactions':>14}{'statements':>14}{'calls':>10}"]
    for service in SERVICES:
        counts = (costs.transactions[service], costs.statements[service], costs.calls_of(service))
        shown = [f"{count / orders:.2f}" for count in counts]
        lines.append(f"  {service:<14}{shown[0]:>14}{shown[1]:>14}{shown[2]:>10}")
    for method, count in costs.calls.most_common():
        if count / orders >= _CALLS_SHOWN_FROM:
            lines.append(f"    {count / orders:>6.3f}  {method.removeprefix('/stampede.')}")
    return lines
