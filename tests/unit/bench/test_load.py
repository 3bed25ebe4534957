"""The load generator against a faulty server: every request is accounted for."""

import asyncio
import re
import uuid
from collections.abc import Callable

import pytest

from tests.bench.load.generator import LOST, REQUEST_ID, SILENT, UNSENT, Job, run

Writer = asyncio.StreamWriter
Reply = Callable[[int, Writer], None]
"""Writes the answer to the request with that number."""

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
_REFUSAL = b'{"code":9,"details":[{"reason":"SOLD_OUT"}]}'
REFUSED = b"HTTP/1.1 400 Bad Request\r\ncontent-length: %d\r\n\r\n%b" % (len(_REFUSAL), _REFUSAL)
CHUNKED = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n{"id": "0\\r\\n"}}\r\n0\r\n\r\n'
LAST = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}"


class Server:
    """Reads requests, stores them, and answers with `reply`."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self.heads: list[str] = []
        self.bodies: list[str] = []
        self._connections: set[Writer] = set()

    async def __aenter__(self) -> "Server":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for connection in self._connections:
            connection.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        self._connections.add(writer)
        while not writer.is_closing():
            try:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = re.search(r"content-length: (\d+)", head)
                assert length
                body = (await reader.readexactly(int(length[1]))).decode()
            except (asyncio.IncompleteReadError, ConnectionError):
                break
            self.heads.append(head)
            self.bodies.append(body)
            self._reply(len(self.bodies) - 1, writer)
        writer.close()

    def job(self, requests: int, connections: int = 4, **options: object) -> Job:
        body = f'{{"requestId": "{REQUEST_ID}", "to": "é"}}'
        return Job(self.port, "/v1/orders", [body], [], connections, requests, **options)  # type: ignore[arg-type]


def always(answer: bytes) -> Reply:
    return lambda number, writer: writer.write(answer)


async def test_answers_are_counted_by_status_and_reason() -> None:
    async with Server(lambda number, writer: writer.write(REFUSED if number % 3 else OK)) as server:
        result = await run(server.job(30))
    assert result.answers == {"200": 10, "400 SOLD_OUT": 20}
    assert result.seconds > 0
    assert 0 < result.p50_ms <= result.p99_ms


async def test_each_request_has_its_own_id() -> None:
    async with Server(always(OK)) as server:
        await run(server.job(50))
    ids = {uuid.UUID(re.findall(r'"requestId": "([^"]+)"', body)[0]) for body in server.bodies}
    assert len(ids) == 50
    assert {id_.version for id_ in ids} == {4}


@pytest.mark.parametrize("answer", [CHUNKED, LAST], ids=["chunked", "connection closed"])
async def test_chunked_and_closing_answers_are_read(answer: bytes) -> None:
    def reply(number: int, writer: Writer) -> None:
        writer.write(answer)
        if answer == LAST:
            writer.close()

    async with Server(reply) as server:
        assert (await run(server.job(20))).answers == {"200": 20}


async def test_an_answer_in_pieces_is_read() -> None:
    def reply(number: int, writer: Writer) -> None:
        loop = asyncio.get_running_loop()
        cut = len(REFUSED) * number // 9
        writer.write(REFUSED[:cut])
        loop.call_soon(loop.call_soon, writer.write, REFUSED[cut:])

    async with Server(reply) as server:
        assert (await run(server.job(9))).answers == {"400 SOLD_OUT": 9}


async def test_a_lost_connection_is_counted_and_replaced() -> None:
    def reply(number: int, writer: Writer) -> None:
        writer.close() if number in (3, 4) else writer.write(OK)

    async with Server(reply) as server:
        assert (await run(server.job(20))).answers == {"200": 18, LOST: 2}


async def test_a_silent_server_ends_the_run_and_is_counted() -> None:
    async with Server(lambda number, writer: writer.write(OK) if number < 5 else None) as server:
        result = await run(server.job(20, patience_seconds=0.5))
    assert result.answers == {"200": 5, SILENT: 4, UNSENT: 11}


async def test_without_a_server_every_request_is_unsent() -> None:
    async with Server(always(OK)) as server:
        job = server.job(20)
    assert (await run(job)).answers == {UNSENT: 20}


@pytest.mark.parametrize("shuffled", [False, True])
async def test_customers_and_bodies_are_used_in_turn(shuffled: bool) -> None:
    async with Server(always(OK)) as server:
        customers, bodies = [f"token-{n}" for n in range(10)], [f'{{"sale": {n}}}' for n in range(7)]
        await run(Job(server.port, "/v1/orders", bodies, customers, 1, 70, shuffled=shuffled))

    senders = [re.findall(r"authorization: Bearer (\S+)", head)[0] for head in server.heads]
    assert server.bodies == bodies * 10
    assert sorted(senders) == sorted(customers * 7)
    assert (senders == customers * 7) is not shuffled


async def test_all_connections_send_concurrently() -> None:
    waiting: list[Writer] = []

    def reply(number: int, writer: Writer) -> None:
        waiting.append(writer)
        if len(waiting) == 8:  # no request is answered before all eight have arrived
            for each in waiting:
                each.write(OK)
            waiting.clear()

    async with Server(reply) as server:
        assert (await asyncio.wait_for(run(server.job(16, connections=8)), 20)).answers == {"200": 16}
