"""The sandbox forgets nothing that a client has heard, whatever kills it."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import stripe

from sandbox.state.journal import Journal
from tests.sandbox.conftest import SECRET, Listener, Provider
from tests.support import budget

_KEY, _AT_ONCE, _ANSWERS = "sk_test_sandbox", 16, budget(100, 500)
_LARGE_BYTES = _ANSWERS * 2000
_SANDBOX = f"""
import sys
from sandbox import __main__, service
service.COMPACT_ABOVE_BYTES = {_LARGE_BYTES}
sys.exit(__main__.main(sys.argv[1:]))
"""
Order = Callable[..., dict[str, Any]]


class Client:
    """Calls a sandbox in another process, and remembers what it has answered."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._http = aiohttp.ClientSession(headers={"Authorization": f"Bearer {_KEY}"})
        self.paid: dict[str, str] = {}
        self.refunded: dict[str, str] = {}

    async def pay(self, key: str) -> str:
        form = {
            "amount": "2500", "currency": "usd", "confirm": "true", "payment_method": "pm_card_visa",
            "payment_method_types[]": "card",
        }  # fmt: skip
        return str((await self._post("payment_intents", form, key))["id"])

    async def refund(self, intent: str, key: str) -> str:
        return str((await self._post("refunds", {"payment_intent": intent, "amount": "100"}, key))["id"])

    async def get(self, path: str) -> dict[str, Any]:
        async with self._http.get(f"{self._url}/v1/{path}") as answer:
            assert answer.status == 200, await answer.text()
            found: dict[str, Any] = await answer.json()
            return found

    async def _post(self, path: str, form: dict[str, str], key: str) -> dict[str, Any]:
        async with self._http.post(f"{self._url}/v1/{path}", data=form, headers={"Idempotency-Key": key}) as answer:
            assert answer.status == 200, await answer.text()
            made: dict[str, Any] = await answer.json()
            return made

    async def buy_until_it_dies(self, worker: int) -> None:
        """Pays and refunds; each answer is noted as soon as it is here."""
        number = 0
        while True:
            key, number = f"{worker}/{number}", number + 1
            self.paid[key] = await self.pay(key)
            self.refunded[key] = await self.refund(self.paid[key], f"{key}/refund")

    async def close(self) -> None:
        await self._http.close()


@asynccontextmanager
async def _process(state: Path, hooks: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, Client]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _SANDBOX, "--listen", "127.0.0.1:0", "--state", str(state),
        "--webhook-url", hooks, "--webhook-secret", SECRET, "--webhook-events", "payment_intent.succeeded",
        stderr=asyncio.subprocess.PIPE, env=os.environ,
    )  # fmt: skip
    assert process.stderr
    client = Client(json.loads(await process.stderr.readline())["url"])
    drain = asyncio.create_task(process.stderr.read())
    try:
        yield process, client
    finally:
        await client.close()
        if process.returncode is None:
            process.kill()
        await process.wait()
        await drain


@pytest.mark.proof
async def test_all_that_was_answered_survives_kill_9_under_load(tmp_path: Path, listener: Listener) -> None:
    """Payments, refunds, idempotency keys and pending webhooks, through the compaction of a large file."""
    state = tmp_path / "state.jsonl"
    listener.answers = [500] * 100_000
    async with _process(state, listener.url) as (process, before):
        load = [asyncio.create_task(before.buy_until_it_dies(worker)) for worker in range(_AT_ONCE)]
        while len(before.refunded) < _ANSWERS:
            await asyncio.wait(load, timeout=0.01, return_when=asyncio.FIRST_COMPLETED)
        process.kill()
        await asyncio.gather(*load, return_exceptions=True)
    assert state.stat().st_size > _LARGE_BYTES

    listener.answers.clear()
    async with _process(state, listener.url) as (_, after):
        for key, intent in before.paid.items():
            assert (await after.get(f"payment_intents/{intent}"))["status"] == "succeeded"
            assert await after.pay(key) == intent
        for key, refund in before.refunded.items():
            assert (await after.get(f"refunds/{refund}"))["status"] == "succeeded"
            assert await after.refund(before.paid[key], f"{key}/refund") == refund
        expected = set(before.paid.values())
        async with asyncio.timeout(60):
            while expected:
                status, event = await listener.seen.get()
                if status == 200:
                    expected.discard(event.data.object.id)


