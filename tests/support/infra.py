"""PostgreSQL, Valkey and NATS for one test session: three parts of the local mesh, with PostgreSQL's durability off."""

import asyncio
import contextlib
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from deploy.local import Mesh, Site
from tests.support.ports import free_base

_SERVERS = ("postgres", "valkey", "nats")
_FAST = {"fsync": "off", "max_connections": "300", "shared_buffers": "128MB"}


@dataclass(frozen=True)
class Infra:
    """The addresses of this session's servers."""

    postgres_port: int
    valkey_url: str
    nats_url: str
    postgres_log: Path

    def database_url(self, name: str) -> str:
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.postgres_port}/{name}"

    def admin(self, *statements: str) -> None:
        """Runs statements as the superuser, each in its own transaction."""
        with psycopg.connect(f"postgresql://postgres@127.0.0.1:{self.postgres_port}/postgres", autocommit=True) as db:
            for statement in statements:
                db.execute(statement)


@contextlib.contextmanager
def running() -> Iterator[Infra]:
    """Starts the servers on free ports, in a temporary folder. The supervisor runs in a thread of its own."""
    home = Path(tempfile.mkdtemp(prefix="stampede-tests-"))
    site = Site.at(home, free_base())
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="infra")
    thread.start()

    def wait(work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, loop).result()

    mesh = _mesh(site)
    try:
        wait(mesh.start())
        yield Infra(site.ports.postgres, site.valkey_url, site.nats_url, site.log("postgres"))
    finally:
        wait(mesh.stop())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        shutil.rmtree(home, ignore_errors=True)


def _mesh(site: Site) -> Mesh:
    mesh = Mesh(site, _SERVERS)
    initdb, postgres = mesh.alter("initdb"), mesh.alter("postgres")
    # Tests connect often: without a password, a connection costs less.
    mesh.alter("initdb", command=(*initdb.command, "--auth=trust", "--no-sync"))
    mesh.alter("postgres", command=(*postgres.command, *(f"--{name}={value}" for name, value in _FAST.items())))
    mesh.alter("databases", needed=lambda: False)  # each test creates its own
    return mesh


def _start(command: list[str | Path], home: Path) -> subprocess.Popen[bytes]:
    home.mkdir(exist_ok=True)
    with (home / "log").open("wb") as log:
        return subprocess.Popen(command, cwd=home, stdout=log, stderr=log, start_new_session=True)


def _wait(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on port {port}")
