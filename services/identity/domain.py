"""The rules of accounts, sessions and keys. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol, TypeVar

from services.chassis.errors import AppError, Unauthenticated

FIRST_ADMIN = "admin@stampede.local"
PASSWORD_BYTES_MIN = 8
PASSWORD_BYTES_MAX = 72
"""bcrypt reads no more."""
REFRESH_TOKEN_BYTES = 32


class EmailTaken(AppError):
    code = "ALREADY_EXISTS"
    template = "The e-mail address is already in use."  # not repeated: addresses stay out of logs


class WrongCredentials(Unauthenticated):
    template = "The e-mail address or the password is wrong."


class RefreshTokenRefused(Unauthenticated):
    """Unknown, expired, used before, or of a session that has ended; the caller is not told which."""

    template = "The refresh token is not good; sign in again."


# For a client there is one reason not to be let in; the text alone differs.
WrongCredentials.reason = RefreshTokenRefused.reason = Unauthenticated.reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetimes:
    """How long things are good for."""

    access_seconds: int = 900
    refresh_seconds: int = 30 * 24 * 3600
    session_seconds: int = 90 * 24 * 3600
    key_lead_seconds: int = 3600
    key_rotation_seconds: int = 30 * 24 * 3600


def address(text: str) -> str:
    """An e-mail address as it is stored and compared."""
    return text.lower()


def refresh_expiry(now: datetime, session_expires: datetime, lifetimes: Lifetimes) -> datetime:
    """A refresh token does not outlive its session."""
    return min(now + timedelta(seconds=lifetimes.refresh_seconds), session_expires)


class Scheduled(Protocol):
    """A key and the time from which it signs."""

    @property
    def sign_from(self) -> datetime: ...


K = TypeVar("K", bound=Scheduled)


def signing_key(keys: Sequence[K], now: datetime) -> K:
    """The key that signs at `now`: the newest whose time has come."""
    ready = [key for key in keys if key.sign_from <= now]
    assert ready, "identity has no key that may sign; the first one is made at start"
    return max(ready, key=lambda key: key.sign_from)


def next_key_signs_from(newest: datetime | None, now: datetime, lifetimes: Lifetimes) -> datetime | None:
    """From when a key to be made now would sign; None where it is too early to make one.

    The very first signs at once, since nobody can hold an older key set. Every other is published a while before, so
    that whoever caches the key set has it when the first token comes.
    """
    if newest is None:
        return now
    lead = timedelta(seconds=lifetimes.key_lead_seconds)
    due = newest + timedelta(seconds=lifetimes.key_rotation_seconds)
    return max(due, now + lead) if now >= due - lead else None


def retire_time(successor_signs_from: datetime, lifetimes: Lifetimes) -> datetime:
    """When the last token of a key has expired, with an hour or more to spare for slow replicas and clocks."""
    spare = max(lifetimes.key_lead_seconds, 3600)
    return successor_signs_from + timedelta(seconds=lifetimes.access_seconds + spare)
