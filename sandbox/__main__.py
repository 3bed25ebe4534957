"""`python -m sandbox`: runs the payment sandbox until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import logging
import signal
import sys
import time

import uvloop

from sandbox import server, settings
from sandbox.state import journal

log = logging.getLogger("sandbox")

_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """Formats a record as one JSON object on one line, with the fields of `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update({name: value for name, value in vars(record).items() if name not in _PLAIN})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


async def run(options: settings.Settings) -> None:
    """Serves until SIGTERM or SIGINT, then lets running requests end."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    running = await server.start(options)
    log.info("listening", extra={"url": running.url, "state": str(options.state)})
    await stop.wait()
    log.info("stopping")
    await running.stop()
    log.info("stopped")


def main(argv: list[str]) -> int:
    """Returns the exit status: 2 if the sandbox did not start; the last log line has the reason."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    options = settings.parse(argv)
    # The sandbox holds many objects and makes no cycles of them, so a search for such is rarely worth its time.
    gc.set_threshold(50_000, 50, 50)
    try:
        uvloop.run(run(options))
    except (journal.Busy, journal.Damaged) as error:
        log.error("not started: %s", error)
        return 2
    except OSError as error:
        reason = "the port is taken" if error.errno == errno.EADDRINUSE else str(error)
        log.error("not started: %s", reason, extra={"listen": f"{options.host}:{options.port}"})
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