async def test_no_answer_and_no_webhook_leaves_before_the_disk_has_it(
    notifying: Provider, listener: Listener, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, begun, sync = threading.Event(), threading.Event(), Journal.sync

    def slow(journal: Journal) -> None:
        begun.set()
        assert release.wait(10)
        sync(journal)

    monkeypatch.setattr(Journal, "sync", slow)
    sdk = notifying.sdk()
    paying = asyncio.create_task(sdk.v1.payment_intents.create_async(order()))  # type: ignore[arg-type]
    await asyncio.to_thread(begun.wait, 10)
    # It shows the payment, so it must not leave before the payment is safe either.
    reading = asyncio.create_task(sdk.v1.payment_intents.list_async())
    ledger = asyncio.create_task(notifying.control("GET", "ledger"))
    done, _ = await asyncio.wait((paying, reading, ledger), timeout=0.2, return_when=asyncio.FIRST_COMPLETED)
    assert not done
    assert listener.seen.empty()
    release.set()
    paid = await paying
    assert [intent.id for intent in (await reading).data] == [paid.id]
    assert (await ledger)["usd"]["payments"] == 1
    assert {event.type for _, event in await listener.take(3)} >= {"payment_intent.succeeded"}


def test_sync_asks_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a power cut would show that it does not."""
    synced, journal = list[str](), Journal(tmp_path / "state.jsonl", {})
    fdatasync = os.fdatasync

    def counted(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fdatasync(descriptor)

    monkeypatch.setattr(os, "fdatasync", counted)
    journal.sync()
    journal.close()
    assert synced == ["state.jsonl"]


async def test_one_sync_serves_all_requests_that_wait(
    provider: Provider, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, sync = list[int](), Journal.sync

    def counted(journal: Journal) -> None:
        calls.append(1)
        sync(journal)

    monkeypatch.setattr(Journal, "sync", counted)
    sdk = provider.sdk()
    await asyncio.gather(*(sdk.v1.payment_intents.create_async(order()) for _ in range(100)))  # type: ignore[arg-type]
    assert 0 < len(calls) < 100


async def test_nothing_is_answered_after_a_failed_sync(
    provider: Provider, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failure nobody knows what the disk has, although the next sync may succeed."""

    def fail(_journal: Journal) -> None:
        raise OSError(5, "planted")

    with monkeypatch.context() as broken:
        broken.setattr(Journal, "sync", fail)
        for _ in range(2):
            assert await _status(provider, order) == 500
    assert await _status(provider, order) == 500
    await provider.restart()
    assert await _status(provider, order) == 200


async def _status(provider: Provider, order: Order) -> int:
    form = {"amount": "2500", "currency": "usd"}
    headers = {"Authorization": f"Bearer {_KEY}", "Idempotency-Key": "k"}
    async with provider.http.post(f"{provider.url}/v1/payment_intents", data=form, headers=headers) as answer:
        return answer.status


@pytest.mark.parametrize("compacted", [False, True])
async def test_only_its_owner_can_read_the_journal(
    provider: Provider, order: Order, monkeypatch: pytest.MonkeyPatch, compacted: bool
) -> None:
    """It has client secrets. A file that an older sandbox left readable is closed too."""
    await provider.sdk().v1.payment_intents.create_async(order())  # type: ignore[arg-type]
    if compacted:
        monkeypatch.setattr("sandbox.service.COMPACT_ABOVE_BYTES", 0)
    old = os.umask(0)
    try:
        provider.settings.state.chmod(0o644)
        await provider.restart()
    finally:
        os.umask(old)
    for file in provider.settings.state.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


async def test_old_payments_leave_memory_and_stay_in_the_totals(
    provider: Provider, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what has ended is dropped, and only whole payments."""
    monkeypatch.setattr("sandbox.state.store.PAYMENTS_KEPT", 10)
    await provider.restart()
    sdk = provider.sdk()
    opened = await sdk.v1.payment_intents.create_async({"amount": 500, "currency": "usd"})
    disputed = await sdk.v1.payment_intents.create_async(order("pm_card_createDispute"))  # type: ignore[arg-type]
    waiting = await sdk.v1.payment_intents.create_async(order("pm_card_pendingRefund"))  # type: ignore[arg-type]
    await sdk.v1.refunds.create_async({"payment_intent": waiting.id})
    paid = [await sdk.v1.payment_intents.create_async(order()) for _ in range(20)]  # type: ignore[arg-type]
    await sdk.v1.refunds.create_async({"payment_intent": paid[-1].id, "amount": 100})
    ledger = await provider.control("GET", "ledger")
    assert (ledger["usd"]["payments"], ledger["usd"]["captured"]) == (22, 22 * 2500)
    for _ in range(2):
        book = provider.sandbox.stripe
        assert 10 <= len(book.intents) <= 12
        assert len(book.charges) == len(book.intents) - 1
        assert {opened.id, disputed.id, waiting.id, paid[-1].id} <= book.intents.rows.keys()
        assert paid[0].id not in book.intents.rows
        assert await provider.control("GET", "ledger") == ledger
        await provider.restart()
    with pytest.raises(stripe.InvalidRequestError):
        await provider.sdk().v1.refunds.create_async({"payment_intent": paid[0].id})
    again = await provider.sdk().v1.payment_intents.list_async({"limit": 100})
    assert [intent.id for intent in again.data][-3:] == [waiting.id, disputed.id, opened.id]
