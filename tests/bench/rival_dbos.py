"""Three steps as a workflow of DBOS: `python -m tests.bench.rival_dbos`, in .venv-bench; `rivals` says why so.

Says `ready`; then, for each number that it reads, does as many workflows and says the number. Ends with its input.

What was tried, by CPU time and rate on two cores: workflows called by the threads that want them (taken: there is no
handle to wait for); started in the background, or asynchronous ones (1 to 2 ms more each); steps as transactions of
a datasource (6 ms more); polling in place of LISTEN (the same). One process of 16 threads, two of 8 (taken: a tenth
more a second), two of 16, three of 6.
"""

import multiprocessing
import os
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

import psycopg
from dbos import DBOS, DBOSConfig

_PROCESSES, _THREADS = 2, 8
_own = threading.local()


def _write(order: str, step: str) -> None:
    """One tiny write in a transaction of its own, on the thread's own connection."""
    if not hasattr(_own, "connection"):
        _own.connection = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)
    _own.connection.execute("INSERT INTO effects (order_id, step) VALUES (%s, %s)", (order, step))


@DBOS.step()
def reserve(order: str) -> None:
    _write(order, "reserve")


@DBOS.step()
def charge(order: str) -> None:
    _write(order, "charge")


@DBOS.step()
def confirm(order: str) -> None:
    _write(order, "confirm")


@DBOS.workflow()
def place(order: str) -> None:
    reserve(order)
    charge(order)
    confirm(order)


def _launch(name: str) -> None:
    config: DBOSConfig = {
        "name": "bench",
        "system_database_url": os.environ["DATABASE_URL"].replace("postgresql:", "postgresql+psycopg:"),
        "sys_db_pool_size": _THREADS + 2,
        "application_version": "1",
        "executor_id": name,
        "enable_otlp": False,
        "log_level": "ERROR",
    }
    DBOS(config=config)
    DBOS.launch()


def _work(name: str, parent: Connection) -> None:
    """One process: does as many workflows as it is told, again and again."""
    _launch(name)
    with ThreadPoolExecutor(_THREADS) as threads:
        parent.send(0)
        while count := parent.recv():
            list(threads.map(place, [str(uuid.uuid4()) for _ in range(count)]))
            parent.send(count)
    DBOS.destroy()


def main() -> None:
    _launch("first")  # makes its tables
    DBOS.destroy()
    context, ours = multiprocessing.get_context("spawn"), []
    for number in range(_PROCESSES):
        mine, its = context.Pipe()
        context.Process(target=_work, args=(f"process-{number}", its), daemon=True).start()
        ours.append(mine)
    for process in ours:
        process.recv()
    print("ready", flush=True)
    for line in sys.stdin:
        for process in ours:
            process.send(int(line) // _PROCESSES)
        print(sum(process.recv() for process in ours), flush=True)
    for process in ours:
        process.send(0)


if __name__ == "__main__":
    main()
