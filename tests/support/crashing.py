"""Run a service that dies or stops at a chosen crash point: `python -m tests.support.crashing orders serve`.

The code of the service is unchanged. Once its `Trap` is armed, the process counts the crash points that it passes:
before and after each call of another service, each request to the provider, and each transaction that writes. At the
n-th it dies by SIGKILL, or stops by SIGSTOP until the test lets it go on. A point is named by what happens there:
`before BatchCharge`, `after commit of actions.place`.
"""

import functools
import json
import os
import re
import runpy
import signal
import sys
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import aiohttp
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.ext.asyncio import async_sessionmaker

from services.chassis.client.target import Target
from services.chassis.data import db
from tests.support.waiting import until

_real_begin = async_sessionmaker.begin
_at_work: ContextVar[str] = ContextVar("at_work", default="")
_FOLDER = "CRASHING"
_WRITES = re.compile(r"\b(INSERT|UPDATE|DELETE)\b")
_SERVICES = f"{os.sep}services{os.sep}"
_DATABASE = str(Path("chassis/data/db.py"))
# Of the chassis's statements only these belong to orders; those of leases and clean-ups do not.
_COUNTED_OF_CHASSIS = ("outbox", "subscriber", "idempotency")
# The functions that look for due work several times a second.
_CLAIM = ".claim_"


@dataclass(frozen=True)
class Trap:
    """A folder that a test and the process that shall die or stop share."""

    folder: Path

    def environment(self) -> dict[str, str]:
        """The variables with which the process must be started."""
        return {_FOLDER: str(self.folder)}

    def arm(self, occurrence: int, *, name: str = "", stops: bool = False) -> None:
        """Let the process die, or stop, at the n-th point from now on; with a name, at the n-th point of that name."""
        self.forget()
        draft = self.folder / "draft"
        draft.write_text(json.dumps({"occurrence": occurrence, "name": name, "stops": stops}))
        draft.rename(self.folder / "armed")

    def forget(self) -> None:
        """Remove the traces of an earlier use."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in ("sprung", "passed"):
            (self.folder / left).unlink(missing_ok=True)

    def disarm(self) -> bool:
        """Disarm the trap. False if it has sprung already."""
        try:
            (self.folder / "armed").unlink()
        except FileNotFoundError:
            return False
        return True

    @property
    def sprung_at(self) -> str:
        """The name of the point at which the process died or stopped; empty while it has not."""
        sprung = self.folder / "sprung"
        return sprung.read_text() if sprung.exists() else ""

    @property
    def passed(self) -> list[str]:
        """The points that were passed since the trap was armed, the last one included."""
        passed = self.folder / "passed"
        return passed.read_text().splitlines() if passed.exists() else []

    async def sprung(self, *, seconds: float) -> str:
        """The point at which the process died or stopped, once it has."""

        async def look() -> str:
            return self.sprung_at

        return str(await until(look, seconds=seconds))


class _Points:
    """Counts the points that this process passes while its trap is armed."""

    def __init__(self, folder: Path) -> None:
        self._armed, self._sprung, self._passed = folder / "armed", folder / "sprung", folder / "passed"
        self._arming: tuple[int, int] = (0, 0)
        self._left, self._name, self._signal = 0, "", signal.SIGKILL

    def passes(self, name: str) -> None:
        """Die or stop here if this is the chosen point."""
        try:
            found = self._armed.stat()
        except FileNotFoundError:
            return
        arming = (found.st_ino, found.st_mtime_ns)
        if arming != self._arming:
            wanted = json.loads(self._armed.read_text())
            self._arming, self._left, self._name = arming, wanted["occurrence"], wanted["name"]
            self._signal = signal.SIGSTOP if wanted["stops"] else signal.SIGKILL
        if self._name not in ("", name):
            return
        with self._passed.open("a") as passed:
            passed.write(f"{name}\n")
        self._left -= 1
        if self._left > 0:
            return
        draft = self._sprung.with_suffix(".draft")
        draft.write_text(name)
        self._armed.unlink(missing_ok=True)
        draft.rename(self._sprung)
        os.kill(os.getpid(), self._signal)

    def around(self, call: Callable[..., Awaitable[Any]], name: Callable[..., str]) -> Callable[..., Awaitable[Any]]:
        """Wrap `call` with a point before and one after it; with none where `name` returns nothing."""

        @functools.wraps(call)
        async def wrapped(*arguments: Any, **named: Any) -> Any:
            point = name(*arguments, **named)
            if point:
                self.passes(f"before {point}")
            answer = await call(*arguments, **named)
            if point:
                self.passes(f"after {point}")
            return answer

        return wrapped

    def statement(self, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """Wrap a statement that is a transaction. One that looks for due work counts once it has found some."""

        @functools.wraps(call)
        async def wrapped(database: Any, statement: Any, arguments: Any) -> Any:
            caller = _caller() if _WRITES.search(str(statement)) else ""
            claims = _CLAIM in caller
            if caller and not claims:
                self.passes(f"before commit of {caller}")
            rows = await call(database, statement, arguments)
            if caller and (rows or not claims):
                self.passes(f"after commit of {caller}")
            return rows

        return wrapped

    def commit(self, call: Callable[..., None]) -> Callable[..., None]:
        """Wrap the commit of a transaction, which counts if the transaction has written."""

        def wrapped(dialect: Any, connection: Any) -> None:
            cursor = connection.cursor()
            cursor.execute("SELECT pg_current_xact_id_if_assigned()")
            wrote = cursor.fetchone()[0] is not None
            cursor.close()
            point = _at_work.get() if wrote else ""
            if point:
                self.passes(f"before commit of {point}")
            call(dialect, connection)
            if point:
                self.passes(f"after commit of {point}")

        return wrapped


def _caller() -> str:
    """The function of the service that is running, as `actions.place`; empty for work that belongs to no order."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path, name = frame.f_code.co_filename, frame.f_code.co_name
        frame = frame.f_back
        if _SERVICES not in path or path.endswith(_DATABASE):
            continue
        module = Path(path).stem
        if f"{os.sep}chassis{os.sep}" in path and module not in _COUNTED_OF_CHASSIS:
            return ""
        return f"{module}.{name}"
    return ""


