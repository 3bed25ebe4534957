"""What inventory is told by its environment."""

from pydantic import SecretStr

from services.chassis.settings import ServiceSettings


class Settings(ServiceSettings):
    """See `services/inventory/README.md` for the variables."""

    valkey_url: SecretStr
