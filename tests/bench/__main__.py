"""What an order costs: `make bench`. Everything in one run, as ratios to E and CPU time by process.

E is an empty grpc.aio method without interceptors, transcoded by the same Envoy build with no other filter. The mesh is
the bench's own, on free ports; the load comes from a process of its own over loopback.
"""

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import psycopg

from deploy.local import Mesh, Site, free_base
from deploy.local.ports import HOST
from deploy.local.wheels import envoy
from gateway.render import Address, bare, write
from tests.bench.load import Job, Result

_ROOT = Path(__file__).parents[2]
_PARTS = ("gateway", "orders", "inventory", "catalog", "payments", "identity", "postgres", "valkey", "nats", "sandbox")
_CUSTOMERS = 64
CONNECTIONS = (16, 64, 256)
_UNITS = 1_000_000


@dataclass
class Measured:
    """One row of the report."""

    name: str
    connections: int
    result: Result
    cpu_us: dict[str, float]
    """CPU microseconds per request, by process."""

    @property
    def per_second(self) -> float:
        return sum(self.result.answers.values()) / self.result.seconds


async def load(job: Job) -> Result:
    """Runs `job` in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.load",
        cwd=_ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate(json.dumps(asdict(job)).encode())
    return Result(**json.loads(out))


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and its children, so far."""
    process = psutil.Process(pid)
    total = 0.0
    for each in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = each.cpu_times()
            total += times.user + times.system
    return total


async def measure(name: str, job: Job, pids: dict[str, int]) -> Measured:
    """Runs `job` and says what it cost each process."""
    before = {part: cpu_seconds(pid) for part, pid in pids.items()}
    result = await load(job)
    spent = {part: cpu_seconds(pid) - before[part] for part, pid in pids.items()}
    spent["load"] = result.cpu_seconds
    done = sum(result.answers.values())
    measured = Measured(name, job.connections, result, {part: s / done * 1e6 for part, s in spent.items()})
    show(measured)
    return measured


def total_us(row: Measured) -> float:
    """CPU microseconds per request, without those of the load generator."""
    return sum(us for part, us in row.cpu_us.items() if part != "load")


def show(row: Measured) -> None:
    """Prints one row."""
    costs = {part: us for part, us in row.cpu_us.items() if us >= 1 and part != "load"}
    print(
        f"{row.name:<28}{row.connections:>5} conn {row.per_second:>7.0f}/s  p50 {row.result.p50_ms:>6.1f} ms"
        f"  p99 {row.result.p99_ms:>6.1f} ms  CPU {sum(costs.values()):>6.0f} µs = "
        + " + ".join(f"{part} {us:.0f}" for part, us in costs.items())
        + f"  (load {row.cpu_us['load']:.0f})  {dict(row.result.answers)}",
        flush=True,
    )


@contextlib.asynccontextmanager
async def yardstick(folder: Path, port: int) -> AsyncIterator[dict[str, int]]:
    """E's two processes: Envoy with nothing but the transcoder, and the bare server."""
    config = bare(
        _ROOT / "protos/gen/gateway.binpb", Address(HOST, port), Address(HOST, port + 1),
        ["stampede.identity.v1.IdentityService"],
    )  # fmt: skip
    path = write(config, folder)
    server = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.bench.bare", str(port + 1), cwd=_ROOT)
    gateway = await asyncio.create_subprocess_exec(
        str(envoy()), "--config-path", str(path), "--concurrency", "1", "--log-level", "error", "--use-dynamic-base-id"
    )
    try:
        await _answers(f"http://{HOST}:{port}/v1/auth/logout")
        yield {"gateway": gateway.pid, "bare": server.pid}
    finally:
        for process in (gateway, server):
            process.terminate()
            await process.wait()


async def _answers(url: str) -> None:
    async with aiohttp.ClientSession() as http, asyncio.timeout(30):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with http.post(url, json={}) as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.1)


