"""The bench's watchers: a refused or closed stream is an error."""

import asyncio
from collections.abc import Callable

import pytest

from tests.bench.load.watchers import Job, Watcher, watch

STREAM = b'HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: {"state":"PENDING"}\n\n'
REFUSAL = b'HTTP/1.1 503 Service Unavailable\r\ncontent-length: 12\r\n\r\n{"code": 14}'


async def against(reply: Callable[[bytes, asyncio.StreamWriter], None], watchers: int = 3) -> list[Watcher]:
    served, watching = list[asyncio.StreamWriter](), list[Watcher]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(writer)
        reply(await reader.readuntil(b"\r\n\r\n"), writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port, names = server.sockets[0].getsockname()[1], [str(number) for number in range(watchers)]
        try:
            watching += await watch(Job(port, [f"/v1/orders/{name}:watch" for name in names], names))
            return watching
        finally:
            for open_ in (*(watcher.transport for watcher in watching), *served):
                open_.close()
            await asyncio.gather(*(writer.wait_closed() for writer in served), return_exceptions=True)


async def test_each_watcher_uses_its_own_order_and_token() -> None:
    heads = []

    def reply(head: bytes, writer: asyncio.StreamWriter) -> None:
        heads.append(head.decode())
        writer.write(STREAM)

    watchers = await against(reply)

    assert [watcher.first_message.done() for watcher in watchers] == [True] * 3
    assert sorted(head.split()[1] for head in heads) == [f"/v1/orders/{number}:watch" for number in range(3)]
    assert all(f"authorization: Bearer {head[15]}\r\n" in head for head in heads)


@pytest.mark.parametrize("answer", [REFUSAL, b"", STREAM[:40]], ids=["refused", "closed", "cut off"])
async def test_a_stream_without_a_message_is_an_error(answer: bytes) -> None:
    def reply(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()

    with pytest.raises(RuntimeError, match="a watcher received"):
        await against(reply, watchers=1)


async def test_a_refusal_on_an_open_connection_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="503"):
        await against(lambda _, writer: writer.write(REFUSAL), watchers=1)
