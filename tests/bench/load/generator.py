"""A cheap load generator: raw HTTP/1.1; only the request id is made while the clock runs.

It runs as a process of its own, so that its CPU time is counted separately:
`python -m tests.bench.load.generator < job.json > result.json`.
"""

import asyncio
import itertools
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
# The keys of `Result.answers` for requests without an answer.
LOST, SILENT, UNSENT = "connection lost", "no answer", "never sent"
_RECONNECTS_MAX = 1_000
_CHECK_SECONDS, _PROGRESS_SECONDS = 1.0, 5.0
_TERMINAL = sys.stderr.isatty()
_SHUFFLE_SEED = 1


@dataclass(frozen=True)
class Job:
    """`requests` POSTs over `connections` keep-alive connections; each connection sends again once it is answered."""

    port: int
    path: str
    bodies: list[str]
    """Sent in turn; `REQUEST_ID` in a body is replaced by a new id for each request."""
    tokens: list[str]
    """Access tokens of the customers, used in turn; an empty list sends no token."""
    connections: int
    requests: int
    headers: list[str] = field(default_factory=list)
    """One more header line for each body, such as its signature; or none."""
    shuffled: bool = False
    """Shuffle the customers' order, with a fixed seed; each still sends as often as the others."""
    progress: str = ""
    """The noun of the progress lines on stderr; an empty string prints none."""
    patience_seconds: float = 30.0
    """Stop after this long without an answer on any connection."""


@dataclass
class Result:
    """The answers to a job, and the time they took."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    answers: dict[str, int] = field(default_factory=dict)
    """Counts by HTTP status, with the error's reason if there is one; or `LOST`, `SILENT`, `UNSENT`.

    The counts add up to the number of requests.
    """
    p50_ms: float = 0.0
    p99_ms: float = 0.0


class LoadRun:
    """All connections of a job; they take their requests from one iterator."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.requests = _requests(job)
        self.answers: Counter[str] = Counter()
        self.latencies: list[float] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._open = 0
        self._reconnects = _RECONNECTS_MAX
        self._connecting: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Return when every request is answered, or when answers stop for `patience_seconds`."""
        for _ in range(self._job.connections):
            self._open_connection()
        answered, last_answer, last_progress = 0, time.perf_counter(), 0.0
        while not self.done.done():
            await asyncio.wait([self.done], timeout=min(_CHECK_SECONDS, self._job.patience_seconds))
            now = time.perf_counter()
            if len(self.latencies) > answered:
                answered, last_answer = len(self.latencies), now
            elif now - last_answer > self._job.patience_seconds:
                return
            if self._job.progress and now - last_progress > (_CHECK_SECONDS if _TERMINAL else _PROGRESS_SECONDS):
                last_progress = now
                self._print_progress(f"{answered:>9,} of {self._job.requests:,} {self._job.progress}")
        if _TERMINAL and self._job.progress:
            self._print_progress("")

    def connection_ended(self, *, lost: bool, reconnect: bool) -> None:
        """Count a connection that ended, `lost` if a request was unanswered, and open another one if needed."""
        self._open -= 1
        if lost:
            self.answers[LOST] += 1
        if (lost or reconnect) and self._reconnects > 0:
            self._reconnects -= 1
            self._open_connection()
        elif not self._open and not self.done.done():
            self.done.set_result(None)

    def _open_connection(self) -> None:
        self._open += 1
        connecting = asyncio.create_task(self._connect())
        self._connecting.add(connecting)
        connecting.add_done_callback(self._connecting.discard)

    async def _connect(self) -> None:
        try:
            loop = asyncio.get_running_loop()
            await loop.create_connection(lambda: Connection(self), "127.0.0.1", self._job.port)
        except OSError:
            self.connection_ended(lost=False, reconnect=False)

    def _print_progress(self, line: str) -> None:
        sys.stderr.write(f"\r\x1b[K{line}" if _TERMINAL else f"{line}\n")
        sys.stderr.flush()


class Connection(asyncio.Protocol):
    """One keep-alive connection that sends one request after the other."""

    def __init__(self, run: LoadRun) -> None:
        self._run = run
        self._buffer = b""
        self._sent = 0.0
        self._awaits_answer = self._closed_by_server = False
        self._transport: asyncio.WriteTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's transport has no public base class
        self._send_next()

    def connection_lost(self, exc: Exception | None) -> None:
        self._run.connection_ended(lost=self._awaits_answer, reconnect=self._closed_by_server)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer = self._buffer + data if self._buffer else data
        if not (size := _answer_size(buffer)) or len(buffer) < size:
            return
        self._buffer = b""
        run = self._run
        run.latencies.append(time.perf_counter() - self._sent)
        status = buffer[9:12].decode()
        if status != "200" and (at := buffer.find(b'"reason":"')) > 0:
            status += " " + buffer[at + 10 : buffer.index(b'"', at + 10)].decode()
        run.answers[status] += 1
        self._awaits_answer = False
        if b"connection: close\r\n" in buffer[:size]:
            self._closed_by_server = True
            self._transport.close()
        else:
            self._send_next()

    def _send_next(self) -> None:
        request = next(self._run.requests, None)
        if request is None:
            self._transport.close()
            return
        self._awaits_answer = True
        self._sent = time.perf_counter()
        self._transport.write(request)


def _answer_size(buffer: bytes) -> int:
    """Return the length of the answer at the start of `buffer`, or 0 while it is unknown."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        return 0
    head = buffer[: end + 2].lower()
    if (at := head.find(b"\r\ncontent-length:")) >= 0:
        return end + 4 + int(head[at + 17 : head.find(b"\r", at + 17)])
    last = buffer.find(b"\r\n0\r\n\r\n", end + 2)
    return last + 7 if last >= 0 else 0


