"""A small client of the REST surface, which holds every answer against the contract."""

import io
import json
import re
import uuid
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import yarl

Json = dict[str, Any]

# gRPC's canonical codes, with the HTTP statuses that the gateway may answer them with.
_HTTP_OF = {
    3: {400, 408, 413, 415, 426, 431}, 4: {408, 504}, 5: {404}, 6: {409}, 7: {403}, 8: {429}, 9: {400}, 10: {409},
    12: {405}, 14: {502, 503}, 16: {401},
}  # fmt: skip
_LEAKS = re.compile(
    r"Traceback|File \\?\"/|\.py\b|sqlalchemy|psycopg|asyncpg|grpc\.aio|\bSELECT\b.+\bFROM\b|\bINSERT INTO\b"
    r"|\bUPDATE\b.+\bSET\b|constraint \\?\"|127\.0\.0\.1:\d|sk_test_|whsec_|-----BEGIN|\$2b\$\d\d\$|remote_address"
)
_LARGE_BYTES = 1 << 19
_STATUS = {"code", "message", "details"}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back: already known to be as the contract wants it."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Json:
        parsed: Json = json.loads(self.text)
        return parsed

    @property
    def reason(self) -> str:
        """The reason of a refusal; empty where there is none."""
        return str(self._detail("ErrorInfo").get("reason", ""))

    @property
    def domain(self) -> str:
        return str(self._detail("ErrorInfo").get("domain", ""))

    @property
    def fields(self) -> list[str]:
        """The fields that a refusal complains about."""
        return [violation["field"] for violation in self._detail("BadRequest").get("fieldViolations", [])]

    @property
    def refusal(self) -> tuple[int, str]:
        """Status and reason, to compare with those expected."""
        return self.status, self.reason

    def expect(self, status: int = 200) -> "Answer":
        """This answer, where it has that status."""
        assert self.status == status, f"{self.status} instead of {status}: {self.text[:1000]}"
        return self

    def _detail(self, kind: str) -> Json:
        for detail in self.json.get("details", []):
            if detail["@type"] == f"type.googleapis.com/google.rpc.{kind}":
                found: Json = detail
                return found
        return {}


def check(answer: Answer, secrets: Collection[str] = ()) -> None:
    """Raises `AssertionError` where an answer is none that the contract allows."""
    assert not (leak := _LEAKS.search(answer.text)), f"leaks {leak.group()!r}: {answer.text[:1000]}"
    for secret in secrets:
        assert secret not in answer.text, "leaks a secret of the mesh"
    assert answer.headers.get("x-request-id"), f"no x-request-id on {answer.status}"
    if answer.status < 400:
        return
    shown = f"{answer.status} {dict(answer.headers)} {answer.text[:1000]}"
    assert answer.headers["content-type"].split(";")[0] == "application/json", shown
    assert answer.json.keys() <= _STATUS, shown
    assert answer.json.keys() >= {"code", "message"}, shown
    assert answer.status in _HTTP_OF.get(answer.json["code"], set()), shown
    if answer.status in (429, 503):
        assert int(answer.headers["retry-after"]) >= 1, shown
        assert answer._detail("RetryInfo").get("retryDelay"), shown
    if answer.reason:
        assert re.fullmatch(r"[A-Z][A-Z0-9_]+", answer.reason), shown
        assert answer.domain.endswith(".stampede"), shown
    if answer.reason == "INVALID_FIELDS":
        assert answer.fields, shown


@dataclass(frozen=True, kw_only=True)
class Rest:
    """Calls the gateway, as nobody or with a token."""

    http: aiohttp.ClientSession
    url: str
    token: str = ""
    secrets: Collection[str] = ()
    """What no answer may ever hold."""

    def as_(self, token: str) -> "Rest":
        return replace(self, token=token)

    async def get(self, path: str, **query: str | int) -> Answer:
        return await self.send("GET", path, query=query)

    async def post(self, path: str, body: object = None, **headers: str) -> Answer:
        return await self.send("POST", path, json_body={} if body is None else body, headers=headers)

    async def put(self, path: str, body: object) -> Answer:
        return await self.send("PUT", path, json_body=body)

    async def patch(self, path: str, body: object) -> Answer:
        return await self.send("PATCH", path, json_body=body)

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
        """One request; `path` is sent as it is written. Its answer, once it is known to keep to the contract."""
        url = yarl.URL(self.url + path, encoded=True)
        sent = body if json_body is None else json.dumps(json_body).encode()
        kind = {"content-type": "application/json"} if sent is not None else {}
        data = io.BytesIO(sent) if sent and len(sent) > _LARGE_BYTES else sent  # aiohttp warns of large bytes
        async with self.http.request(
            method,
            url.update_query(query) if query else url,
            data=data,
            headers=kind | self._token() | dict(headers or {}),
        ) as response:
            text = (await response.read()).decode()
            answer = Answer(status=response.status, headers=response.headers, text=text)
        check(answer, self.secrets)
        return answer

    @asynccontextmanager
    async def watching(self, path: str) -> AsyncIterator[AsyncIterator[Json]]:
        """The messages of a server-sent stream; leaving the block hangs up."""
        async with self.http.get(self.url + path, headers=self._token() | {"accept": "text/event-stream"}) as response:
            assert response.status == 200, await response.text()
            assert response.headers["content-type"].startswith("text/event-stream"), response.headers
            yield _messages(response)

    def _token(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}"} if self.token else {}


async def _messages(response: aiohttp.ClientResponse) -> AsyncIterator[Json]:
    async for line in response.content:
        if line.startswith(b"data:"):
            yield json.loads(line.removeprefix(b"data:"))


def new_id() -> str:
    """A request id nobody has used."""
    return str(uuid.uuid4())
