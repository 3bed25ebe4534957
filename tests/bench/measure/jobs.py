"""The cost of a load job: answers a second, and CPU time and memory by process."""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from tests.bench.load.generator import Job, Result

_ROOT = Path(__file__).parents[3]
_OTHER_LOAD_SECONDS = 2.0
_IDLE_CHECK_SECONDS, _IDLE_CHECKS_MAX, _IDLE_CORES = 0.5, 40, 0.25

Pids = Mapping[str, int]
"""Process ids by the name of the part; the children of a process count as the same part."""


@dataclass(frozen=True)
class Measured:
    """One job and its cost."""

    name: str
    connections: int
    result: Result
    expects: str
    """The key in `Result.answers` of the expected answer; an empty string accepts any answer."""
    cpu_us: dict[str, float]
    """CPU microseconds by process, for each expected answer."""

    @property
    def per_second(self) -> float:
        """Expected answers a second; other answers do not count, so that errors never look fast."""
        return expected_answers(self.result, self.expects) / self.result.seconds

    @property
    def total_us(self) -> float:
        """CPU microseconds for each expected answer, without those of the load generator."""
        return sum(us for part, us in self.cpu_us.items() if part != "load")

    @property
    def others(self) -> dict[str, int]:
        """The unexpected answers."""
        return {kind: count for kind, count in self.result.answers.items() if self.expects not in ("", kind)}

    def __str__(self) -> str:
        costs = {part: us for part, us in self.cpu_us.items() if us >= 1 and part != "load"}
        latencies = f"p50 {self.result.p50_ms:>6.1f} ms  p99 {self.result.p99_ms:>6.1f} ms"
        return (
            f"{self.name:<22}{self.connections:>4} conn {self.per_second:>7,.0f}/s"
            f"  {latencies if self.result.p50_ms else '':<28}  CPU {self.total_us:>6,.0f} µs = "
            + " + ".join(f"{part} {us:,.0f}" for part, us in costs.items())
            + f"  (load {self.cpu_us['load']:,.0f})"
            + (f"  UNEXPECTED {self.others}" if self.others else "")
        )


async def load(job: Job) -> Result:
    """Run `job` in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.load.generator",
        cwd=_ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        out, _ = await process.communicate(json.dumps(asdict(job)).encode())
    finally:
        if process.returncode is None:  # the bench itself is being stopped
            process.kill()
            await process.wait()
    return Result(**json.loads(out))


async def measure(name: str, job: Job, pids: Pids, *, expects: str = "200") -> Measured:
    """Run `job`, print its cost for each process, and return it."""
    before = cpu_seconds(pids)
    result = await load(job)
    measured = Measured(name, job.connections, result, expects, cpu_us_since(before, pids, result, expects))
    print_line(str(measured))
    return measured


def cpu_us_since(before: Mapping[str, float], pids: Pids, result: Result, expects: str) -> dict[str, float]:
    """Return CPU microseconds by process since `before` for each expected answer; the load generator is `load`."""
    seconds = {part: now - before[part] for part, now in cpu_seconds(pids).items()} | {"load": result.cpu_seconds}
    return {part: each / max(expected_answers(result, expects), 1) * 1e6 for part, each in seconds.items()}


def expected_answers(result: Result, expects: str) -> int:
    """Return the number of expected answers."""
    return result.answers.get(expects, 0) if expects else sum(result.answers.values())


def cpu_seconds(pids: Pids) -> dict[str, float]:
    """Return the CPU time used so far by each part."""
    found = {}
    for part, pid in pids.items():
        times = [process.cpu_times() for process in _with_children(pid)]
        found[part] = sum(each.user + each.system for each in times)
    return found


def memory_bytes(pids: Pids) -> dict[str, int]:
    """Return resident memory by part; memory shared by a part's processes, as in PostgreSQL, counts once."""
    found = {}
    for part, pid in pids.items():
        infos = [process.memory_info() for process in _with_children(pid)]
        if len(infos) == 1:
            found[part] = infos[0].rss
        else:
            found[part] = sum(each.rss - each.shared for each in infos) + max(each.shared for each in infos)
    return found


async def other_load() -> float:
    """Return how many cores other programs use; call it before the bench starts its own."""
    percent = await asyncio.to_thread(psutil.cpu_percent, _OTHER_LOAD_SECONDS)
    return percent / 100 * (psutil.cpu_count() or 1)


async def idle_cores(pids: Pids, seconds: float) -> float:
    """Return how many cores `pids` use by the clock; call it while nobody asks them for anything."""
    started, before = time.monotonic(), sum(cpu_seconds(pids).values())
    await asyncio.to_thread(psutil.cpu_percent, seconds)
    return (sum(cpu_seconds(pids).values()) - before) / (time.monotonic() - started)


async def wait_until_idle(pids: Pids, *, above: float = 0.0) -> None:
    """Return once `pids` use almost no CPU `above` so many cores, or after 20 seconds with a warning.

    Work that follows an answer, such as webhooks and events, must not be charged to the next measurement.
    """
    for _ in range(_IDLE_CHECKS_MAX):
        before = sum(cpu_seconds(pids).values())
        await asyncio.to_thread(psutil.cpu_percent, _IDLE_CHECK_SECONDS)
        if sum(cpu_seconds(pids).values()) - before < (above + _IDLE_CORES) * _IDLE_CHECK_SECONDS:
            return
    print_line("warning: the mesh is still busy while the next row is measured")


def print_line(line: str) -> None:
    """Print without buffering, also into a pipe."""
    print(line, flush=True)


def _with_children(pid: int) -> Iterator[psutil.Process]:
    parent = psutil.Process(pid)
    yield parent
    for child in parent.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended after the listing
            child.status()
            yield child