def _requests(job: Job) -> Iterator[bytes]:
    """Yield every request of the job in sending order."""
    head = f"POST {job.path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    heads = [f"{head}authorization: Bearer {token}\r\n".encode() for token in job.tokens] or [head.encode()]
    bodies = []
    for body, header in itertools.zip_longest(job.bodies, job.headers, fillvalue=""):
        before, id_, after = body.partition(REQUEST_ID)
        length = len(body.encode()) + (len(_new_id()) - len(REQUEST_ID) if id_ else 0)
        line = f"{header}\r\n" if header else ""
        bodies.append((f"{line}content-length: {length}\r\n\r\n{before}".encode(), bool(id_), after.encode()))
    customers = [number % len(heads) for number in range(job.requests)]
    if job.shuffled:
        random.Random(_SHUFFLE_SEED).shuffle(customers)
    for number, customer in enumerate(customers):
        start, has_id, rest = bodies[number % len(bodies)]
        yield b"".join((heads[customer], start, _new_id() if has_id else b"", rest))


def _new_id() -> bytes:
    """Return a random UUID, at a third of the cost of `uuid.uuid4`."""
    digits = os.urandom(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-8{digits[17:20]}-{digits[20:]}".encode()


async def run(job: Job) -> Result:
    """Send every request of the job and return the counts and times."""
    load_run = LoadRun(job)
    started, cpu = time.perf_counter(), time.process_time()
    await load_run.run()
    result = Result(time.perf_counter() - started, time.process_time() - cpu)
    unsent = sum(1 for _ in load_run.requests)
    load_run.answers[UNSENT] += unsent
    load_run.answers[SILENT] += job.requests - load_run.answers.total()
    result.answers = dict(+load_run.answers)
    latencies = sorted(load_run.latencies)
    if latencies:
        result.p50_ms = latencies[len(latencies) // 2] * 1000
        result.p99_ms = latencies[len(latencies) * 99 // 100] * 1000
    return result


if __name__ == "__main__":
    json.dump(asdict(uvloop.run(run(Job(**json.load(sys.stdin))))), sys.stdout)
