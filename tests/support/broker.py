"""A NATS server of a test's own, to be killed, paused and started again with what it stored."""

import contextlib
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from deploy.local import wheels
from tests.support.infra import _start, _wait
from tests.support.ports import free_port


class Broker:
    """One server with JetStream, always on the same port and with the same store."""

    def __init__(self, home: Path) -> None:
        self.port, self.home = free_port(), home
        self.url = f"nats://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        arguments = ["-js", "-a", "127.0.0.1", "-p", str(self.port), "-sd", str(self.home / "store")]
        self._process = _start([wheels.nats(), *arguments], self.home)
        _wait(self.port)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        assert self._process
        self._process.wait(20)

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self._process
        self._process.send_signal(number)


@contextlib.contextmanager
def a_broker() -> Iterator[Broker]:
    """A running server, in a folder that is thrown away."""
    home = Path(tempfile.mkdtemp(prefix="stampede-nats-"))
    broker = Broker(home)
    broker.start()
    try:
        yield broker
    finally:
        with contextlib.suppress(ProcessLookupError):
            broker.kill()
        shutil.rmtree(home, ignore_errors=True)
