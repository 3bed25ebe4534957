"""Settings of identity."""

from typing import Any

from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator

from services.chassis.settings import Secrets, ServiceSettings
from services.identity.domain import PASSWORD_BYTES_MAX, PASSWORD_BYTES_MIN, Lifetimes

_ROUNDS_IN_PRODUCTION_MIN = 12


class Settings(ServiceSettings):
    key_secret: Secrets
    """Seals the signing keys in the database; the same in all replicas."""
    admin_password: SecretStr | None = None
    """Password of the first administrator, used only to create the account."""
    password_rounds: int = Field(default=12, ge=4, le=15)
    """Cost of bcrypt: each round doubles the work."""
    password_threads: int = Field(default=2, ge=1, le=32)
    password_patience_seconds: float = Field(default=2.0, gt=0, le=10)
    """How long a call waits for a thread; if the queue is longer, it is refused with `RATE_LIMITED` at once."""

    access_token_seconds: int = Field(default=900, ge=10, le=3600)
    refresh_token_days: int = Field(default=30, ge=1, le=30)
    session_days: int = Field(default=90, ge=1)
    """A session expires after this time, however often it was refreshed."""
    key_lead_seconds: int = Field(default=3600, ge=300)
    """Time between the publication of a key and its first signature; longer than any client caches the key set."""
    key_rotation_days: int = Field(default=30, ge=1)

    @field_validator("admin_password", mode="before")
    @classmethod
    def _empty_is_not_set(cls, value: Any) -> Any:
        return value or None

    @field_validator("admin_password")
    @classmethod
    def _fits_bcrypt(cls, value: SecretStr | None) -> SecretStr | None:
        if value and not PASSWORD_BYTES_MIN <= len(value.get_secret_value().encode()) <= PASSWORD_BYTES_MAX:
            raise ValueError(f"must have {PASSWORD_BYTES_MIN} to {PASSWORD_BYTES_MAX} bytes")
        return value

    @field_validator("password_rounds")
    @classmethod
    def _enough_in_production(cls, value: int, info: ValidationInfo) -> int:
        if info.data.get("environment") == "production" and value < _ROUNDS_IN_PRODUCTION_MIN:
            raise ValueError(f"must be at least {_ROUNDS_IN_PRODUCTION_MIN} in production")
        return value

    @model_validator(mode="after")
    def _rotation_is_longer_than_lead(self) -> "Settings":
        if self.key_lead_seconds >= self.key_rotation_days * 24 * 3600:
            raise ValueError("KEY_LEAD_SECONDS must be shorter than KEY_ROTATION_DAYS")
        return self

    def lifetimes(self) -> Lifetimes:
        return Lifetimes(
            access_seconds=self.access_token_seconds,
            refresh_seconds=self.refresh_token_days * 24 * 3600,
            session_seconds=self.session_days * 24 * 3600,
            key_lead_seconds=self.key_lead_seconds,
            key_rotation_seconds=self.key_rotation_days * 24 * 3600,
        )
