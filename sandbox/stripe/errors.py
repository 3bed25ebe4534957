"""Stripe's error answers. Code below the HTTP layer raises them; the HTTP layer renders them as JSON."""

from __future__ import annotations

from typing import Any

from sandbox.stripe.rows import Intent
from sandbox.wire.errors import Refusal


class ApiError(Refusal):
    """An error answer.

    `saved` means that the answer belongs to the idempotency key: Stripe saves what an endpoint decided, such as a
    decline or a wrong state, but not refusals before that, such as bad parameters.
    `intent` is the payment of the error; it is shown inside.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        saved: bool = False,
        intent: Intent | None = None,
        **more: Any,
    ) -> None:
        super().__init__(status, message)
        self.saved = saved
        self.intent = intent
        body = {"type": kind, "code": code, "message": message, "param": param, **more}
        self.body = {name: value for name, value in body.items() if value is not None}


def invalid(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    """A request with an invalid parameter."""
    return ApiError(400, message, param=param, code=code)


def missing_param(name: str) -> ApiError:
    return invalid(f"Missing required param: {name}.", param=name, code="parameter_missing")


def no_such(noun: str, identifier: str, *, param: str = "id", status: int = 404) -> ApiError:
    return ApiError(status, f"No such {noun}: '{identifier}'", param=param, code="resource_missing")


def unauthorised(message: str) -> ApiError:
    return ApiError(401, message)


def rate_limited() -> ApiError:
    return ApiError(
        429,
        "Request rate limit exceeded. Learn more about rate limits here https://stripe.com/docs/rate-limits.",
        code="rate_limit",
    )


def server_error(*, saved: bool = False) -> ApiError:
    return ApiError(
        500,
        "An unknown error occurred.",
        kind="api_error",
        saved=saved,
    )


def key_in_use(key: str) -> ApiError:
    return ApiError(
        409,
        "There is currently another in-progress request using this Idempotent Key (that probably means you "
        f"submitted twice, and the other request is still going through): {key}.",
        kind="idempotency_error",
        code="idempotency_key_in_use",
    )


def key_reused(key: str) -> ApiError:
    return ApiError(
        400,
        "Keys for idempotent requests can only be used with the same parameters they were first used with. "
        f"Try using a key other than '{key}' if you meant to execute a different request.",
        kind="idempotency_error",
    )
