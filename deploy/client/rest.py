"""Sends requests to the gateway, as an anonymous caller or as a user."""

import asyncio
import io
import itertools
import json
import random
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import aiohttp
import yarl

from deploy.client.answers import Answer, Json, RestError

_CALL_SECONDS = 15.0
_SILENCE_SECONDS = 40.0  # a stream without a byte for so long is broken
_LARGE_BYTES = 1 << 19
_TRY_AGAIN = frozenset((0, 429, 502, 503, 504))


@dataclass(slots=True)
class User:
    """An account and its access token. With a password, the token is renewed when it has expired."""

    email: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a request is retried, and the pauses between its tries."""

    seconds: float = 60.0
    first_pause: float = 0.1
    longest_pause: float = 2.0
    retry_after_max: float = 5.0
    """A longer `Retry-After` is cut to this."""

    def pause(self, tries: int, retry_after: float | None) -> float:
        """Seconds until the next try: as `Retry-After` demands, else doubled each time; with jitter."""
        if retry_after is None:
            pause = min(self.first_pause * 2.0**tries, self.longest_pause)
        else:
            pause = min(retry_after, self.retry_after_max)
        return max(pause, self.first_pause) * random.uniform(1.0, 1.3)  # noqa: S311 - jitter


@dataclass(frozen=True, kw_only=True)
class Rest:
    """Calls the gateway. With `patience`, retries what another try may answer; without, one try is all.

    A mutation that is retried must carry a request id: whether a lost try arrived is unknown.
    """

    http: aiohttp.ClientSession
    url: str
    user: User = field(default_factory=User)
    patience: Patience | None = None
    check: Callable[[Answer], None] = lambda answer: None
    """Sees every answer, also those that are retried."""
    retries: Counter[str] = field(default_factory=Counter)
    """Retries so far by cause; shared by all clients made from this one."""

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, *, connections: int, seconds: float = _CALL_SECONDS) -> AsyncIterator["Rest"]:
        """A client with a pool of connections; a try takes at most `seconds`."""
        connector, timeout = aiohttp.TCPConnector(limit=connections), aiohttp.ClientTimeout(total=seconds)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
            yield cls(http=http, url=url)

    @property
    def token(self) -> str:
        return self.user.token

    def as_(self, user: User | str) -> "Rest":
        """The same client for a user, or for the bearer of a token."""
        return replace(self, user=User(token=user) if isinstance(user, str) else user)

    async def sign_in(self, user: User) -> "Rest":
        """Gives the user a fresh token; returns the client for them. Raises `RestError`.

        The queue of passwords may be full for a moment, so this is patient in every case.
        """
        login = {"email": user.email, "password": user.password}
        answer = await replace(self.as_(""), patience=self.patience or Patience()).post("/v1/auth/login", login)
        user.token = answer.expect().json["accessToken"]
        return self.as_(user)

    async def get(self, path: str, **query: str | int) -> Answer:
        return await self.send("GET", path, query=query)

    async def post(self, path: str, body: object = None, **headers: str) -> Answer:
        return await self.send("POST", path, json_body={} if body is None else body, headers=headers)

    async def put(self, path: str, body: object) -> Answer:
        return await self.send("PUT", path, json_body=body)

    async def patch(self, path: str, body: object, **headers: str) -> Answer:
        return await self.send("PATCH", path, json_body=body, headers=headers)

    async def send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None = None,
        json_body: object = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Sends a request and returns its answer; `path` is sent as it is written.

        Without patience, a broken connection raises `aiohttp.ClientError`; with patience, the last try's failure is
        an answer of status 0.
        """
        url = yarl.URL(self.url + path, encoded=True)
        sent = body if json_body is None else json.dumps(json_body).encode()
        kind = {"content-type": "application/json"} if sent is not None else {}
        request = _Request(method, path, url.update_query(query) if query else url, sent, kind | dict(headers or {}))
        began, is_renewed = time.monotonic(), False
        for tries in itertools.count():
            token = self.token
            answer = await self._try(request, began)
            if answer.status == 401 and self.user.password and not is_renewed:
                is_renewed = True
                self.retries["401"] += 1
                if self.token == token:  # else a concurrent request has renewed it
                    await self.sign_in(self.user)
                continue
            if answer.status not in _TRY_AGAIN or not self.patience or answer.seconds > self.patience.seconds:
                break
            self.retries[str(answer.status or "network")] += 1
            await asyncio.sleep(self.patience.pause(tries, answer.retry_after))
        return answer

    async def _try(self, request: "_Request", began: float) -> Answer:
        body: bytes | io.BytesIO | None = request.body
        if request.body and len(request.body) > _LARGE_BYTES:
            body = io.BytesIO(request.body)  # aiohttp warns of large bytes
        headers = self._bearer() | request.headers
        name = f"{request.method} {request.path}"
        try:
            async with self.http.request(request.method, request.url, data=body, headers=headers) as response:
                text = (await response.read()).decode()
        except (aiohttp.ClientError, TimeoutError, OSError):
            if self.patience is None:
                raise
            return Answer(status=0, request=name, seconds=time.monotonic() - began)
        answer = Answer(
            status=response.status, text=text, headers=response.headers, request=name, seconds=time.monotonic() - began
        )
        self.check(answer)
        return answer

    @asynccontextmanager
    async def watching(self, path: str) -> AsyncIterator[AsyncIterator[Json]]:
        """The messages of a stream of server-sent events; leaving the block closes the stream.

        Raises `RestError` if the stream is refused.
        """
        headers = self._bearer() | {"accept": "text/event-stream"}
        timeout = aiohttp.ClientTimeout(sock_connect=_CALL_SECONDS, sock_read=_SILENCE_SECONDS)
        async with self.http.get(self.url + path, headers=headers, timeout=timeout) as response:
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                text = await response.text()
                raise RestError(Answer(status=response.status, text=text, request=f"GET {path}"))
            yield _messages(response)

    def _bearer(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}"} if self.token else {}


@dataclass(frozen=True)
class _Request:
    method: str
    path: str
    url: yarl.URL
    body: bytes | None
    headers: dict[str, str]


async def _messages(response: aiohttp.ClientResponse) -> AsyncIterator[Json]:
    async for line in response.content:
        if line.startswith(b"data:"):
            yield json.loads(line.removeprefix(b"data:"))


def new_id() -> str:
    """A new request id."""
    return str(uuid.uuid4())
