"""The shop as its customers reach it: REST through the gateway, and nothing else."""

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp

_TRIES_MOST = 40
_PATIENCE_SECONDS = 60.0
_CALL_SECONDS = 15.0
_PAUSE_SECONDS = (0.1, 2.0)
_RETRY_AFTER_MOST = 5.0
_AGAIN = frozenset((429, 502, 503, 504))
_UNAUTHENTICATED = 401


class CannotRun(Exception):
    """The demo cannot go on. Says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the shop said in the end. `status` 0: it said nothing, however often it was asked."""

    status: int
    body: dict[str, Any]
    seconds: float
    """From the first time of asking."""

    @property
    def ok(self) -> bool:
        return self.status == 200

    @property
    def reason(self) -> str:
        """Why it was refused, as a program reads it."""
        for detail in self.body.get("details", ()):
            if isinstance(detail, dict) and "reason" in detail:
                return str(detail["reason"])
        return f"HTTP_{self.status}" if self.status else "NO_ANSWER"


@dataclass(slots=True)
class Customer:
    """Someone with an account, or about to get one."""

    email: str
    password: str = field(repr=False)
    token: str = field(default="", repr=False)


class Shop:
    """Calls the gateway. Whatever can be asked again is, under the same request id, as `Retry-After` says."""

    def __init__(self, url: str, *, connections: int) -> None:
        self._url = url
        connector = aiohttp.TCPConnector(limit=connections, force_close=False)
        timeout = aiohttp.ClientTimeout(total=_CALL_SECONDS)
        self._http = aiohttp.ClientSession(url, connector=connector, timeout=timeout)
        self.retries: Counter[str] = Counter()
        """How often something had to be asked again, by cause."""

    async def __aenter__(self) -> "Shop":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    async def call(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, by: Customer | None = None
    ) -> Answer:
        """Asks until there is an answer that another try would not change, for about a minute at most."""
        began = time.monotonic()
        data = None if body is None else json.dumps(body).encode()
        signed_in_again = False
        for tries in range(_TRIES_MOST):
            status, found, after = await self._once(method, path, data, by)
            if status == _UNAUTHENTICATED and by and not signed_in_again:
                signed_in_again = True
                self.retries["401"] += 1
                await self.sign_in(by)
                continue
            late = time.monotonic() - began > _PATIENCE_SECONDS
            if (status and status not in _AGAIN) or late:
                return Answer(status, found, time.monotonic() - began)
            self.retries[str(status) if status else "network"] += 1
            await asyncio.sleep(pause(tries, after))
        return Answer(status, found, time.monotonic() - began)

    async def _once(
        self, method: str, path: str, data: bytes | None, by: Customer | None
    ) -> tuple[int, dict[str, Any], float | None]:
        headers = {"Content-Type": "application/json"}
        if by:
            headers["Authorization"] = f"Bearer {by.token}"
        try:
            async with self._http.request(method, path, data=data, headers=headers) as answer:
                raw = await answer.read()
                return answer.status, _object(raw), _seconds(answer.headers.get("Retry-After"))
        except (aiohttp.ClientError, TimeoutError, OSError):
            # Whether it arrived is not known; the request id makes asking again safe.
            return 0, {}, None

    async def must(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, by: Customer | None = None
    ) -> dict[str, Any]:
        """`call` for what the demo cannot do without. Raises `CannotRun`."""
        answer = await self.call(method, path, body, by=by)
        if not answer.ok:
            said = answer.body.get("message") or "it does not answer"
            raise CannotRun(f"{method} {path}: {answer.status} {answer.reason}, {said}")
        return answer.body

    async def sign_in(self, customer: Customer) -> None:
        """Gets the customer a token. Raises `CannotRun`."""
        login = {"email": customer.email, "password": customer.password}
        customer.token = (await self.must("POST", "/v1/auth/login", login))["accessToken"]

    async def events(self, path: str) -> AsyncIterator[dict[str, Any]]:
        """The messages of a stream of server-sent events, from its beginning; begins again where it breaks off."""
        forever = aiohttp.ClientTimeout(total=None, sock_connect=_CALL_SECONDS)
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
                async with self._http.get(path, timeout=forever, headers={"Accept": "text/event-stream"}) as answer:
                    async for line in answer.content:
                        if line.startswith(b"data:") and (message := _object(line[5:])):
                            yield message
            await asyncio.sleep(_PAUSE_SECONDS[1] / 4)


def pause(tries: int, retry_after: float | None) -> float:
    """How long to wait before asking again: as told, else longer each time; never exactly as long as the others."""
    least, most = _PAUSE_SECONDS
    wanted = min(least * 2.0**tries, most) if retry_after is None else min(retry_after, _RETRY_AFTER_MOST)
    return max(wanted, least) * random.uniform(1.0, 1.3)  # noqa: S311 - jitter


def _object(raw: bytes) -> dict[str, Any]:
    try:
        found = json.loads(raw)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _seconds(header: str | None) -> float | None:
    try:
        return float(header) if header else None
    except ValueError:
        return None
