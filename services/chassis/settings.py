"""Settings: read from the environment once, at start-up, into an immutable object."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.chassis.strength import passwords_in, shared, weakness_of

S = TypeVar("S", bound="ServiceSettings")


class Secrets(SecretStr):
    """One secret or several, separated by commas: the first one signs or seals, all of them are accepted.

    The chassis's README says how to replace a secret without an interruption.
    """

    def values(self) -> list[str]:
        return [secret for part in self.get_secret_value().split(",") if (secret := part.strip())]


def _is_safe(url: str, info: ValidationInfo) -> str:
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be a URL: https://…")
    if parts.scheme == "http" and info.data.get("environment") == "production":
        raise ValueError("must begin with https:// in production")
    return url.strip()


ExternalUrl = Annotated[str, AfterValidator(_is_safe)]
"""The address of a service outside of Stampede; production calls it over TLS only."""


def parts_of(value: SecretStr) -> Iterator[str]:
    """Yields each secret that a setting holds: of a list all items, of a URL its passwords only."""
    text = value.get_secret_value()
    for item in value.values() if isinstance(value, Secrets) else [text.strip()] if text.strip() else []:
        yield from passwords_in(item) if "://" in item else [item]


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
            found = list(parts_of(value))
            if not found:
                raise ValueError("holds no secret")
            weaknesses = [weakness for secret in found if (weakness := weakness_of(secret))]
            if weaknesses and info.data.get("environment") == "production":
                raise ValueError(f"{weaknesses[0]}; production needs a secret of its own")
        return value

    @model_validator(mode="after")
    def _secrets_differ(self) -> Self:
        if self.environment == "production":
            values = {name.upper(): getattr(self, name) for name in type(self).model_fields}
            secrets = {name: list(parts_of(value)) for name, value in values.items() if isinstance(value, SecretStr)}
            if same := shared(secrets):
                raise ValueError(f"{' and '.join(same)} hold the same secret; each needs one of its own")
        return self


def load(kind: type[S]) -> S:
    """Reads `kind` from the environment. Exits with all problems in one message, so that one attempt shows them all."""
    try:
        return kind()
    except ValidationError as error:
        problems = [": ".join(filter(None, (".".join(map(str, p["loc"])).upper(), p["msg"]))) for p in error.errors()]
        raise SystemExit("settings are not usable:\n  " + "\n  ".join(problems)) from None