class Shop:
    """What the bench needs of the mesh, through its gateway."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._http = aiohttp.ClientSession(base_url=site.url)
        self.tokens: list[str] = []
        self._staff = ""

    async def close(self) -> None:
        await self._http.close()

    async def open(self) -> None:
        """Registers customers and signs everybody in."""
        admin = {"email": "admin@stampede.local", "password": self._site.secrets["admin"]}
        self._staff = (await self._post("/v1/auth/login", admin))["accessToken"]
        for number in range(_CUSTOMERS):
            account = {"email": f"{number}-{uuid.uuid4()}@example.com", "password": "correct horse"}
            await self._post("/v1/auth/register", account)
            self.tokens.append((await self._post("/v1/auth/login", account))["accessToken"])

    async def sale(self, units: int = _UNITS) -> dict[str, Any]:
        """A live sale of a new product."""
        sku = f"BENCH-{uuid.uuid4()}"
        price = {"currencyCode": "USD", "minorUnits": "1999"}
        product = await self._post("/v1/products", {"sku": sku, "name": "A bench", "price": price})
        await self._post(f"/v1/stock/{product['id']}", {"onHand": units, "reason": "bench"}, method="PUT")
        ends = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
        terms = {"productId": product["id"], "title": "Rush", "salePrice": price, "allocation": units, "endTime": ends}
        return await self._post("/v1/flash-sales", terms)

    def job(self, sale: dict[str, Any], *, connections: int, requests: int, card: str = "pm_card_visa") -> Job:
        """Orders of one unit of the sale."""
        line = {"productId": sale["productId"], "quantity": 1, "flashSaleId": sale["id"]}
        body = json.dumps({"requestId": "REQUEST_ID", "lines": [line], "paymentMethod": card})
        return Job(self._site.ports.gateway, "/v1/orders", body, self.tokens, connections, requests)

    async def settled(self) -> float:
        """Waits until no order is pending; returns after how many seconds."""
        started = asyncio.get_running_loop().time()
        url = self._site.database_url("orders").replace("+psycopg", "")
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as db:
            while True:
                row = await (await db.execute("SELECT count(*) FROM sagas")).fetchone()
                if row and not row[0]:
                    return asyncio.get_running_loop().time() - started
                await asyncio.sleep(0.1)

    async def _post(self, path: str, body: dict[str, Any], *, method: str = "POST") -> dict[str, Any]:
        headers = {"authorization": f"Bearer {self._staff}"} if self._staff else {}
        async with self._http.request(method, path, json=body, headers=headers) as response:
            answer: dict[str, Any] = await response.json()
            if response.status != 200:
                raise SystemExit(f"{method} {path}: {response.status} {answer}")
            return answer


@dataclass
class Bench:
    """The report as it grows. Each row stands beside an E measured just before it: this machine is never quiet."""

    requests: int
    e_port: int
    e_pids: dict[str, int]
    rows: list[tuple[Measured, Measured]] = field(default_factory=list)

    async def row(self, name: str, job: Job, pids: dict[str, int]) -> None:
        """Measures E, then `job`, three times in turn; the pair whose ratio lies in the middle counts."""
        pairs = []
        for _ in range(3):
            e = await self.yardstick(job.connections)
            pairs.append((await measure(name, job, pids), e))
        self.rows.append(sorted(pairs, key=lambda pair: pair[0].per_second / pair[1].per_second)[1])

    async def yardstick(self, connections: int) -> Measured:
        """Measures E."""
        job = Job(self.e_port, "/v1/auth/logout", "{}", [], connections, self.requests)
        return await measure("E", job, self.e_pids)

    async def placing(self, home: Path) -> None:
        """Orders held and durable, on one hot sale; and the answer to those who come too late."""
        # Its sagas are left for later, so that placing is measured alone.
        os.environ["SAGAS_AT_ONCE"] = "0"
        async with mesh(home) as (running, shop):
            pids = {part: running.pid(part) for part in _PARTS}
            for name, units, levels in (("order placed", _UNITS, CONNECTIONS), ("sold out", 1, CONNECTIONS[1:])):
                for connections in levels:
                    sale = await shop.sale(units)
                    await load(shop.job(sale, connections=connections, requests=self.requests // 5))
                    await self.row(name, shop.job(sale, connections=connections, requests=self.requests), pids)

    async def paying(self, home: Path) -> None:
        """Whole paid orders."""
        os.environ["SAGAS_AT_ONCE"] = "512"
        async with mesh(home) as (running, shop):
            pids = {part: running.pid(part) for part in _PARTS}
            await paid(shop, pids, self.requests // 5, 64)
            e = await self.yardstick(64)
            self.rows.append((await paid(shop, pids, self.requests // 2, 64), e))


async def bench(requests: int) -> list[tuple[Measured, Measured]]:
    """All rows of the report, each with its E."""
    with tempfile.TemporaryDirectory(prefix="stampede-bench-") as folder:
        home = Path(folder)
        home.chmod(0o755)
        port = free_base(30000, 32000)
        async with yardstick(home, port) as pids:
            report_ = Bench(requests, port, pids)
            await load(Job(port, "/v1/auth/logout", "{}", [], 64, requests // 2))
            await report_.placing(home / "placing")
            await report_.paying(home / "paying")
    return report_.rows


async def paid(shop: Shop, pids: dict[str, int], requests: int, connections: int) -> Measured:
    """Whole paid orders: from the first request until the last order is paid."""
    sale = await shop.sale()
    before = {part: cpu_seconds(pid) for part, pid in pids.items()}
    result = await load(shop.job(sale, connections=connections, requests=requests))
    result.seconds += await shop.settled()
    spent = {part: (cpu_seconds(pid) - before[part]) / requests * 1e6 for part, pid in pids.items()}
    row = Measured("order paid", connections, result, {**spent, "load": result.cpu_seconds / requests * 1e6})
    show(row)
    return row


@contextlib.asynccontextmanager
async def mesh(home: Path) -> AsyncIterator[tuple[Mesh, Shop]]:
    """A mesh of the bench's own, and a shop opened in it."""
    home.mkdir()
    site = Site.at(home, free_base())
    async with Mesh(site) as running:
        shop = Shop(site)
        try:
            await shop.open()
            yield running, shop
        finally:
            await shop.close()


def report(rows: list[tuple[Measured, Measured]]) -> None:
    """Prints each row's ratios to its own E."""
    print("\nratios to E at as many connections, measured just before: answers a second, CPU of all processes together")
    for row, e in rows:
        rate, cpu = row.per_second / e.per_second, total_us(row) / total_us(e)
        print(f"  {row.name:<16}{row.connections:>5} connections  {rate:>5.2f} E  {cpu:>6.2f} × its CPU")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--requests", type=int, default=6_000, help="requests per row (default: %(default)s)")
    arguments = parser.parse_args()
    report(asyncio.run(bench(arguments.requests)))
