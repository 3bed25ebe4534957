"""A consistent set of records, made by a real mesh, and copies of it to corrupt."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import psycopg

from deploy.audit import Report, Sources, audit
from deploy.audit.audit import examine
from deploy.audit.checks.all_checks import run_statement
from deploy.audit.findings import Check, Finding
from deploy.audit.reading import broker as brokers
from deploy.audit.reading import provider
from deploy.audit.reading.broker import Broker
from deploy.audit.reading.gate import GateCounter, counters
from deploy.audit.reading.rows import Intent
from deploy.audit.reading.sources import Connection, Inputs
from deploy.local import Mesh, Site
from deploy.local.ports import SERVICES
from tests.audit import day
from tests.e2e.shop import Shop
from tests.support.waiting import until

_LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
_STOPPED = ("gateway", *SERVICES, "sandbox", "nats", "valkey")


@dataclass
class Records:
    """Five databases, each in an open transaction, and what the provider, the broker and the gate had."""

    connections: dict[str, Connection]
    names: dict[str, str]
    """Ids by the name that corruptions use: `paid`, `sale`, …"""
    intents: list[Intent]
    broker: Broker
    counters: dict[str, GateCounter]
    live: Report
    """The audit of the running mesh, as the services' own roles."""
    lost: set[str] = field(default_factory=set)
    """Ids whose events the broker has lost."""

    def examine(self) -> Report:
        def has(subject: str, key: str) -> bool:
            return key not in self.lost and self.broker.has(subject, key)

        return examine(
            Inputs(
                connections=self.connections,
                intents=sorted(self.intents, key=lambda intent: (intent.order_id, intent.id)),
                broker=replace(self.broker, has=has),
                counters=self.counters,
            )
        )

    def findings(self, check: Check) -> list[Finding]:
        """The findings of one check; a statement is run alone."""
        if check.query:
            return list(run_statement(check, self.connections[check.service]))
        return [finding for finding in self.examine().findings.kept if finding.check is check]

    def run(self, service: str, statements: str) -> None:
        """Runs statements in the transaction of a database, without foreign keys."""
        self.connections[service].execute("SET LOCAL session_replication_role = replica; " + statements)  # type: ignore[call-overload]

    @contextmanager
    def copy(self) -> Iterator["Records"]:
        """A copy to corrupt: at the end of the block all is as before."""
        with ExitStack() as stack:
            for connection in self.connections.values():
                stack.callback(connection.rollback)
            yield replace(self, intents=list(self.intents), counters=dict(self.counters), lost=set())


@asynccontextmanager
async def made(site: Site) -> AsyncIterator[Records]:
    """Lets a mesh make the records, and stops all of it but PostgreSQL."""
    mesh = Mesh(site)
    postgres = mesh.alter("postgres")
    mesh.alter("postgres", command=(*postgres.command, "--fsync=off"))
    async with mesh:
        async with Shop.of(mesh) as shop:
            names = await day.spend(shop)
            await until(lambda: _published(shop))
        sources = Sources.of(site)
        live = await asyncio.to_thread(audit, sources)
        assert sources.ledger_url
        assert sources.nats_url
        assert sources.valkey_url
        with ExitStack() as stack:
            connections = {service: stack.enter_context(_owner(site, service)) for service in SERVICES}
            with provider.intents(sources.ledger_url) as intents:
                kept = list(intents)
            broker = await asyncio.to_thread(stack.enter_context, brokers.read(sources.nats_url))
            gate = counters(sources.valkey_url, connections["inventory"])
            # The streams are as old as the mesh.
            broker = replace(broker, since=dict.fromkeys(broker.since, _LONG_AGO))
            for part in _STOPPED:
                mesh.keep_down(part)
                await mesh.kill(part)
            for connection in connections.values():
                connection.rollback()
            yield Records(connections, names, kept, broker, gate, live)


async def _published(shop: Shop) -> bool:
    outboxes = ("inventory", "orders", "payments")
    return not any([(await shop.rows(service, "SELECT count(*) FROM outbox"))[0][0] for service in outboxes])


@contextmanager
def _owner(site: Site, service: str) -> Iterator[Connection]:
    """A connection that may change constraints too."""
    with psycopg.connect(site.database_url(service, "postgres").replace("+psycopg", "")) as connection:
        yield connection
