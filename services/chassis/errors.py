"""How services say no: one exception per reason, free of gRPC.

    AppError
      ├─ InvalidFields, RequestIdReused        INVALID_ARGUMENT
      ├─ Unauthenticated                       UNAUTHENTICATED
      ├─ PermissionDenied                      PERMISSION_DENIED
      ├─ StaleEtag                             ABORTED
      ├─ WrongState                            FAILED_PRECONDITION
      ├─ RateLimited, TooSlow                  RESOURCE_EXHAUSTED
      ├─ Unavailable                           UNAVAILABLE
      ├─ Refused                               whatever another service said
      └─ …                                     each service's own, in its domain.py

An error is declared once, as a class. Its message is a template over its metadata, so nothing can appear in
the text that a program cannot also read (AIP-193).
"""

import re
from typing import ClassVar

_REASON = re.compile(r"[A-Z][A-Z0-9_]{1,61}[A-Z0-9]")


class AppError(Exception):
    """A refusal the caller can understand and act on."""

    code: ClassVar[str]
    """Name of the canonical status code, for example `FAILED_PRECONDITION`."""

    reason: str
    """Machine-readable cause, derived from the class name."""

    template: ClassVar[str]
    """The message, with `{placeholders}` for metadata."""

    retry_seconds: ClassVar[int | None] = None
    """When to come again, for codes that invite a repeat."""

    domain: str | None = None
    """Who refuses, where it is not the answering service itself."""

    def __init_subclass__(cls) -> None:
        cls.reason = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).upper()
        assert _REASON.fullmatch(cls.reason), cls.reason

    def __init__(self, **metadata: object) -> None:
        self.metadata = {key: str(value) for key, value in metadata.items()}
        super().__init__(self.template.format_map(self.metadata))


class InvalidFields(AppError):
    """The request breaks a rule of the contract; `violations` maps each field to what is wrong with it.

    The client is told of the first 50.
    """

    code = "INVALID_ARGUMENT"
    template = "{count} field(s) of the request are not valid."

    def __init__(self, violations: dict[str, str]) -> None:
        self.violations = violations
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
    template = "The stream was left unread for too long."
    retry_seconds = 1


class Unavailable(AppError):
    code = "UNAVAILABLE"
    template = "The service {part} is away at the moment."
    retry_seconds = 1


class Refused(AppError):
    """Another service's refusal, passed on as it came."""

    template = "{message}"

    def __init__(self, *, code: str, reason: str, domain: str, message: str, metadata: dict[str, str]) -> None:
        super().__init__(message=message)
        self.code = code  # type: ignore[misc]  # for this class alone, the code is known only at run time
        self.reason = reason
        self.domain = domain
        self.metadata = metadata

    def copy(self) -> "Refused":
        """The same words for somebody else. Raised once more, an error would drag along where it has been before."""
        return Refused(
            code=self.code, reason=self.reason, domain=self.domain or "", message=str(self), metadata=self.metadata
        )


def check_etag(given: str, current: str) -> None:
    """Raises `StaleEtag` where the caller acts on another version than the current one. Empty means any."""
    if given and given != current:
        raise StaleEtag(etag=current)
