"""Settings: read once, at start-up, from the environment, into a frozen value."""

from typing import Any, Literal, TypeVar

from pydantic import SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

_SECRET_LENGTH_MIN = 16
_PLACEHOLDERS = ("change-me", "changeme", "example", "default", "password", "secret")

S = TypeVar("S", bound="ServiceSettings")


class ServiceSettings(BaseSettings):
    """What every service is told. A variable has the field's name in upper case, for example DATABASE_URL."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    # First, because the checks of the secrets below depend on it.
    environment: Literal["local", "production"] = "production"

    listen: str = "0.0.0.0:50051"  # a container answers on all of its addresses
    http_listen: str = "0.0.0.0:8000"
    """Where the gateway calls; `listen` is for the other services."""
    metrics_listen: str = "0.0.0.0:9090"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    database_url: SecretStr
    """The runtime role's; it can read and write rows, and nothing else."""
    migration_database_url: SecretStr | None = None
    """The owner's; only `migrate` needs it."""
    database_pool_size: int = 10
    nats_url: SecretStr
    mesh_secret: SecretStr
    """Signs the tokens by which services know each other; the same in all of them."""
    page_secret: SecretStr
    """Seals page tokens; the same in all replicas of a service."""
    identity_target: str = "identity:50051"

    @field_validator("*", mode="after")
    @classmethod
    def _no_default_secret_in_production(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, SecretStr) and info.data.get("environment") == "production":
            weak = _weakness(value.get_secret_value())
            if weak:
                raise ValueError(f"{weak}; production needs a secret of its own")
        return value


def load(kind: type[S]) -> S:
    """Reads `kind` from the environment. Exits naming every problem at once, so that a deployment fails one time."""
    try:
        return kind()
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, p['loc'])).upper()}: {p['msg']}" for p in error.errors()]
        raise SystemExit("settings are not usable:\n  " + "\n  ".join(problems)) from None


def _weakness(secret: str) -> str | None:
    if len(secret) < _SECRET_LENGTH_MIN:
        return f"is shorter than {_SECRET_LENGTH_MIN} characters"
    # In an address only the password is the secret; its other parts may well say "example".
    password = secret.split("://", 1)[-1].rpartition("@")[0].partition(":")[2] if "://" in secret else secret
    if not password or any(word in password.lower() for word in _PLACEHOLDERS):
        return "is a placeholder"
    return None
