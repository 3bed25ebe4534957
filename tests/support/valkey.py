"""A Valkey of a test's own, to be killed, paused, emptied and replaced."""

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


class Valkey:
    """One server, always on the same port. Its data outlives it in `dump`, where it was saved."""

    def __init__(self, home: Path, *options: str) -> None:
        self.port, self.home, self._options = free_port(), home, options
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.dump = home / "dump.rdb"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it with what is in `dump`."""
        command = [wheels.valkey(), "--port", str(self.port), "--bind", "127.0.0.1"]
        # Saved only when it is told to.
        self._process = _start([*command, "--dir", str(self.home), "--save", "", *self._options], self.home)
        _wait(self.port)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        assert self._process
        self._process.wait(20)

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def recover(self) -> None:
        """Has it run again, whatever was done to it."""
        assert self._process
        if self._process.poll() is None:
            self.go_on()
        else:
            self.start()

    def forget(self) -> None:
        """Throws away what was saved."""
        self.dump.unlink(missing_ok=True)

    def _signal(self, number: int) -> None:
        assert self._process
        self._process.send_signal(number)


@contextlib.contextmanager
def a_valkey(*options: str) -> Iterator[Valkey]:
    """A running server, in a folder that is thrown away."""
    home = Path(tempfile.mkdtemp(prefix="stampede-valkey-"))
    valkey = Valkey(home, *options)
    try:
        valkey.start()
        yield valkey
    finally:
        if valkey._process:
            valkey.kill()
        shutil.rmtree(home, ignore_errors=True)
