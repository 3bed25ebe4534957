"""The process of a service: servers, clients, background tasks, command line, readiness and drain."""

import argparse
import asyncio
import contextlib
import gc
import os
import resource
import signal
import sys
import time
import types
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Generic

import grpc
import structlog
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import Counter

from services.chassis import settings, telemetry
from services.chassis.client.target import Target
from services.chassis.data import cleanup, db, partitions
from services.chassis.data.cleanup import Cleanup
from services.chassis.events import broadcast, dead_letters, outbox, streams, subscriber
from services.chassis.events.outbox import Relay
from services.chassis.server.access import Gatekeeper, MeshIdentity
from services.chassis.server.guard import Guard
from services.chassis.server.http_server import HttpServer
from services.chassis.server.registry import Registry
from services.chassis.settings import S, ServiceSettings
from services.chassis.telemetry.heartbeats import Hearts, beat, endless, together, waiting
from stampede.identity.v1.identity_service_pb2 import GetJwksRequest
from stampede.identity.v1.identity_service_pb2_grpc import IdentityServiceStub

log = structlog.get_logger()

_FAILURES = Counter("stampede_background_failures_total", "Failures of background tasks, which start again.", ["task"])

_DRAIN_SECONDS = 10.0
# The gateway checks readiness once a second.
_LEAVE_SECONDS = 1.2
_CHECK_SECONDS = 1.0
# A readiness that was not confirmed for so long is none.
_FRESH_SECONDS = 5.0
_RESTART_SECONDS = 1.0
# Open files: the connections of two gateways at their maximum (gateway/cluster.yaml), and all others.
_FILES_MAX = 32_768
_SERVER_OPTIONS = [
    ("grpc.max_receive_message_length", 4 * 1024 * 1024),
    ("grpc.max_concurrent_streams", 10_000),
    ("grpc.so_reuseport", 0),
    # Above its own lower limits gRPC answers a bare CANCELLED; the guard answers with the reason.
    ("grpc.server.max_pending_requests", 20_000),
    ("grpc.server.max_pending_requests_hard_limit", 20_000),
    # A client resolves names again when a connection ends. Without this limit it would never find new replicas.
    ("grpc.max_connection_age_ms", 300_000),
    # Clients ping every 20 seconds; by default gRPC takes that for an attack and closes the connection.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
]


