"""The logger writes whole lines, never raises, never waits, and quotes no data of errors."""

import asyncio
import contextlib
import errno
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from prometheus_client import REGISTRY
from sqlalchemy.exc import IntegrityError, OperationalError

from services.chassis.telemetry import logs
from services.chassis.telemetry.logs import Output

SECRET = "pi_1_secret_2"
_PIPE_BYTES = 64 * 1024


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for descriptor in (reading, writing):
        with contextlib.suppress(OSError):  # the test closed it
            os.close(descriptor)


def dropped() -> float:
    return REGISTRY.get_sample_value("stampede_log_lines_dropped_total") or 0.0


def test_a_full_disk_costs_lines_which_are_counted() -> None:
    before = dropped()
    with Path("/dev/full").open("wb") as full:
        output = Output(full.fileno())
        for _ in range(3):
            output.write(b"{}")
    assert dropped() == before + 3


def test_a_closed_pipe_costs_lines_which_are_counted(pipe: tuple[int, int]) -> None:
    before = dropped()
    os.close(pipe[0])
    Output(pipe[1]).write(b"{}")
    assert dropped() == before + 1


def test_a_torn_line_does_not_spoil_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, room = os.write, 4

    def until_full(descriptor: int, data: bytes) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        room -= len(data[:room])
        return write(descriptor, data[:4])

    with (tmp_path / "log").open("wb") as file:
        output = Output(file.fileno())
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", until_full)
            output.write(b'{"number":1}')
            output.write(b'{"number":2}')
        output.write(b'{"number":3}')
        output.write(b'{"number":4}')
    assert (tmp_path / "log").read_text() == '{"nu\n{"number":3}\n{"number":4}\n'


async def test_a_reader_that_stops_delays_no_work_and_misses_no_line(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    output, line, number = Output(writing), b"x" * 999, 3 * _PIPE_BYTES // 1000
    for _ in range(number):
        output.write(line)
    await asyncio.sleep(0)  # here a write that waits would wait for ever

    def read_all() -> bytes:
        data = b""
        while len(data) < 1000 * number:
            data += os.read(reading, _PIPE_BYTES)
        return data

    assert await asyncio.to_thread(read_all) == (line + b"\n") * number


async def test_lines_of_a_reader_that_stays_away_are_bounded(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_BEHIND_BYTES_MAX", 1000)
    before, output = dropped(), Output(pipe[1])
    for _ in range(200):
        output.write(b"x" * 999)
    output.flush()
    assert dropped() > before + 100


@pytest.mark.parametrize("value", [2**80, "\ud800", {1: 2}, object(), float("nan"), ValueError(SECRET)])
def test_any_value_becomes_one_line_of_json(value: object) -> None:
    line = logs.encode({"event": "odd", "value": value})
    assert b"\n" not in line
    assert json.loads(line)["event"] == "odd"
    assert SECRET.encode() not in line


class _Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError("has no repr")


def test_no_call_of_a_logger_raises() -> None:
    assert b"_Unspeakable" in logs.encode({"event": "odd", "value": _Unspeakable()})
    log = structlog.wrap_logger(None, processors=[_fail], wrapper_class=logs._never_raising(logging.INFO))
    before = dropped()
    log.info("lost")
    logs._ToStructlog().emit(logging.LogRecord("library", logging.INFO, "", 1, "%d", ("x",), None))
    assert dropped() == before + 2


def _fail(*_: object) -> dict[str, object]:
    raise RuntimeError("a processor with a bug")


class _Row(Exception):
    """Looks like an error of the database driver."""

    def __init__(self, text: str, sqlstate: str | None) -> None:
        super().__init__(text)
        self.sqlstate = sqlstate


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (IntegrityError("INSERT", {"s": SECRET}, _Row(f"Key (secret)=({SECRET}) exists", "23505")), "_Row 23505"),
        (OperationalError("SELECT", {"s": SECRET}, _Row("server closed\n more", None)), "_Row: server closed"),
        (ValueError(f"{SECRET} is not a number"), "ValueError"),
        (ConnectionRefusedError(111, "Connection refused"), "ConnectionRefusedError: [Errno 111] Connection refused"),
    ],
)
def test_errors_are_described_without_the_data_they_quote(error: Exception, cause: str) -> None:
    assert logs.cause_of(error) == cause
    try:
        try:
            raise error
        except Exception as inner:
            raise RuntimeError(SECRET) from inner
    except RuntimeError as outer:
        described = logs.describe(outer)
    assert SECRET not in described
    assert cause in described
    assert "test_logs.py" in described
