"""The service's own database: engine, transactions, migrations, names of violated constraints."""

import asyncio
import importlib
import time
import uuid
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector
from psycopg import AsyncCursor
from psycopg import Error as PsycopgError
from psycopg.pq import TransactionStatus
from sqlalchemy import BigInteger, DateTime, Engine, Executable, Row, event, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, MappedAsDataclass
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry
from sqlalchemy.util import await_only

from services.chassis import request_context
from services.chassis.data import grants
from services.chassis.data.limiter import Limiter

Database = async_sessionmaker[AsyncSession]
"""Opens transactions: `async with db.begin() as tx:` commits at the end, and rolls back when the block raises."""

_CONNECT_SECONDS = 5
# Background work waits so long for a connection; calls, which somebody waits for, a shorter time.
_POOL_SECONDS = 3
_PATIENCE_SECONDS = 1.0
# One connection in so many is kept for background work: leases, the outbox, sagas that wait in a table.
_BACKGROUND_SHARE = 5
_DATA_EXCEPTION, _OUR_OWN = "22", "22023"
"""The class of SQL states whose messages quote the refused value; the one of them that our functions raise."""


class Base(MappedAsDataclass, DeclarativeBase, kw_only=True):
    """The base of all mapped classes."""

    type_annotation_map = {  # noqa: RUF012  # SQLAlchemy reads it from the class
        int: BigInteger,
        datetime: DateTime(timezone=True),
        dict: JSONB,
        list: JSONB,
    }


class _Statements(Collector):
    """Counts the statements of this process in plain integers, which are read when metrics are scraped."""

    for_calls = in_background = 0

    def collect(self) -> Iterator[CounterMetricFamily]:
        text = "SQL statements sent to the database, including BEGIN, COMMIT and ROLLBACK."
        family = CounterMetricFamily("stampede_sql_statements", text, labels=["cause"])
        family.add_metric(["call"], self.for_calls)
        family.add_metric(["background"], self.in_background)
        yield family


_IDLE = int(TransactionStatus.IDLE)
_statements = _Statements()
REGISTRY.register(_statements)


class _Counted(AsyncCursor[Any]):
    """A cursor that counts its statements, at a tenth of the cost of SQLAlchemy's events."""

    def execute(self, query: Any, params: Any = None, **options: Any) -> Coroutine[Any, Any, Self]:
        self._count(1)
        return super().execute(query, params, **options)

    def executemany(self, query: Any, params_seq: Any, **options: Any) -> Coroutine[Any, Any, None]:
        self._count(len(params_seq))
        return super().executemany(query, params_seq, **options)

    def _count(self, statements: int) -> None:
        connection = self.connection
        if connection.pgconn.transaction_status == _IDLE and not connection.autocommit:
            statements += 2  # psycopg sends BEGIN first, and COMMIT or ROLLBACK at the end
        if request_context.is_answering():
            _statements.for_calls += statements
        else:
            _statements.in_background += statements


class _Pool(AsyncAdaptedQueuePool):
    """A pool that admits calls before their first statement; it keeps a fifth of its connections for background work.

    A call waits at most a second for a connection, and is refused at once if the queue is longer than that: with
    `RateLimited`, or with `Unavailable` if no connection came back meanwhile. So full does not look like unavailable.
    Work that calls share, such as a batch or the call of another service, passes calls of single clients.
    """

    def __init__(self, creator: Any, pool_size: int = 5, **options: Any) -> None:
        super().__init__(creator, pool_size=pool_size, **options)
        slots = pool_size - pool_size // _BACKGROUND_SHARE
        self._limiter = Limiter("database", slots, patience_seconds=_PATIENCE_SECONDS, part="database")
        self._lent_to_calls: dict[ConnectionPoolEntry, float] = {}

    def _do_get(self) -> ConnectionPoolEntry:
        if not request_context.is_answering():
            return super()._do_get()
        if not self._limiter.take_free():
            await_only(self._limiter.take(first=request_context.is_shared()))
        try:
            entry = super()._do_get()
        except BaseException:
            self._limiter.give_back()
            raise
        self._lent_to_calls[entry] = time.monotonic()
        return entry

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        super()._do_return_conn(record)
        if (since := self._lent_to_calls.pop(record, None)) is not None:
            self._limiter.give_back(time.monotonic() - since)


