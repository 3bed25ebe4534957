"""A load generator that costs little: raw HTTP/1.1 over asyncio, requests made before the clock starts.

Run as a process of its own, so that its CPU time stands apart: `python -m tests.bench.load < job.json > result.json`.
"""

import asyncio
import json
import sys
import time
import uuid
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Job:
    """What to send: `requests` POSTs over `connections` keep-alive connections, each again once it is answered."""

    port: int
    path: str
    body: str
    """With `REQUEST_ID` where each request has an id of its own."""
    tokens: list[str]
    connections: int
    requests: int
    retry_busy: bool = False


@dataclass
class Result:
    """What came back."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    answers: dict[str, int] = field(default_factory=dict)
    """By HTTP status, and by reason where an error names one."""
    p50_ms: float = 0.0
    p99_ms: float = 0.0


class Connection(asyncio.Protocol):
    """One keep-alive connection that sends its share, one after the other."""

    def __init__(
        self, requests: list[bytes], result: Result, latencies: list[float], done: asyncio.Future[None]
    ) -> None:
        self._requests, self._result, self._latencies, self._done = requests, result, latencies, done
        self._buffer = b""
        self._sent = 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._result.answers["connection lost"] = len(self._requests) + 1
            self._done.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if (size := _size(self._buffer)) is None or len(self._buffer) < size:
            return
        answer, self._buffer = self._buffer[:size], self._buffer[size:]
        self._latencies.append(time.perf_counter() - self._sent)
        status = answer[9:12].decode()
        if status != "200" and (at := answer.find(b'"reason":"')) > 0:
            status += " " + answer[at + 10 : answer.index(b'"', at + 10)].decode()
        self._result.answers[status] = self._result.answers.get(status, 0) + 1
        self._next()

    def _next(self) -> None:
        assert self._transport is not None
        if not self._requests:
            if not self._done.done():
                self._done.set_result(None)
            self._transport.close()
            return
        self._sent = time.perf_counter()
        self._transport.write(self._requests.pop())


def _size(buffer: bytes) -> int | None:
    """How long the answer at the start of `buffer` is, once that can be told."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = buffer[:end].lower()
    if (at := head.find(b"content-length:")) >= 0:
        return end + 4 + int(head[at + 15 : (head + b"\r").find(b"\r", at)])
    last = buffer.find(b"0\r\n\r\n", end)
    return last + 5 if last >= 0 else None


def _requests(job: Job, connection: int) -> list[bytes]:
    token = job.tokens[connection % len(job.tokens)] if job.tokens else ""
    head = f"POST {job.path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    if token:
        head += f"authorization: Bearer {token}\r\n"
    count = job.requests // job.connections + (connection < job.requests % job.connections)
    bodies = (job.body.replace("REQUEST_ID", str(uuid.uuid4())) for _ in range(count))
    return [f"{head}content-length: {len(body)}\r\n\r\n{body}".encode() for body in bodies]


async def run(job: Job) -> Result:
    """Sends everything and measures."""
    result, latencies = Result(), list[float]()
    loop = asyncio.get_running_loop()
    shares = [_requests(job, number) for number in range(job.connections)]
    ends = [loop.create_future() for _ in shares]
    started, cpu = time.perf_counter(), time.process_time()
    for share, end in zip(shares, ends, strict=True):
        await loop.create_connection(
            lambda share=share, end=end: Connection(share, result, latencies, end),  # type: ignore[misc]
            "127.0.0.1",
            job.port,
        )
    await asyncio.gather(*ends)
    result.seconds, result.cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    latencies.sort()
    if latencies:
        result.p50_ms = latencies[len(latencies) // 2] * 1000
        result.p99_ms = latencies[len(latencies) * 99 // 100] * 1000
    return result


if __name__ == "__main__":
    print(json.dumps(asdict(asyncio.run(run(Job(**json.load(sys.stdin)))))))
