"""Hashing passwords in a bounded queue."""

import asyncio
import threading
from collections.abc import Iterator

import bcrypt
import pytest

from services.chassis import request_context
from services.chassis.errors import RateLimited
from services.chassis.request_context import Call
from services.identity.passwords import Passwords

HOME, CAFE = "192.0.2.1", "192.0.2.2"


@pytest.fixture
def passwords() -> Iterator[Passwords]:
    passwords = Passwords(rounds=4, threads=2)
    yield passwords
    passwords.close()


async def hashed_by(passwords: Passwords, password: str) -> str:
    async with passwords.turn("") as turn:
        return await turn.hash(password)


async def verified_by(passwords: Passwords, password: str, password_hash: str | None) -> bool:
    async with passwords.turn("") as turn:
        return await turn.verify(password, password_hash)


async def test_a_password_verifies_against_its_own_hash_only(passwords: Passwords) -> None:
    hashed = await hashed_by(passwords, "correct horse")
    assert hashed.startswith("$2b$04$")
    assert await verified_by(passwords, "correct horse", hashed)
    assert not await verified_by(passwords, "correct horsf", hashed)
    assert not await verified_by(passwords, "", hashed)
    assert hashed != await hashed_by(passwords, "correct horse")


async def test_72_bytes_are_all_read(passwords: Passwords) -> None:
    hashed = await hashed_by(passwords, "ä" * 36)
    assert await verified_by(passwords, "ä" * 36, hashed)
    assert not await verified_by(passwords, "ä" * 35 + "ö", hashed)
    assert not await verified_by(passwords, "a\0b", await hashed_by(passwords, "a\0c"))


async def test_an_unknown_user_costs_the_same_work(passwords: Passwords, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[bytes] = []
    real = bcrypt.checkpw

    def counted(password: bytes, hashed: bytes) -> bool:
        checked.append(hashed)
        return real(password, hashed)

    monkeypatch.setattr(bcrypt, "checkpw", counted)
    assert not await verified_by(passwords, "anything", None)
    assert not await verified_by(passwords, "anything", await hashed_by(passwords, "other"))
    assert len(checked) == 2
    assert {hashed[:7] for hashed in checked} == {b"$2b$04$"}


async def test_a_hash_with_other_rounds_is_outdated(passwords: Passwords) -> None:
    assert not passwords.is_outdated(await hashed_by(passwords, "a password"))
    assert passwords.is_outdated(bcrypt.hashpw(b"a password", bcrypt.gensalt(5)).decode())


class Busy:
    """All threads of `passwords` at work, until `end`; then each attempt takes them one after the other."""

    def __init__(self, passwords: Passwords) -> None:
        self.passwords, self.order = passwords, list[tuple[str, str]]()
        self._limiter, self._attempts = passwords._limiter, list[asyncio.Task[None]]()
        while self._limiter.take_free():
            pass

    async def attempt(self, email: str, address: str) -> None:
        """Adds one to the queue."""

        async def sign_in() -> None:
            request_context.enter(a_call(address))
            async with self.passwords.turn(email):
                self.order.append((email, address))

        self._attempts.append(asyncio.create_task(sign_in()))
        await asyncio.sleep(0)

    async def end(self) -> list[BaseException | None]:
        self._limiter.give_back()
        return await asyncio.gather(*self._attempts, return_exceptions=True)


def a_call(address: str) -> Call:
    return Call(method="/m", request_id="r", metadata={"x-envoy-external-address": address})


async def test_familiar_sign_in_passes_bogus_ones(passwords: Passwords) -> None:
    """It signed in before from the same network. The same address elsewhere, or a second attempt, has to wait."""
    request_context.enter(a_call(HOME))
    passwords.remember("ada")
    request_context.enter(None)  # type: ignore[arg-type]
    busy = Busy(passwords)
    for number in range(3):
        await busy.attempt(f"bogus {number}", CAFE)
    await busy.attempt("ada", CAFE)
    await busy.attempt("ada", HOME)
    await busy.attempt("ada", HOME)
    await busy.attempt("bogus 3", HOME)
    assert await busy.end() == [None] * 7
    bogus = [(f"bogus {number}", CAFE) for number in range(3)]
    assert busy.order == [("ada", HOME), *bogus, ("ada", CAFE), ("ada", HOME), ("bogus 3", HOME)]


async def test_attempts_of_one_address_fill_half_of_the_queue(passwords: Passwords) -> None:
    request_context.enter(a_call(CAFE))
    passwords.remember("ada")
    request_context.enter(None)  # type: ignore[arg-type]
    busy = Busy(passwords)
    passwords._limiter._mean = 0.5  # so that eight may wait
    for number in range(6):
        await busy.attempt(f"bogus {number}", CAFE)
    await busy.attempt("grace", HOME)
    await busy.attempt("ada", CAFE)
    passwords._limiter.give_back()
    outcomes = await busy.end()
    assert [type(outcome) for outcome in outcomes] == [type(None)] * 4 + [RateLimited] * 2 + [type(None)] * 2


async def test_accounts_of_one_address_leave_room_for_newcomers(passwords: Passwords) -> None:
    """Somebody who registers many accounts is familiar with all of them; others sign in meanwhile."""
    request_context.enter(a_call(CAFE))
    for number in range(40):
        passwords.remember(f"own {number}")
    request_context.enter(None)  # type: ignore[arg-type]
    passwords._limiter._mean = 0.25  # so that sixteen may wait
    busy = Busy(passwords)
    for number in range(40):
        await busy.attempt(f"own {number}", CAFE)
    for number in range(4):
        await busy.attempt(f"newcomer {number}", HOME)
    outcomes = await busy.end()
    assert outcomes[-4:] == [None] * 4
    assert sum(outcome is None for outcome in outcomes[:-4]) == 12, "four first, and half of the queue"


async def test_full_queue_refuses_at_once_and_then_recovers(
    passwords: Passwords, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    real = bcrypt.hashpw
    monkeypatch.setattr(bcrypt, "hashpw", lambda *given: gate.wait(10) and real(*given))
    passwords._limiter._mean = 1.25  # two threads, and a queue of three
    waiting = [asyncio.create_task(hashed_by(passwords, f"password {n}")) for n in range(5)]
    await asyncio.sleep(0)
    with pytest.raises(RateLimited) as caught:
        await hashed_by(passwords, "one too many")
    assert caught.value.retry_seconds

    waiting[-1].cancel()  # a cancelled call leaves the queue
    await asyncio.gather(waiting[-1], return_exceptions=True)
    waiting[-1] = asyncio.create_task(hashed_by(passwords, "the next one"))
    await asyncio.sleep(0)
    gate.set()
    assert len(await asyncio.gather(*waiting)) == 5
    await hashed_by(passwords, "room again")


async def test_thread_of_a_cancelled_call_is_free_only_after_its_work(
    passwords: Passwords, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    real = bcrypt.hashpw
    monkeypatch.setattr(bcrypt, "hashpw", lambda *given: gate.wait(10) and real(*given))
    begun = [asyncio.create_task(hashed_by(passwords, f"password {n}")) for n in range(2)]
    await asyncio.sleep(0)
    for call in begun:
        call.cancel()
    await asyncio.gather(*begun, return_exceptions=True)
    assert not passwords._limiter.take_free()
    gate.set()
    await hashed_by(passwords, "the next one")
