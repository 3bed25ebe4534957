"""Settings: read from the environment once, at start-up, into an immutable object."""

from typing import Any, Literal, TypeVar

from pydantic import SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

_SECRET_LENGTH_MIN = 16
_PLACEHOLDERS = ("change-me", "changeme", "example", "default", "password", "secret")

S = TypeVar("S", bound="ServiceSettings")


class Secrets(SecretStr):
    """One secret or several, separated by commas: the first one signs or seals, all of them are accepted.

    The chassis's README says how to replace a secret without an interruption.
    """

    def values(self) -> list[str]:
        return [secret for part in self.get_secret_value().split(",") if (secret := part.strip())]


class ServiceSettings(BaseSettings):
    """The settings of every service. A variable has the field's name in upper case, for example DATABASE_URL."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    # First, because the checks of the secrets below depend on it.
    environment: Literal["local", "production"] = "production"

    listen: str = "0.0.0.0:50051"  # a container answers on all of its addresses
    """The address of the gRPC server, for other services."""
    http_listen: str = "0.0.0.0:8000"
    """The address of the HTTP server, for the gateway."""
    metrics_listen: str = "0.0.0.0:9090"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    database_url: SecretStr
    """Of the runtime role, which can read and write rows and nothing else."""
    migration_database_url: SecretStr | None = None
    """Of the role that owns the tables; only `migrate` needs it."""
    database_pool_size: int = 10
    nats_url: SecretStr
    mesh_secret: Secrets
    """Signs the tokens that identify services to each other; the same in all services."""
    page_secret: Secrets
    """Signs page tokens; the same in all replicas of a service."""
    identity_target: str = "identity:50051"

    @field_validator("*", mode="after")
    @classmethod
    def _secrets_are_strong(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, SecretStr):
            secrets = value.values() if isinstance(value, Secrets) else [value.get_secret_value()]
            if not secrets:
                raise ValueError("holds no secret")
            weaknesses = [weakness for secret in secrets if (weakness := _weakness(secret))]
            if weaknesses and info.data.get("environment") == "production":
                raise ValueError(f"{weaknesses[0]}; production needs a secret of its own")
        return value


def load(kind: type[S]) -> S:
    """Reads `kind` from the environment. Exits with all problems in one message, so that one attempt shows them all."""
    try:
        return kind()
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, p['loc'])).upper()}: {p['msg']}" for p in error.errors()]
        raise SystemExit("settings are not usable:\n  " + "\n  ".join(problems)) from None


def _weakness(secret: str) -> str | None:
    if len(secret) < _SECRET_LENGTH_MIN:
        return f"is shorter than {_SECRET_LENGTH_MIN} characters"
    # Of a URL only the password is secret; its other parts may contain "example".
    password = secret.split("://", 1)[-1].rpartition("@")[0].partition(":")[2] if "://" in secret else secret
    if not password or any(word in password.lower() for word in _PLACEHOLDERS):
        return "is a placeholder"
    return None
