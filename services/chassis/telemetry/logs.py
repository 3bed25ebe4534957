"""Logs as JSON lines on standard output. No call of a logger raises or waits, whatever happens to the output.

A full disk, a closed pipe or a reader that has stopped costs lines, which are counted, and never the work that logs.
Texts of errors are left out where they may quote data: a database error quotes rows and bound parameters.
"""

import asyncio
import atexit
import json
import logging
import os
import select
import stat
import sys
import threading
import time
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import orjson
import structlog
from prometheus_client import Counter

from services.chassis import request_context
from services.chassis.errors import AppError

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_DROPPED = Counter("stampede_log_lines_dropped_total", "Log lines that could not be written.")
# A pipe that polls as writable takes this many bytes without blocking.
_PIPE_BYTES = select.PIPE_BUF
_BEHIND_BYTES_MAX = 1024 * 1024
_RETRY_SECONDS = 0.05
_NEWLINE = ord("\n")
_CAUSE_LENGTH = 300
ErrorInfo = tuple[type[BaseException], BaseException, TracebackType | None]


class Output:
    """Writes lines to a file descriptor. Lines of one turn of the event loop are written together."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._may_block = not stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._lines: list[bytes] = []
        self._unwritten = b""
        """Lines for which a slow reader had no room; or a newline that must follow a torn line."""
        self._is_scheduled = False
        self._writing = threading.Lock()

    def write(self, line: bytes) -> None:
        """Takes `line`, without its newline, to be written when the running turn of the event loop ends."""
        self._lines.append(line)
        if not self._is_scheduled and not self._schedule(0):
            self.flush()

    def _schedule(self, seconds: float) -> bool:
        """Flushes after `seconds`. Returns whether this thread has an event loop that can."""
        try:
            asyncio.get_running_loop().call_later(seconds, self.flush)
        except RuntimeError:
            return False
        self._is_scheduled = True
        return True

    def flush(self) -> None:
        """Writes all lines that wait. Those that cannot be written are dropped and counted."""
        with self._writing:
            self._is_scheduled = False
            lines, self._lines = self._lines, []
            if not lines and len(self._unwritten) <= 1:
                return
            data = self._unwritten + b"".join([line + b"\n" for line in lines])
            written, is_full = self._write(data)
            rest = data[written:]
            if is_full and len(rest) <= _BEHIND_BYTES_MAX and self._schedule(_RETRY_SECONDS):
                self._unwritten = rest
                return
            is_torn = data[written - 1] != _NEWLINE if written else data[0] == _NEWLINE
            self._unwritten = b"\n" if rest and is_torn else b""
            _DROPPED.inc(rest.count(b"\n"))

    def _write(self, data: bytes) -> tuple[int, bool]:
        """Writes what can be written without waiting. Returns how much, and whether the reader is behind."""
        written = 0
        try:
            while written < len(data):
                if self._may_block and not _has_room(self._descriptor):
                    return written, True
                end = written + _PIPE_BYTES if self._may_block else len(data)
                written += os.write(self._descriptor, data[written:end])
        except BlockingIOError:
            return written, True
        except OSError:
            pass  # no space, or nobody reads: the counter is the only place left to report it
        return written, False


def _has_room(descriptor: int) -> bool:
    # Asked for each chunk, because other processes may share the pipe: it must not be made non-blocking.
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(0))


class _State:
    """The values that `start` set. Before `start`, as in tests, `log_info` logs nothing."""

    output: Output | None = None
    service = ""
    level = logging.CRITICAL


def start(service: str, log_level: str) -> None:
    """Sets up structlog and the loggers of libraries, to write to standard output."""
    level = _LEVELS[log_level]
    # A process that was started without one must not write into whatever took its descriptor.
    output = Output(sys.stdout.fileno() if sys.stdout else os.open(os.devnull, os.O_WRONLY))
    atexit.register(output.flush)
    _State.service, _State.level, _State.output = service, level, output
    structlog.configure(
        cache_logger_on_first_use=True,
        wrapper_class=_never_raising(level),
        processors=[
            _add_call,
            structlog.processors.add_log_level,
            _describe_errors,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            lambda _logger, _method, event: encode(event),
        ],
        logger_factory=lambda *_: _Lines(output),
    )
    logging.basicConfig(level=max(level, logging.INFO), handlers=[_ToStructlog()], force=True)


def flush() -> None:
    """Writes the lines that wait. Called where the process ends without its exit handlers."""
    if _State.output:
        _State.output.flush()


def log_info(event: str, **fields: object) -> None:
    """Logs at level info in the same form as structlog, at a fraction of its cost: for the hot path."""
    if _State.level > logging.INFO or _State.output is None:
        return
    call = request_context.current()
    now = datetime.fromtimestamp(time.time(), UTC)
    document = {"time": now, "level": "info", "service": _State.service, "event": event, **fields}
    if call.method:
        document["request_id"] = call.request_id
    _State.output.write(encode(document))


def encode(document: Any) -> bytes:
    """Returns `document` as one line of JSON. A value that JSON cannot have is written as its `repr`."""
    try:
        return orjson.dumps(document, default=_text_of, option=orjson.OPT_UTC_Z)
    except (TypeError, ValueError, RecursionError):
        # For example an integer of more than 64 bits, or half of a surrogate pair in a text from outside.
        plain = (str, int, float, None.__class__)
        values = {str(name): v if isinstance(v, plain) else _text_of(v) for name, v in document.items()}
        return json.dumps(values).encode()


def cause_of(error: BaseException) -> str:
    """Returns the kind of `error`, with its text only where that cannot quote data."""
    origin = getattr(error, "orig", None) or error
    name, state = type(origin).__name__, getattr(origin, "sqlstate", None)
    if state:
        return f"{name} {state}"
    # Without a state the text is not the server's: it is the driver's, about a connection.
    is_plain = isinstance(error, OSError | AppError) or (origin is not error and hasattr(origin, "sqlstate"))
    text = next(iter(str(origin).splitlines()), "") if is_plain else ""
    return f"{name}: {text}"[:_CAUSE_LENGTH] if text else name


def _text_of(value: object) -> str:
    try:
        return cause_of(value) if isinstance(value, BaseException) else repr(value)
    except Exception:
        return f"<{type(value).__name__}>"


class _Lines:
    """The logger that structlog wraps."""

    def __init__(self, output: Output) -> None:
        self.debug = self.info = self.warning = self.error = self.critical = self.msg = output.write
        self.warn = self.exception = self.fatal = self.log = output.write


def _never_raising(level: int) -> type[Any]:
    filtering: type[Any] = structlog.make_filtering_bound_logger(level)

    class Logger(filtering):  # type: ignore[misc]
        def _proxy_to_logger(self, method_name: str, event: str | None = None, *args: Any, **fields: Any) -> Any:
            try:
                return super()._proxy_to_logger(method_name, event, *args, **fields)
            except Exception:
                _DROPPED.inc()
                return None

    return Logger


def _add_call(_logger: Any, _method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    call = request_context.current()
    event["service"] = _State.service
    if call.method:
        event["request_id"] = call.request_id
    return event


def _describe_errors(_logger: Any, _method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    """Replaces `exc_info` by the places in the code and the kinds of the errors, without texts that may quote data."""
    info = event.pop("exc_info", None)
    if info is True:
        info = sys.exc_info()
    error = info if isinstance(info, BaseException) else info[1] if info else None
    if error is not None:
        event["exception"] = describe(error)
    return event


def describe(error: BaseException) -> str:
    """Returns the traceback of `error` and of those that caused it, each with its `cause_of` instead of its text."""
    parts: list[str] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        frames = "".join(traceback.format_tb(current.__traceback__))
        parts.append(f"{frames}{cause_of(current)}")
        if isinstance(current, BaseExceptionGroup):
            parts += [f"in it: {describe(inner)}" for inner in current.exceptions]
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return "\nwhich was caused by\n".join(parts)


class _ToStructlog(logging.Handler):
    """Writes the log records of libraries as JSON lines too."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
            if record.exc_info:
                message = message.partition("\n")[0]  # asyncio appends the `repr` of a failed task with its error
            structlog.get_logger(record.name).log(record.levelno, message, exc_info=record.exc_info)
        except Exception:
            _DROPPED.inc()
