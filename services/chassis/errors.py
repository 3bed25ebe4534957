"""Refusals: one exception per reason, independent of gRPC.

    AppError
      ├─ InvalidFields, RequestIdReused        INVALID_ARGUMENT
      ├─ Unauthenticated                       UNAUTHENTICATED
      ├─ PermissionDenied                      PERMISSION_DENIED
      ├─ StaleEtag                             ABORTED
      ├─ WrongState                            FAILED_PRECONDITION
      ├─ RateLimited, TooSlow                  RESOURCE_EXHAUSTED
      ├─ Unavailable                           UNAVAILABLE
      ├─ Refused                               the code that another service returned
      └─ …                                     each service's own, in its domain.py

An error is declared once, as a class. Its message is a template over its metadata, so a program can read
everything that the text contains (AIP-193).
"""

import re
from typing import ClassVar

import sqlalchemy.exc

_REASON = re.compile(r"[A-Z][A-Z0-9_]{1,61}[A-Z0-9]")


class AppError(Exception):
    """A refusal that the caller can understand and act on."""

    code: ClassVar[str]
    """The name of the canonical status code, for example `FAILED_PRECONDITION`."""

    reason: str
    """The machine-readable cause, derived from the class name."""

    template: ClassVar[str]
    """The message, with `{placeholders}` for metadata."""

    retry_seconds: ClassVar[int | None] = None
    """After how long to retry, for codes that permit it."""

    domain: str | None = None
    """The service that refuses, if it is not the answering one."""

    def __init_subclass__(cls) -> None:
        cls.reason = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).upper()
        assert _REASON.fullmatch(cls.reason), cls.reason

    def __init__(self, **metadata: object) -> None:
        self.metadata = {key: str(value) for key, value in metadata.items()}
        super().__init__(self.template.format_map(self.metadata))


class InvalidFields(AppError):
    """The request breaks a rule of the contract. `violations` maps fields to texts; clients receive the first 50."""

    code = "INVALID_ARGUMENT"
    template = "{count} field(s) of the request are not valid."

    def __init__(self, violations: dict[str, str], *, cause: str = "") -> None:
        """`cause` is the reason of each violation, for programs; empty if there is no name for it."""
        self.violations, self.cause = violations, cause
        super().__init__(count=len(violations))


class RequestIdReused(AppError):
    code = "INVALID_ARGUMENT"
    template = "The request id {requestId} was already used for a different request."


class Unauthenticated(AppError):
    code = "UNAUTHENTICATED"
    template = "Sign in to call this method."


class PermissionDenied(AppError):
    code = "PERMISSION_DENIED"
    template = "The caller may not call this method."


class StaleEtag(AppError):
    code = "ABORTED"
    template = "The resource has changed; its etag is {etag} now."


class WrongState(AppError):
    code = "FAILED_PRECONDITION"
    template = "The {resource} is {state}; it cannot become {wanted}."


class RateLimited(AppError):
    code = "RESOURCE_EXHAUSTED"
    template = "Too many requests for {what} at the moment."
    retry_seconds = 1


class TooSlow(AppError):
    code = "RESOURCE_EXHAUSTED"
    template = "The client did not read the stream for too long."
    retry_seconds = 1


class Unavailable(AppError):
    code = "UNAVAILABLE"
    template = "The service {part} is unavailable at the moment."
    retry_seconds = 1


class Refused(AppError):
    """A refusal of another service, passed on unchanged."""

    template = "{message}"

    def __init__(self, *, code: str, reason: str, domain: str, message: str, metadata: dict[str, str]) -> None:
        super().__init__(message=message)
        self.code = code  # type: ignore[misc]  # this class alone learns its code at run time
        self.reason = reason
        self.domain = domain
        self.metadata = metadata
        self.retry_seconds = 1 if code in ("RESOURCE_EXHAUSTED", "UNAVAILABLE") else None  # type: ignore[misc]

    def copy(self) -> "Refused":
        """Returns the same refusal for another caller. Raised again, an error would keep its previous traceback."""
        return Refused(
            code=self.code, reason=self.reason, domain=self.domain or "", message=str(self), metadata=self.metadata
        )


def check_etag(given: str, current: str) -> None:
    """Raises `StaleEtag` if `given` is not `current`. An empty one matches any version."""
    if given and given != current:
        raise StaleEtag(etag=current)


# PostgreSQL's class of errors about one row that is too large for it: the database is there, and a retry fails too.
_LIMIT_OF_THE_DATA = "54"


def as_app_error(error: BaseException) -> AppError | None:
    """Returns `error` as a refusal; None if it is a bug."""
    if isinstance(error, AppError):
        return error
    if str(getattr(getattr(error, "orig", None), "sqlstate", None)).startswith(_LIMIT_OF_THE_DATA):
        return None
    if isinstance(error, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError | sqlalchemy.exc.TimeoutError):
        # Unavailable, restarting, no connection free, or a lock or statement that timed out: a retry may succeed.
        return Unavailable(part="database")
    if isinstance(error, sqlalchemy.exc.DBAPIError) and error.connection_invalidated:
        return Unavailable(part="database")
    return None
