"""Measure the payment sandbox: create-and-confirm calls for each CPU second, and its memory. `make sandbox-bench`.

The sandbox runs alone, in a process of its own, with its journal on the disk. Clients send the calls that the adapter
of Stripe sends, over connections that stay open. Exit status: 0, or 1 if a bar is missed.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from urllib.parse import urlencode

import aiohttp

from sandbox.state.store import PAYMENTS_KEPT
from tests.bench.report import Verdict, table
from tests.support.ports import free_port
from tests.support.waiting import eventually

RATE_MIN = 1_500
"""Calls a CPU second of the sandbox."""
MEMORY_MOST_MIB = 1_500
_CONNECTIONS, _WARM_UP = 32, 2_000
_MIB = 1 << 20
_TICKS = os.sysconf("SC_CLK_TCK")
_HEADERS = {
    "Authorization": "Bearer sk_test_sandbox",
    "Content-Type": "application/x-www-form-urlencoded",
    "Stripe-Version": "2025-09-30.clover",
    "User-Agent": "Stripe/v1 PythonBindings/13.0.1",
    "X-Stripe-Client-User-Agent": json.dumps({"bindings_version": "13.0.1", "lang": "python", "publisher": "stripe"}),
}


class _Process:
    """A sandbox that runs."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self._process, self.url = process, url

    @classmethod
    async def start(cls, folder: Path) -> "_Process":
        address = f"127.0.0.1:{free_port()}"
        command = (sys.executable, "-m", "sandbox", "--listen", address, "--state", str(folder / "journal.jsonl"))
        with (folder / "log").open("wb") as log:
            started = cls(await asyncio.create_subprocess_exec(*command, stderr=log), f"http://{address}")
        await eventually(started._answers, bool, seconds=60)
        return started

    async def _answers(self) -> bool:
        assert self._process.returncode is None, "the sandbox has ended"
        try:
            async with aiohttp.ClientSession() as session, session.get(f"{self.url}/healthz") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    @property
    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    @property
    def memory_mib(self) -> float:
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024 / _MIB

    async def stop(self) -> None:
        self._process.terminate()
        await self._process.wait()


async def _pay(url: str, calls: int) -> None:
    """Makes so many calls, over all connections."""
    numbers = islice(count(), calls)
    connector = aiohttp.TCPConnector(limit=_CONNECTIONS)
    async with aiohttp.ClientSession(headers=_HEADERS, connector=connector) as session:
        await asyncio.gather(
            *(_pay_in_turn(session, f"{url}/v1/payment_intents", numbers) for _ in range(_CONNECTIONS))
        )


async def _pay_in_turn(session: aiohttp.ClientSession, url: str, numbers: Iterator[int]) -> None:
    for _ in numbers:
        payment = str(uuid.uuid4())
        form = {
            "amount": 2500, "currency": "usd", "confirm": "true", "payment_method": "pm_card_visa",
            "automatic_payment_methods[enabled]": "true", "automatic_payment_methods[allow_redirects]": "never",
            "metadata[order_id]": str(uuid.uuid4()), "metadata[payment_id]": payment,
        }  # fmt: skip
        headers = {"Idempotency-Key": f"{payment}/1/create"}
        async with session.post(url, data=urlencode(form), headers=headers) as answer:
            found = await answer.read()
            assert answer.status == 200, found


async def main(calls: int) -> bool:
    """Print the report; return whether the bars are met."""
    with tempfile.TemporaryDirectory(prefix="stampede-sandbox-") as folder:
        sandbox = await _Process.start(Path(folder))
        try:
            await _pay(sandbox.url, _WARM_UP)
            cpu, empty, began = sandbox.cpu_seconds, sandbox.memory_mib, time.monotonic()
            await _pay(sandbox.url, calls)
            cpu, seconds, full = sandbox.cpu_seconds - cpu, time.monotonic() - began, sandbox.memory_mib
        finally:
            await sandbox.stop()
    rate, each = calls / cpu, (full - empty) * _MIB / min(calls, PAYMENTS_KEPT)
    stored = f"{each:,.0f} bytes a payment; {PAYMENTS_KEPT:,} are kept"
    verdicts = [
        Verdict("calls a CPU second", f"{rate:,.0f}", f"{RATE_MIN:,}", rate >= RATE_MIN, f"{calls / seconds:,.0f}/s"),
        Verdict("memory", f"{full:,.0f} MiB", f"at most {MEMORY_MOST_MIB:,}", full <= MEMORY_MOST_MIB, stored),
    ]
    print("\n".join(table(verdicts)))
    return all(verdict.met for verdict in verdicts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.bench.sandbox", description=__doc__)
    parser.add_argument("--calls", type=int, default=20_000, help="default: %(default)s")
    sys.exit(not asyncio.run(main(parser.parse_args().calls)))
