"""An order's three steps as a DBOS workflow: `python -m tests.bench.rivals.dbos_workflow`, in .venv-bench.

It prints `ready`. For each number that it reads, it completes that many workflows and prints the number. It ends with
its input.

Variants tried, by CPU time and rate on two cores: workflows called by the threads that need the result (chosen: there
is no handle to wait for); workflows started in the background, or asynchronous ones (1 to 2 ms more each); steps as
transactions of a datasource (6 ms more); polling instead of LISTEN (the same). One process of 16 threads, two of 8
(chosen: a tenth more a second), two of 16, three of 6.
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
_of_thread = threading.local()


def _write(order: str, step: str) -> None:
    """Insert one row in a transaction of its own, on the thread's own connection."""
    if not hasattr(_of_thread, "connection"):
        _of_thread.connection = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)
    _of_thread.connection.execute("INSERT INTO effects (order_id, step) VALUES (%s, %s)", (order, step))


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
    """Complete as many workflows as each number from `parent` asks for, until it sends 0."""
    _launch(name)
    with ThreadPoolExecutor(_THREADS) as threads:
        parent.send(0)
        while count := parent.recv():
            list(threads.map(place, [str(uuid.uuid4()) for _ in range(count)]))
            parent.send(count)
    DBOS.destroy()


def main() -> None:
    _launch("first")  # creates the tables of DBOS before two processes would
    DBOS.destroy()
    context, workers = multiprocessing.get_context("spawn"), []
    for number in range(_PROCESSES):
        parent_end, child_end = context.Pipe()
        context.Process(target=_work, args=(f"process-{number}", child_end), daemon=True).start()
        workers.append(parent_end)
    for worker in workers:
        worker.recv()
    print("ready", flush=True)
    for line in sys.stdin:
        for worker in workers:
            worker.send(int(line) // _PROCESSES)
        print(sum(worker.recv() for worker in workers), flush=True)
    for worker in workers:
        worker.send(0)


if __name__ == "__main__":
    main()
