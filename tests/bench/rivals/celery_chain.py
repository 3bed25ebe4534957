"""An order's three steps as a Celery chain: `python -m tests.bench.rivals.celery_chain`, in .venv-bench.

It prints `ready`. For each number that it reads, it completes that many chains and prints the number. It ends with its
input.

It runs one worker with two child processes, Celery's default way (prefork). Variants tried, by CPU time and rate on two
cores: two solo workers take 3 ms less each, but nobody runs a shop so, because a solo worker can neither stop a
task that takes too long nor be inspected while it runs one. Eight threads, and two with four, are slower. Messages
are prefetched 64 at a time instead of one. Everything optional is off: events, gossip, mingling, heartbeats and remote
control; only the last task's result is kept.
"""

import os
import subprocess
import sys
import time
import uuid

import psycopg
from celery import Celery, chain

_CHILDREN, _CONCURRENCY = 2, 64
_POLL_SECONDS = 0.01
_QUIET = ("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "ERROR")

app = Celery("bench", broker=os.environ["VALKEY_URL"], backend=os.environ["VALKEY_URL"])
app.conf.update(
    # As with Stampede and DBOS, an order survives the death of the worker that runs it.
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=64,
    worker_disable_rate_limits=True,
    worker_enable_remote_control=False,
    worker_send_task_events=False,
    broker_connection_retry_on_startup=True,
    result_expires=600,
)
_connections: list[psycopg.Connection] = []


def _write(order: str, step: str) -> str:
    """Insert one row in a transaction of its own, on the process's own connection."""
    if not _connections:
        _connections.append(psycopg.connect(os.environ["DATABASE_URL"], autocommit=True))
    _connections[0].execute("INSERT INTO effects (order_id, step) VALUES (%s, %s)", (order, step))
    return order


@app.task(name="reserve", ignore_result=True)
def reserve(order: str) -> str:
    return _write(order, "reserve")


@app.task(name="charge", ignore_result=True)
def charge(order: str) -> str:
    return _write(order, "charge")


@app.task(name="confirm")
def confirm(order: str) -> str:
    return _write(order, "confirm")


def _complete(count: int) -> None:
    """Complete `count` chains, `_CONCURRENCY` at a time; one MGET asks for the results of all of them."""
    valkey, open_ = app.backend.client, set[bytes]()
    with app.producer_pool.acquire(block=True) as producer:
        while count or open_:
            while count and len(open_) < _CONCURRENCY:
                begun = chain(reserve.s(str(uuid.uuid4())), charge.s(), confirm.s()).apply_async(producer=producer)
                open_.add(app.backend.get_key_for_task(begun.id))
                count -= 1
            keys = list(open_)
            ended = [key for key, result in zip(keys, valkey.mget(keys), strict=True) if result]
            open_.difference_update(ended)
            if ended:
                valkey.delete(*ended)
            else:
                time.sleep(_POLL_SECONDS)


def main() -> None:
    # -W ignore: Celery warns when it runs as root, which the bench may do.
    module = "tests.bench.rivals.celery_chain"
    command = (sys.executable, "-W", "ignore", "-m", "celery", "-A", module, "worker", *_QUIET)
    no_streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}  # the parent speaks over its own
    worker = subprocess.Popen([*command, "--pool", "prefork", "--concurrency", str(_CHILDREN)], **no_streams)
    try:
        _complete(_CHILDREN)  # the children are up when these end
        print("ready", flush=True)
        for line in sys.stdin:
            _complete(int(line))
            print(int(line), flush=True)
    finally:
        worker.terminate()
        worker.wait()


if __name__ == "__main__":
    main()
