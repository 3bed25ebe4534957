"""What a job costs: answers a second, and CPU time and memory by process."""

import asyncio
import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from tests.bench.load import Job, Result

_ROOT = Path(__file__).parents[2]
_LOOK_SECONDS = 2.0
_REST_SECONDS, _RESTS_MOST, _IDLE_CORES = 0.5, 40, 0.25

Pids = Mapping[str, int]
"""Processes by the name of their part; each with its children."""


@dataclass(frozen=True)
class Measured:
    """One job, measured."""

    name: str
    connections: int
    result: Result
    expects: str
    """The answer that counts, as `Result.answers` has it; any where it is empty."""
    cpu_us: dict[str, float]
    """CPU microseconds by process, for each answer that counts."""

    @property
    def per_second(self) -> float:
        """Answers that count; whoever answers wrongly is not fast."""
        return counting(self.result, self.expects) / self.result.seconds

    @property
    def total_us(self) -> float:
        """CPU microseconds for each answer that counts, without those of the load generator."""
        return sum(us for part, us in self.cpu_us.items() if part != "load")

    @property
    def others(self) -> dict[str, int]:
        """The answers that do not count."""
        return {kind: count for kind, count in self.result.answers.items() if self.expects not in ("", kind)}

    def __str__(self) -> str:
        costs = {part: us for part, us in self.cpu_us.items() if us >= 1 and part != "load"}
        latencies = f"p50 {self.result.p50_ms:>6.1f} ms  p99 {self.result.p99_ms:>6.1f} ms"
        return (
            f"{self.name:<22}{self.connections:>4} conn {self.per_second:>7,.0f}/s"
            f"  {latencies if self.result.p50_ms else '':<28}  CPU {self.total_us:>6,.0f} µs = "
            + " + ".join(f"{part} {us:,.0f}" for part, us in costs.items())
            + f"  (load {self.cpu_us['load']:,.0f})"
            + (f"  AND {self.others}" if self.others else "")
        )


async def load(job: Job) -> Result:
    """Runs `job` in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.load",
        cwd=_ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        out, _ = await process.communicate(json.dumps(asdict(job)).encode())
    finally:
        if process.returncode is None:  # we are being ended
            process.kill()
            await process.wait()
    return Result(**json.loads(out))


async def measure(name: str, job: Job, pids: Pids, *, expects: str = "200") -> Measured:
    """Runs `job` and says what it cost each process."""
    before = cpu_seconds(pids)
    result = await load(job)
    measured = Measured(name, job.connections, result, expects, spent(before, pids, result, expects))
    say(str(measured))
    return measured


def spent(before: Mapping[str, float], pids: Pids, result: Result, expects: str) -> dict[str, float]:
    """CPU microseconds by process since `before`, for each answer that counts; the load generator's as `load`."""
    seconds = {part: now - before[part] for part, now in cpu_seconds(pids).items()} | {"load": result.cpu_seconds}
    return {part: each / max(counting(result, expects), 1) * 1e6 for part, each in seconds.items()}


def counting(result: Result, expects: str) -> int:
    """How many answers count."""
    return result.answers.get(expects, 0) if expects else sum(result.answers.values())


def cpu_seconds(pids: Pids) -> dict[str, float]:
    """CPU time so far, by part."""
    found = {}
    for part, pid in pids.items():
        times = [process.cpu_times() for process in _family(pid)]
        found[part] = sum(each.user + each.system for each in times)
    return found


def memory_bytes(pids: Pids) -> dict[str, int]:
    """Resident memory by part. What the processes of a part share, as PostgreSQL's do, is counted once."""
    found = {}
    for part, pid in pids.items():
        infos = [process.memory_info() for process in _family(pid)]
        if len(infos) == 1:
            found[part] = infos[0].rss
        else:
            found[part] = sum(each.rss - each.shared for each in infos) + max(each.shared for each in infos)
    return found


async def bystanders() -> float:
    """How many cores others keep busy just now, before anything of ours runs."""
    percent = await asyncio.to_thread(psutil.cpu_percent, _LOOK_SECONDS)
    return percent / 100 * (psutil.cpu_count() or 1)


async def rested(pids: Pids) -> None:
    """Returns once `pids` have done what was left to do, or after a while in any case.

    What follows an answer, such as webhooks and events, is not to be paid for by whoever is measured next.
    """
    for _ in range(_RESTS_MOST):
        before = sum(cpu_seconds(pids).values())
        await asyncio.to_thread(psutil.cpu_percent, _REST_SECONDS)
        if sum(cpu_seconds(pids).values()) - before < _IDLE_CORES * _REST_SECONDS:
            return
    say("our own services are still busy while the next is measured")


def say(line: str) -> None:
    """Prints at once, also into a pipe."""
    print(line, flush=True)


def _family(pid: int) -> Iterator[psutil.Process]:
    parent = psutil.Process(pid)
    yield parent
    for child in parent.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # between two looks
            child.status()
            yield child
