"""A load generator that costs little: raw HTTP/1.1, and of each request only its id is made while the clock runs.

Run as a process of its own, so that its CPU time stands apart: `python -m tests.bench.load < job.json > result.json`.
"""

import asyncio
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import uvloop

REQUEST_ID = "REQUEST_ID"
# What stands in `Result.answers` where there was no answer.
LOST, SILENT, UNSENT = "connection lost", "no answer", "never sent"
_RECONNECTS_MOST = 1_000
_LOOK_SECONDS, _TELL_SECONDS = 1.0, 5.0
_TERMINAL = sys.stderr.isatty()
_SHUFFLE_SEED = 1


@dataclass(frozen=True)
class Job:
    """What to send: `requests` POSTs over `connections` keep-alive connections, each again once it is answered."""

    port: int
    path: str
    bodies: list[str]
    """Taken in turn; with `REQUEST_ID` where each request has an id of its own."""
    tokens: list[str]
    """Of the customers who send them, in turn; of nobody where it is empty."""
    connections: int
    requests: int
    shuffled: bool = False
    """Customers come in no particular order, each as often as the others; the same order in every run."""
    progress: str = ""
    """What to call the requests when telling on stderr how far they are; nothing is told where it is empty."""
    patience_seconds: float = 30.0
    """Who hears nothing on any connection for so long gives up."""


@dataclass
class Result:
    """What came back."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    answers: dict[str, int] = field(default_factory=dict)
    """By HTTP status, and by reason where an error names one; or `LOST`, `SILENT`, `UNSENT`. All requests are in it."""
    p50_ms: float = 0.0
    p99_ms: float = 0.0


class Crowd:
    """All connections of a job, which take what is to be sent from one supply."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.supply = _requests(job)
        self.answers: Counter[str] = Counter()
        self.latencies: list[float] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._open = 0
        self._reconnects = _RECONNECTS_MOST
        self._dialling: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Returns when everything is answered, or nothing is answered any more."""
        for _ in range(self._job.connections):
            self._dial()
        answered, heard, told = 0, time.perf_counter(), 0.0
        while not self.done.done():
            await asyncio.wait([self.done], timeout=min(_LOOK_SECONDS, self._job.patience_seconds))
            now = time.perf_counter()
            if len(self.latencies) > answered:
                answered, heard = len(self.latencies), now
            elif now - heard > self._job.patience_seconds:
                return
            if self._job.progress and now - told > (_LOOK_SECONDS if _TERMINAL else _TELL_SECONDS):
                told = now
                self._tell(f"{answered:>9,} of {self._job.requests:,} {self._job.progress}")
        if _TERMINAL and self._job.progress:
            self._tell("")

    def ended(self, *, lost: bool, more: bool) -> None:
        """Says that a connection has ended: before its request was answered, or to be followed by another."""
        self._open -= 1
        if lost:
            self.answers[LOST] += 1
        if (lost or more) and self._reconnects > 0:
            self._reconnects -= 1
            self._dial()
        elif not self._open and not self.done.done():
            self.done.set_result(None)

    def _dial(self) -> None:
        self._open += 1
        dialling = asyncio.create_task(self._connect())
        self._dialling.add(dialling)
        dialling.add_done_callback(self._dialling.discard)

    async def _connect(self) -> None:
        try:
            loop = asyncio.get_running_loop()
            await loop.create_connection(lambda: Connection(self), "127.0.0.1", self._job.port)
        except OSError:
            self.ended(lost=False, more=False)

    def _tell(self, line: str) -> None:
        sys.stderr.write(f"\r\x1b[K{line}" if _TERMINAL else f"{line}\n")
        sys.stderr.flush()


class Connection(asyncio.Protocol):
    """One keep-alive connection that sends one request after the other."""

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd
        self._buffer = b""
        self._sent = 0.0
        self._waiting = self._last = False
        self._transport: asyncio.WriteTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's has no base class to ask for
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        self._crowd.ended(lost=self._waiting, more=self._last)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer = self._buffer + data if self._buffer else data
        if not (size := _size(buffer)) or len(buffer) < size:
            return
        self._buffer = b""
        crowd = self._crowd
        crowd.latencies.append(time.perf_counter() - self._sent)
        status = buffer[9:12].decode()
        if status != "200" and (at := buffer.find(b'"reason":"')) > 0:
            status += " " + buffer[at + 10 : buffer.index(b'"', at + 10)].decode()
        crowd.answers[status] += 1
        self._waiting = False
        if b"connection: close\r\n" in buffer[:size]:
            self._last = True
            self._transport.close()
        else:
            self._next()

    def _next(self) -> None:
        request = next(self._crowd.supply, None)
        if request is None:
            self._transport.close()
            return
        self._waiting = True
        self._sent = time.perf_counter()
        self._transport.write(request)


def _size(buffer: bytes) -> int:
    """How long the answer at the start of `buffer` is; 0 while that cannot be told."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        return 0
    head = buffer[: end + 2].lower()
    if (at := head.find(b"\r\ncontent-length:")) >= 0:
        return end + 4 + int(head[at + 17 : head.find(b"\r", at + 17)])
    last = buffer.find(b"\r\n0\r\n\r\n", end + 2)
    return last + 7 if last >= 0 else 0


def _requests(job: Job) -> Iterator[bytes]:
    """Everything there is to send, in the order in which it is sent."""
    head = f"POST {job.path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    heads = [f"{head}authorization: Bearer {token}\r\n".encode() for token in job.tokens] or [head.encode()]
    bodies = []
    for body in job.bodies:
        before, id_, after = body.partition(REQUEST_ID)
        length = len(body.encode()) + (len(_new_id()) - len(REQUEST_ID) if id_ else 0)
        bodies.append((f"content-length: {length}\r\n\r\n{before}".encode(), bool(id_), after.encode()))
    customers = [number % len(heads) for number in range(job.requests)]
    if job.shuffled:
        random.Random(_SHUFFLE_SEED).shuffle(customers)
    for number, customer in enumerate(customers):
        start, has_id, rest = bodies[number % len(bodies)]
        yield b"".join((heads[customer], start, _new_id() if has_id else b"", rest))


def _new_id() -> bytes:
    """A random UUID, at a third of the cost of `uuid.uuid4`."""
    digits = os.urandom(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-8{digits[17:20]}-{digits[20:]}".encode()


async def run(job: Job) -> Result:
    """Sends everything and measures."""
    crowd = Crowd(job)
    started, cpu = time.perf_counter(), time.process_time()
    await crowd.run()
    result = Result(time.perf_counter() - started, time.process_time() - cpu)
    unsent = sum(1 for _ in crowd.supply)
    crowd.answers[UNSENT] += unsent
    crowd.answers[SILENT] += job.requests - crowd.answers.total()
    result.answers = dict(+crowd.answers)
    latencies = sorted(crowd.latencies)
    if latencies:
        result.p50_ms = latencies[len(latencies) // 2] * 1000
        result.p99_ms = latencies[len(latencies) * 99 // 100] * 1000
    return result


if __name__ == "__main__":
    json.dump(asdict(uvloop.run(run(Job(**json.load(sys.stdin))))), sys.stdout)
