"""Those who watch: a connection each, with server-sent events. `python -m tests.bench.watchers < job.json`.

Says `watching` once each of them has been told something, and at the end of its input how many still watch.
"""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import uvloop

_ROOT = Path(__file__).parents[2]
_DIALS_AT_ONCE = 8  # each asks the database: they are not to crowd out what is measured
_START_SECONDS = 120


@dataclass(frozen=True)
class Job:
    """What is watched, and by whom: as many paths as tokens."""

    port: int
    paths: Sequence[str]
    tokens: Sequence[str]


class Watcher(asyncio.Protocol):
    """One open stream."""

    def __init__(self, request: bytes) -> None:
        self._request, self._buffer = request, b""
        self.told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.is_open = True
        self.transport: asyncio.WriteTransport = transport  # type: ignore[assignment]  # as in `load`
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self.told.done():
            return
        self._buffer += data
        if not self._buffer.startswith(b"HTTP/1.1 200"):
            self._fail()
        elif b"data:" in self._buffer:
            self.told.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if not self.told.done():
            self._fail()

    def _fail(self) -> None:
        self.transport.close()
        self.told.set_exception(RuntimeError(f"a watcher was told {self._buffer[:1000]!r}"))


async def watch(job: Job) -> list[Watcher]:
    """Opens all streams; returns when each has been told something. Raises `RuntimeError` where one is refused."""
    loop, places = asyncio.get_running_loop(), asyncio.Semaphore(_DIALS_AT_ONCE)

    async def one(path: str, token: str) -> Watcher:
        head = f"GET {path} HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\nauthorization: Bearer {token}"
        async with places:
            _, watcher = await loop.create_connection(
                lambda: Watcher(f"{head}\r\n\r\n".encode()), "127.0.0.1", job.port
            )
            await watcher.told
        return watcher

    return list(await asyncio.gather(*(one(*whose) for whose in zip(job.paths, job.tokens, strict=True))))


@contextlib.asynccontextmanager
async def watching(job: Job) -> AsyncIterator[None]:
    """Runs `job` in a process of its own for as long as the block lasts. Raises `RuntimeError` where a stream ends."""
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.watchers",
        cwd=_ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert program.stdin
    assert program.stdout
    try:
        program.stdin.write(f"{json.dumps(asdict(job))}\n".encode())
        async with asyncio.timeout(_START_SECONDS):
            _expect(await program.stdout.readline(), "watching")
        yield
        program.stdin.close()
        _expect(await program.stdout.readline(), str(len(job.paths)))
    finally:
        if program.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it may just have ended
                program.kill()
        await program.wait()


def _expect(line: bytes, wanted: str) -> None:
    if (said := line.decode().strip()) != wanted:
        raise RuntimeError(f"watchers say {said!r} instead of {wanted!r}")


async def main() -> None:
    watchers = await watch(Job(**json.loads(sys.stdin.readline())))
    print("watching", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    print(sum(watcher.is_open for watcher in watchers), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
