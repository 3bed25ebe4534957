"""The settings of inventory."""

from pydantic import SecretStr

from services.chassis.settings import ServiceSettings


class Settings(ServiceSettings):
    """See `services/inventory/README.md` for the variables."""

    valkey_url: SecretStr
    """The address of the gate's Valkey: redis://… or rediss://…"""
    valkey_cluster: bool = False
    """Whether `valkey_url` names a node of a Valkey Cluster, which lists the others."""
    gate_enabled: bool = True
    """If false, all holds pass to PostgreSQL."""
