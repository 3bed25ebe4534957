"""The error answers of Razorpay's protocol."""

from __future__ import annotations

from sandbox.rows import Json
from sandbox.wire.errors import Refusal


class ApiError(Refusal):
    """An error answer. With `saved`, a repeat under the same idempotency key gets it again."""

    def __init__(
        self,
        status: int,
        description: str,
        *,
        code: str = "BAD_REQUEST_ERROR",
        reason: str = "NA",
        field: str | None = None,
        saved: bool = False,
    ) -> None:
        super().__init__(status, description)
        self.code, self.reason, self.field, self.saved = code, reason, field, saved

    def body(self) -> Json:
        error: Json = {
            "code": self.code, "description": self.message, "source": "NA", "step": "NA", "reason": self.reason,
            "metadata": {},
        }  # fmt: skip
        if self.field is not None:
            error["field"] = self.field
        return {"error": error}


def invalid(description: str, field: str | None = None) -> ApiError:
    return ApiError(400, description, reason="input_validation_failed", field=field)


def unknown_id() -> ApiError:
    return ApiError(400, "The id provided does not exist")


def unauthorised() -> ApiError:
    return ApiError(401, "Authentication failed")


def rate_limited() -> ApiError:
    return ApiError(429, "Request failed. Please try after sometime.")


def server_error(*, saved: bool) -> ApiError:
    return ApiError(
        500, "We are facing some trouble completing your request at the moment. Please try again shortly.",
        code="SERVER_ERROR", saved=saved,
    )  # fmt: skip


def key_in_use() -> ApiError:
    return ApiError(409, "Request under progress. Please retry after some time.")


def key_reused() -> ApiError:
    return ApiError(400, "Different request body for the same Idempotency Key", reason="input_validation_failed")
