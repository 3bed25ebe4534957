"""Opens what an audit reads: five databases, the provider's records, the broker and the gate. It can change none."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import psycopg
from psycopg.rows import TupleRow

from deploy.audit.reading import broker, gate, provider
from deploy.audit.reading.broker import Broker
from deploy.audit.reading.gate import GateCounter
from deploy.audit.reading.rows import Intent
from deploy.audit.reading.unreachable import Unreachable
from deploy.local.environment import check_is_of
from deploy.local.location import Site
from deploy.local.ports import SERVICES

_CONNECT_SECONDS = 5
_DATABASES = {name: f"{name.upper()}_DATABASE_URL" for name in SERVICES}
# The session enforces this, so that no statement can write by mistake.
_OPTIONS = (
    "-c default_transaction_read_only=on -c default_transaction_isolation=repeatable\\ read"
    " -c statement_timeout=10min -c idle_in_transaction_session_timeout=10min"
)

Connection = psycopg.Connection[TupleRow]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The sources of one reading, opened. Without `intents`, `broker` or `counters` their checks are left out."""

    connections: Mapping[str, Connection]
    """By service, each in one transaction with one snapshot."""
    intents: Iterable[Intent] | None = None
    """The provider's records, sorted by order id."""
    broker: Broker | None = None
    counters: Mapping[str, GateCounter] | None = None
    """The gate's counters, by sale."""


@dataclass(frozen=True)
class Sources:
    """The addresses of the databases, the provider's records, the broker and the gate."""

    databases: Mapping[str, str] = field(repr=False)
    """By service."""
    ledger_url: str | None = None
    """The address of the sandbox. None if the provider has no records to read."""
    nats_url: str | None = field(default=None, repr=False)
    valkey_url: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, site: Site) -> "Sources":
        """The sources of a local mesh."""
        databases = {name: site.database_url(name) for name in SERVICES}
        return cls(databases, site.sandbox_url, site.nats_url, site.valkey_url)

    @classmethod
    def here(cls, environ: Mapping[str, str] = os.environ) -> "Sources":
        """The sources of this checkout's mesh. Raises `Contradiction` if `environ` has databases of another system."""
        site = Site.here()
        exports = site.exports()
        read = {name: exports[name] for name in (*_DATABASES.values(), "SANDBOX_URL")}
        check_is_of(read, f"the mesh in {site.home} at {site.url}; --from-environment reads what it names", environ)
        return cls.of(site)

    @classmethod
    def named(cls, environ: Mapping[str, str] = os.environ) -> "Sources":
        """The sources that the environment names.

        Raises `Unreachable` if not all databases are set: the halves of two systems do not add up.
        """
        named = {name: environ.get(variable, "") for name, variable in _DATABASES.items()}
        if lacking := [_DATABASES[name] for name, url in named.items() if not url]:
            raise Unreachable(f"not all databases are set: set {', '.join(lacking)} too")
        others = (environ.get(name) or None for name in ("SANDBOX_URL", "NATS_URL", "VALKEY_URL"))
        return cls(named, *others)

    @contextlib.contextmanager
    def opened(self, *, with_events: bool = True) -> Iterator[Inputs]:
        """Opens a read-only session for each database, with one snapshot each, taken right after each other.

        The others are read after that: an event that left an outbox before the snapshot is in the broker by then.
        """
        with contextlib.ExitStack() as stack:
            opened = stack.enter_context(self.connections())
            yield Inputs(
                connections=opened,
                intents=stack.enter_context(provider.intents(self.ledger_url)) if self.ledger_url else None,
                broker=stack.enter_context(broker.read(self.nats_url)) if self.nats_url and with_events else None,
                counters=gate.counters(self.valkey_url, opened["inventory"]) if self.valkey_url else None,
            )

    @contextlib.contextmanager
    def connections(self) -> Iterator[dict[str, Connection]]:
        """Opens the databases alone."""
        with contextlib.ExitStack() as stack:
            opened = {name: stack.enter_context(_connect(name, url)) for name, url in self.databases.items()}
            # Orders first: rows of an order that is not there yet are recognised as in progress.
            for name in sorted(opened, key=lambda name: name != "orders"):
                opened[name].execute("SELECT 1")
            yield opened


@contextlib.contextmanager
def _connect(name: str, url: str) -> Iterator[Connection]:
    try:
        connection = psycopg.connect(
            url.replace("+psycopg", "", 1),
            connect_timeout=_CONNECT_SECONDS,
            options=_OPTIONS,
            application_name="stampede-audit",
        )
    except psycopg.OperationalError as error:
        raise Unreachable(f"the {name} database cannot be reached: {str(error).splitlines()[0]}") from None
    try:
        yield connection
    except psycopg.OperationalError as error:
        raise Unreachable(f"a connection was lost: {str(error).splitlines()[0]}") from None
    finally:
        connection.close()