class Process:
    """One running service.

        async with Process("catalog", config) as process:
            add_CatalogServiceServicer_to_server(CatalogService(process.db), process.server)
            await process.serve()

    Leaving the block closes the channels, the database and NATS.
    """

    def __init__(
        self,
        service: str,
        config: ServiceSettings,
        *,
        fetch_jwks: Callable[[], Awaitable[bytes]] | None = None,
    ) -> None:
        """`fetch_jwks` returns the keys that verify tokens. Without it they are fetched from identity."""
        self.service, self._config = service, config
        self.mesh = MeshIdentity(service, *config.mesh_secret.values())
        self._targets: list[Target] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._hearts, self._dead = Hearts(), ""
        self._answered_at = -_FRESH_SECONDS
        self._connecting: asyncio.Task[Any] | None = None
        url = config.database_url.get_secret_value()
        self._engine, self.db = db.connect(url, pool_size=config.database_pool_size)
        self._ping = db.Ping(url)
        self.relay = Relay(self.db, service)
        self._gatekeeper = gatekeeper = Gatekeeper(self.mesh, fetch_jwks or self._jwks_from_identity())
        self._server, self._http = grpc.aio.server(options=_SERVER_OPTIONS), HttpServer(service)
        # Any, because the registry has only the part of a server that generated code uses.
        self.server: Any = Registry(Guard(service, gatekeeper), self._server, self._http)

    async def __aenter__(self) -> "Process":
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_DRAIN_SECONDS)
        if self._dead:
            telemetry.flush()
            os._exit(1)  # an orderly end would wait for a task that hangs
        if self._connecting is not None:
            self._connecting.cancel()
            with contextlib.suppress(Exception, asyncio.CancelledError):
                await (await self._connecting).close()
        await asyncio.gather(*(target.close() for target in self._targets))
        await asyncio.gather(self._engine.dispose(), self._ping.close())

    def target(self, name: str, address: str) -> Target:
        """Returns a client of another service, which is closed with the process."""
        self._targets.append(Target(name, address, self.mesh))
        return self._targets[-1]

    def background(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Runs `work` beside the server until the process ends. If it fails or returns, it is started again.

        `work` and the loops in it must `beat`. If it is silent for a minute, the process is not alive, and ends.
        """

        async def forever() -> None:
            with self._hearts.of(name):
                while beat():
                    try:
                        await endless(name, work())
                    except Exception as error:
                        _FAILURES.labels(name).inc()
                        log.warning("background task failed", task=name, exc_info=error)
                    await asyncio.sleep(_RESTART_SECONDS)

        self._tasks.append(asyncio.create_task(forever(), name=name))

    def run_cleanups(self, *jobs: Cleanup) -> None:
        """Runs each of `jobs` every hour, independently of the others."""
        for job in jobs:
            self.background(f"cleanup of {job.name}", partial(cleanup.run_hourly, self.db, job))

    def make_partitions(self, table: str) -> None:
        """Makes the partitions of `table` before they are needed."""
        self.background(f"partitions of {table}", partial(partitions.keep_made, self.db, table))

    def exchange_events(self, *consumers: subscriber.Consumer, keep: bool = True) -> None:
        """Publishes the events of the outbox and runs `consumers` while NATS is available.

        With `keep`, events that the broker loses are published again. A service whose events no consumer reads, but
        only live views, can do without.
        """
        self.relay.keeps = keep

        async def exchange() -> None:
            connection = await self._connected()
            jetstream = connection.jetstream()
            await streams.declare_streams(jetstream, self.service)
            works = {"relay": self.relay.run(connection), "dead letters": dead_letters.measure(jetstream, consumers)}
            works |= {consumer.name: consumer.run(jetstream) for consumer in consumers}
            await together(works)

        self.background("events", exchange)
        self.run_cleanups(outbox.CLEANUP)
        self.background("outbox metrics", self.relay.measure)

    def listen(self, subject: str, receive: Callable[[bytes], None], *, listener: broadcast.Listener) -> None:
        """Gives `receive` the payload of each event that any process publishes on `subject`, while `listener` wants it.

        `receive` must be quick: it is called for each event. While NATS is unavailable, `listener.live` is False.
        """

        async def listen() -> None:
            await broadcast.listen(await self._connected(), subject, receive, listener)

        self.background(f"listen {subject}", listen)

    async def _connected(self) -> Any:
        """Returns the process's one connection to NATS; waits until NATS is available."""
        connecting = self._connecting
        if connecting is None or (connecting.done() and (connecting.cancelled() or connecting.exception())):
            url = self._config.nats_url.get_secret_value()
            connecting = self._connecting = asyncio.create_task(subscriber.connect(url, self.service))
        return await waiting(asyncio.shield(connecting))

    async def serve(self, *services: str, ready: Callable[[], Awaitable[None]] | None = None) -> None:
        """Answers calls until SIGTERM or SIGINT, then drains: it turns not ready, and calls in flight finish.

        `services` are the full names of the gRPC services, for reflection. The process is ready while its database
        answers and `ready`, if given, does not raise.
        """
        checks = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(checks, self._server)
        reflection.enable_server_reflection((*services, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        await checks.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        self._server.add_insecure_port(self._config.listen)
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        self.background("public keys", self._gatekeeper.follow_keys)
        self._http.start(self._config.http_listen)
        await self._server.start()
        log.info("started", listen=self._config.listen, http_listen=self._config.http_listen)
        watcher = asyncio.create_task(self._watch_readiness(checks, ready), name="readiness")
        self._watch_tasks(watcher, stop)
        await stop.wait()

        log.info("draining")
        watcher.cancel()
        # Readiness turns first, so that no new call arrives while those in flight finish.
        self._http.ready = False
        await checks.enter_graceful_shutdown()
        await asyncio.sleep(_LEAVE_SECONDS)
        await asyncio.gather(self._server.stop(_DRAIN_SECONDS), self._http.stop(_DRAIN_SECONDS))
        log.info("stopped")

    def _watch_tasks(self, watcher: asyncio.Task[None], stop: asyncio.Event) -> None:
        """Ends the process if a background task has ended or hangs. A timer calls it: it has no task that could."""
        if stop.is_set():
            return
        if time.monotonic() < self._answered_at + _FRESH_SECONDS:
            self._hearts.tick(_CHECK_SECONDS)
        else:
            self._http.ready = False  # also if the check itself hangs
        ended = [task.get_name() for task in (watcher, *self._tasks) if task.done()]
        if dead := ", ".join([*ended, *self._hearts.silent()]):
            log.error("background tasks stand still", tasks=dead)
            self._http.dead = self._dead = dead
            stop.set()
        asyncio.get_running_loop().call_later(_CHECK_SECONDS, self._watch_tasks, watcher, stop)

    async def _watch_readiness(
        self, checks: health.aio.HealthServicer, ready: Callable[[], Awaitable[None]] | None
    ) -> None:
        was = None
        while beat():
            try:
                async with asyncio.timeout(2 * _CHECK_SECONDS):
                    await self._ping()
                    self._answered_at = time.monotonic()
                    if ready:
                        await ready()
                now = health_pb2.HealthCheckResponse.SERVING
            except Exception as error:
                log.warning("not ready", cause=error)
                now = health_pb2.HealthCheckResponse.NOT_SERVING
            self._http.ready = now == health_pb2.HealthCheckResponse.SERVING
            if now != was:
                await checks.set("", now)
                was = now
            await asyncio.sleep(_CHECK_SECONDS if was == health_pb2.HealthCheckResponse.SERVING else 0.1)

    def _jwks_from_identity(self) -> Callable[[], Awaitable[bytes]]:
        identity = self.target("identity", self._config.identity_target)
        stub = IdentityServiceStub(identity.channel)

        async def fetch() -> bytes:
            return bytes((await identity.call(stub.GetJwks, GetJwksRequest())).data)

        return fetch


@dataclass(frozen=True)
class Command(Generic[S]):
    """A command for operators: `python -m services.<service> <name> …`."""

    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    """Adds the arguments of the command to its parser."""
    work: Callable[[S, argparse.Namespace], Coroutine[Any, Any, int]]
    """Runs the command; returns the exit code."""


def run(
    service: str,
    kind: type[S],
    main: Callable[[S], Coroutine[Any, Any, None]],
    *,
    consumers: subscriber.Consumers | None = None,
    commands: Mapping[str, Command[S]] = types.MappingProxyType({}),
) -> None:
    """Runs the command line of a service: `python -m services.<service> [serve|migrate|up|dead-letters|…]`.

    `consumers` are those whose dead letters the command `dead-letters` handles; `commands` are the service's own.
    """
    commands = dict(commands)
    if consumers:
        commands["dead-letters"] = Command(
            "list, show, replay or drop the events that a consumer gave up",
            dead_letters.add_arguments,
            lambda config, options: dead_letters.run_command(config, options, consumers),
        )
    options = _parser(service, commands).parse_args()
    command = options.command or "serve"
    config = settings.load(kind)
    if command in commands:
        sys.exit(asyncio.run(commands[command].work(config, options)))
    if command in ("migrate", "up"):
        if config.migration_database_url is None:
            raise SystemExit("settings are not usable:\n  MIGRATION_DATABASE_URL: migrate needs it")
        asyncio.run(db.migrate(service, config.migration_database_url.get_secret_value()))
    if command in ("serve", "up"):
        _raise_file_limit()
        # Calls leave few reference cycles, and a full collection pauses all of them: collect less often.
        gc.freeze()
        gc.set_threshold(10_000, 50, 100)
        telemetry.start(service, log_level=config.log_level, metrics_listen=config.metrics_listen)
        uvloop.run(main(config))


def _parser(service: str, commands: Mapping[str, Command[Any]]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m services.{service}",
        description=f"Stampede's {service} service. services/{service}/README.md lists its settings.",
    )
    subparsers = parser.add_subparsers(dest="command", metavar="command")
    subparsers.add_parser("serve", help="answer calls until SIGTERM (default)")
    subparsers.add_parser("migrate", help="migrate the database, then exit")
    subparsers.add_parser("up", help="migrate, then serve")
    for name, command in commands.items():
        command.arguments(subparsers.add_parser(name, help=command.help, description=command.help))
    return parser


def _raise_file_limit() -> None:
    """Raises the limit of open files. Each call from the gateway is a connection; the default is often 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, _FILES_MAX)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
