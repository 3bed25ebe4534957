"""Rules of accounts, sessions and signing keys. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from services.chassis.errors import AppError, Unauthenticated

FIRST_ADMIN = "admin@stampede.local"
PASSWORD_BYTES_MIN = 8
PASSWORD_BYTES_MAX = 72
"""bcrypt ignores all bytes after these."""
REFRESH_TOKEN_BYTES = 32


class EmailTaken(AppError):
    code = "ALREADY_EXISTS"
    template = "The e-mail address is already in use."  # without the address, which must not reach logs


class WrongCredentials(Unauthenticated):
    template = "The e-mail address or the password is wrong."


class RefreshTokenRefused(Unauthenticated):
    """The token is unknown, expired or used, or its session has ended. The answer does not show which."""

    template = "The refresh token is not valid; sign in again."


# Clients handle all of them alike, so they share one reason; only the message differs.
WrongCredentials.reason = RefreshTokenRefused.reason = Unauthenticated.reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetimes:
    """Lifetimes of tokens, sessions and signing keys."""

    access_seconds: int = 900
    refresh_seconds: int = 30 * 24 * 3600
    session_seconds: int = 90 * 24 * 3600
    key_lead_seconds: int = 3600
    key_rotation_seconds: int = 30 * 24 * 3600


def normalize_email(text: str) -> str:
    """Return the form in which an e-mail address is stored and compared."""
    return text.strip().lower()  # phones append a space after a completed word


def refresh_expire_time(now: datetime, session_expire_time: datetime, lifetimes: Lifetimes) -> datetime:
    """Return when a refresh token expires: at the latest with its session."""
    return min(now + timedelta(seconds=lifetimes.refresh_seconds), session_expire_time)


def current_sign_from(times: Iterable[datetime], now: datetime) -> datetime:
    """Return the newest of the keys' `sign_from` times that is reached: its key signs at `now`."""
    reached = [time for time in times if time <= now]
    assert reached, "no key may sign yet; identity creates the first one at start"
    return max(reached)


def next_sign_from(newest: datetime | None, now: datetime, lifetimes: Lifetimes) -> datetime | None:
    """Return the `sign_from` of a key created now; None if it is too early to create one.

    The very first key signs at once, because no client can hold an older key set. Every later key is published
    before it signs, so clients that cache the key set have it when the first token arrives.
    """
    if newest is None:
        return now
    lead = timedelta(seconds=lifetimes.key_lead_seconds)
    due = newest + timedelta(seconds=lifetimes.key_rotation_seconds)
    return max(due, now + lead) if now >= due - lead else None


def retire_time(successor_sign_from: datetime, lifetimes: Lifetimes) -> datetime:
    """Return when a key retires: its last token has expired, plus at least an hour for slow replicas and clocks."""
    spare = max(lifetimes.key_lead_seconds, 3600)
    return successor_sign_from + timedelta(seconds=lifetimes.access_seconds + spare)
