"""Clients that watch an order over server-sent events, one connection each: `python -m tests.bench.load.watchers`.

The program reads a job as one line of JSON. It prints `watching` once each stream has delivered a message. When its
input ends, it prints how many streams are still open.
"""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import uvloop

_ROOT = Path(__file__).parents[3]
_CONNECTS_AT_ONCE = 8  # each new stream reads the database once; more would slow down the measured orders
_START_SECONDS = 120


@dataclass(frozen=True)
class Job:
    """The paths to watch, each with the token of its customer."""

    port: int
    paths: Sequence[str]
    tokens: Sequence[str]


class Watcher(asyncio.Protocol):
    """One open stream."""

    def __init__(self, request: bytes) -> None:
        self._request, self._buffer = request, b""
        self.first_message: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.is_open = True
        self.transport: asyncio.WriteTransport = transport  # type: ignore[assignment]  # as in `generator`
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self.first_message.done():
            return
        self._buffer += data
        if not self._buffer.startswith(b"HTTP/1.1 200"):
            self._fail()
        elif b"data:" in self._buffer:
            self.first_message.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if not self.first_message.done():
            self._fail()

    def _fail(self) -> None:
        self.transport.close()
        self.first_message.set_exception(RuntimeError(f"a watcher received {self._buffer[:1000]!r}"))


async def watch(job: Job) -> list[Watcher]:
    """Open all streams; return when each has delivered a message. Raises `RuntimeError` if one is refused."""
    loop, slots = asyncio.get_running_loop(), asyncio.Semaphore(_CONNECTS_AT_ONCE)

    async def open_stream(path: str, token: str) -> Watcher:
        head = f"GET {path} HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\nauthorization: Bearer {token}"
        async with slots:
            _, watcher = await loop.create_connection(
                lambda: Watcher(f"{head}\r\n\r\n".encode()), "127.0.0.1", job.port
            )
            await watcher.first_message
        return watcher

    streams = zip(job.paths, job.tokens, strict=True)
    return list(await asyncio.gather(*(open_stream(path, token) for path, token in streams)))


@contextlib.asynccontextmanager
async def watching(job: Job) -> AsyncIterator[None]:
    """Run `job` in a process of its own during the block. Raises `RuntimeError` if a stream ends early."""
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.load.watchers",
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
            with contextlib.suppress(ProcessLookupError):  # it may end between the check and the signal
                program.kill()
        await program.wait()


def _expect(line: bytes, wanted: str) -> None:
    if (printed := line.decode().strip()) != wanted:
        raise RuntimeError(f"the watchers printed {printed!r} instead of {wanted!r}")


async def main() -> None:
    watchers = await watch(Job(**json.loads(sys.stdin.readline())))
    print("watching", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    print(sum(watcher.is_open for watcher in watchers), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