def connect(url: str, *, pool_size: int) -> tuple[AsyncEngine, Database]:
    """Returns the engine, to be disposed of at shutdown, and its transactions. Connects at the first use.

    At most `pool_size` connections; `_Pool` says who gets them when there are too few.
    """
    engine = create_async_engine(
        url,
        poolclass=_Pool,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=_POOL_SECONDS,
        pool_pre_ping=False,
        hide_parameters=True,
        connect_args={"connect_timeout": _CONNECT_SECONDS, "options": "-c jit=off", "cursor_factory": _Counted},
    )
    keep_data_out_of_errors(engine.sync_engine)
    return engine, async_sessionmaker(engine, expire_on_commit=False)


def keep_data_out_of_errors(engine: Engine) -> None:
    """Makes the engine's errors safe to log: their texts contain no row, no key and no value.

    PostgreSQL's details quote them, for example the e-mail address that violates a constraint. The error's `diag`
    keeps everything.
    """
    event.listen(engine, "handle_error", _drop_details)


def _drop_details(context: ExceptionContext) -> None:
    error, wrapped = context.original_exception, context.sqlalchemy_exception
    if not isinstance(error, PsycopgError) or not error.diag.message_primary:
        return
    state = error.sqlstate or ""
    is_quoting = state.startswith(_DATA_EXCEPTION) and state != _OUR_OWN
    error.args = (type(error).__name__ if is_quoting else error.diag.message_primary,)
    if wrapped is not None:
        # SQLAlchemy made this text of the whole error.
        wrapped.args = (f"({type(error).__module__}.{type(error).__name__}) {error}",)


async def run_autocommit(db: Database, statement: Executable, arguments: Mapping[str, object]) -> Sequence[Row[Any]]:
    """Runs one statement as a transaction: without BEGIN and COMMIT, in a third of the round trips."""
    async with _autocommit(db.kw["bind"]) as connection:
        return (await connection.execute(statement, arguments)).all()


@asynccontextmanager
async def _autocommit(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    async with engine.connect() as connection:
        # Not as an option of the engine: a call that is cancelled while SQLAlchemy applies that one loses the
        # connection until the garbage collector finds it.
        yield await connection.execution_options(isolation_level="AUTOCOMMIT")


class Ping:
    """Asks whether the database answers, on a connection of its own: calls that fill the pool do not delay it."""

    def __init__(self, url: str) -> None:
        self._engine, _ = connect(url, pool_size=1)

    async def __call__(self) -> None:
        """Raises if the database does not answer."""
        async with _autocommit(self._engine) as connection:
            await connection.execute(text("SELECT 1"))

    async def close(self) -> None:
        await self._engine.dispose()


def violated_constraint(error: IntegrityError) -> str:
    """Returns the name of the constraint that refused the write. Compare names, never message texts."""
    name: str | None = getattr(getattr(error.orig, "diag", None), "constraint_name", None)
    return name or ""


async def migrate(service: str, url: str) -> None:
    """Migrates the service's database and applies its grants to the role named like the service.

    Replicas that start together queue; the first one does the work.
    """
    import alembic.command
    import alembic.config  # here, because it takes a tenth of a second and only migrating needs it

    here = Path(__file__).parent
    config = alembic.config.Config()
    # A percent sign in the path would be read as a reference to another option.
    config.set_main_option("script_location", str(here / "alembic").replace("%", "%%"))
    config.set_main_option("version_locations", str(here.parents[1] / service / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["url"] = url
    declared = importlib.import_module(f"services.{service}.sql.grants").GRANTS
    config.attributes["grants"] = grants.statement(service, declared)
    await asyncio.to_thread(alembic.command.upgrade, config, "head")


def etag(version: int) -> str:
    """Returns the etag of a resource's `version`, quoted as RFC 9110 requires."""
    return f'"{version}"'


def parse_uuids(texts: Iterable[str]) -> list[uuid.UUID]:
    """Parses ids that the contract's rules have validated."""
    return [uuid.UUID(text) for text in texts]