def _begin(sessions: Any) -> Any:
    """`async_sessionmaker.begin`, which records its caller: the commit runs in a task of its own."""
    _at_work.set(_caller())
    return _real_begin(sessions)


def _of_rpc(_target: Any, method: Any, *_: Any, **__: Any) -> str:
    name = str(method._method.decode().rpartition("/")[2])
    return "" if name.startswith("Get") else name  # a read changes nothing


def _of_request(_session: Any, method: str, url: Any, **_: Any) -> str:
    path = str(url).partition("://")[2].partition("/")[2].partition("?")[0]
    return f"{method.upper()} {re.sub(r'(pi|re|ch)_[A-Za-z0-9]+', '*', path)}"


def main() -> None:
    service = sys.argv.pop(1)
    points = _Points(Path(os.environ[_FOLDER]))
    # Before the service is imported: it must find the wrapped functions.
    Target.call = points.around(Target.call, _of_rpc)  # type: ignore[method-assign]
    db.run_autocommit = points.statement(db.run_autocommit)  # type: ignore[assignment]
    async_sessionmaker.begin = _begin  # type: ignore[method-assign]
    DefaultDialect.do_commit = points.commit(DefaultDialect.do_commit)  # type: ignore[method-assign]
    aiohttp.ClientSession._request = points.around(  # type: ignore[method-assign, assignment]
        aiohttp.ClientSession._request, _of_request
    )
    sys.argv[0] = service
    runpy.run_module(f"services.{service}", run_name="__main__")


if __name__ == "__main__":
    main()
