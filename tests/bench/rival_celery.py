"""Three steps as a chain of Celery's: `python -m tests.bench.rival_celery`, in .venv-bench; `rivals` says why so.

Says `ready`; then, for each number that it reads, has as many chains done and says the number. Ends with its input.

One worker with two child processes, Celery's own way (prefork). What else was tried, by CPU time and rate on two
cores: two workers that do tasks themselves take 3 ms less each, but nobody runs them so: such a worker can neither end
a task that takes too long nor be seen while it has one. Eight threads, and two with four, are slower still. Messages
are fetched 64 ahead, not one. Nothing is sent or kept that nobody asks for: no events, gossip, mingling, heartbeats or
remote control; results of the last task alone.
"""

import os
import subprocess
import sys
import time
import uuid

import psycopg
from celery import Celery, chain

_CHILDREN, _AT_ONCE = 2, 64
_LOOK_SECONDS = 0.01
_QUIETLY = ("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "ERROR")

app = Celery("bench", broker=os.environ["VALKEY_URL"], backend=os.environ["VALKEY_URL"])
app.conf.update(
    # As with Stampede and DBOS, an order outlives the worker that has it.
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
    """One tiny write in a transaction of its own, on the process's own connection."""
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


def _do(count: int) -> None:
    """Keeps `_AT_ONCE` chains under way; all that wait for their ends ask together."""
    valkey, open_ = app.backend.client, set[bytes]()
    with app.producer_pool.acquire(block=True) as producer:
        while count or open_:
            while count and len(open_) < _AT_ONCE:
                begun = chain(reserve.s(str(uuid.uuid4())), charge.s(), confirm.s()).apply_async(producer=producer)
                open_.add(app.backend.get_key_for_task(begun.id))
                count -= 1
            asked = list(open_)
            ended = [key for key, result in zip(asked, valkey.mget(asked), strict=True) if result]
            open_.difference_update(ended)
            if ended:
                valkey.delete(*ended)
            else:
                time.sleep(_LOOK_SECONDS)


def main() -> None:
    # It warns of root, as who the bench may well be run.
    command = (sys.executable, "-W", "ignore", "-m", "celery", "-A", "tests.bench.rival_celery", "worker", *_QUIETLY)
    quietly = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}  # ours are a conversation
    worker = subprocess.Popen([*command, "--pool", "prefork", "--concurrency", str(_CHILDREN)], **quietly)
    try:
        _do(_CHILDREN)  # they are up
        print("ready", flush=True)
        for line in sys.stdin:
            _do(int(line))
            print(int(line), flush=True)
    finally:
        worker.terminate()
        worker.wait()


if __name__ == "__main__":
    main()
