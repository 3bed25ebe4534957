"""Hashing passwords in a bounded queue."""

import asyncio
import threading
from collections.abc import Iterator

import bcrypt
import pytest

from services.chassis.errors import RateLimited
from services.identity.passwords import Passwords


@pytest.fixture
def passwords() -> Iterator[Passwords]:
    passwords = Passwords(rounds=4, threads=2, queue_max=3)
    yield passwords
    passwords.close()


async def test_a_password_verifies_against_its_own_hash_only(passwords: Passwords) -> None:
    hashed = await passwords.hash("correct horse")
    assert hashed.startswith("$2b$04$")
    assert await passwords.verify("correct horse", hashed)
    assert not await passwords.verify("correct horsf", hashed)
    assert not await passwords.verify("", hashed)
    assert hashed != await passwords.hash("correct horse")


async def test_72_bytes_are_all_read(passwords: Passwords) -> None:
    hashed = await passwords.hash("ä" * 36)
    assert await passwords.verify("ä" * 36, hashed)
    assert not await passwords.verify("ä" * 35 + "ö", hashed)
    assert not await passwords.verify("a\0b", await passwords.hash("a\0c"))


async def test_an_unknown_user_costs_the_same_work(passwords: Passwords, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[bytes] = []
    real = bcrypt.checkpw

    def counted(password: bytes, hashed: bytes) -> bool:
        checked.append(hashed)
        return real(password, hashed)

    monkeypatch.setattr(bcrypt, "checkpw", counted)
    assert not await passwords.verify("anything", None)
    assert not await passwords.verify("anything", await passwords.hash("other"))
    assert len(checked) == 2
    assert {hashed[:7] for hashed in checked} == {b"$2b$04$"}


async def test_a_hash_with_other_rounds_is_outdated(passwords: Passwords) -> None:
    assert not passwords.is_outdated(await passwords.hash("a password"))
    assert passwords.is_outdated(bcrypt.hashpw(b"a password", bcrypt.gensalt(5)).decode())


async def test_a_full_queue_refuses_at_once_and_then_recovers(
    passwords: Passwords, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    real = bcrypt.hashpw
    monkeypatch.setattr(bcrypt, "hashpw", lambda *given: gate.wait(10) and real(*given))
    waiting = [asyncio.create_task(passwords.hash(f"password {n}")) for n in range(5)]  # 2 threads and a queue of 3
    await asyncio.sleep(0)
    with pytest.raises(RateLimited) as caught:
        await passwords.hash("one too many")
    assert caught.value.retry_seconds

    waiting[-1].cancel()  # a cancelled call leaves the queue
    await asyncio.gather(waiting[-1], return_exceptions=True)
    waiting[-1] = asyncio.create_task(passwords.hash("the next one"))
    await asyncio.sleep(0)
    gate.set()
    assert len(await asyncio.gather(*waiting)) == 5
    await passwords.hash("room again")
