"""The answer to a request, and the error for an answer that its caller cannot use."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

Json = dict[str, Any]
NO_ANSWER = "NO_ANSWER"


class RestError(Exception):
    """An answer that the caller cannot use. `status` is 0 where there was none; `reason` may be empty."""

    def __init__(self, answer: "Answer") -> None:
        super().__init__(f"{answer.request}: {answer.status} {answer.reason} {answer.text[:1000]}".rstrip())
        self.status, self.reason = answer.status, answer.reason


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer; with status 0, that there was none."""

    status: int
    text: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    request: str = ""
    """Method and path, for messages."""
    seconds: float = 0.0
    """From the first try on."""

    @cached_property
    def json(self) -> Json:
        """The body. Raises `ValueError` where it is not JSON."""
        parsed: Json = json.loads(self.text)
        return parsed

    @property
    def ok(self) -> bool:
        return self.status == 200

    @property
    def reason(self) -> str:
        """The reason of a refusal; `NO_ANSWER` without an answer; empty where there is none."""
        return str(self.detail("ErrorInfo").get("reason", "")) if self.status else NO_ANSWER

    @property
    def domain(self) -> str:
        return str(self.detail("ErrorInfo").get("domain", ""))

    @property
    def fields(self) -> list[str]:
        """The fields that a refusal names as invalid."""
        return [violation["field"] for violation in self.detail("BadRequest").get("fieldViolations", [])]

    @property
    def retry_after(self) -> float | None:
        """The seconds that `Retry-After` demands."""
        try:
            return float(self.headers["retry-after"])
        except (KeyError, ValueError):
            return None

    @property
    def refusal(self) -> tuple[int, str]:
        """Status and reason, to compare with those expected."""
        return self.status, self.reason

    def expect(self, status: int = 200) -> "Answer":
        """This answer, if it has that status. Raises `RestError` otherwise."""
        if self.status != status:
            raise RestError(self)
        return self

    def detail(self, kind: str) -> Json:
        """The error detail of that type; empty where there is none, also where the body is not JSON."""
        try:
            details = self.json.get("details", [])
        except (ValueError, AttributeError):
            return {}
        return next((one for one in details if one.get("@type") == f"type.googleapis.com/google.rpc.{kind}"), {})
