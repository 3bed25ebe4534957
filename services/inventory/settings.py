"""What inventory is told by its environment."""

from pydantic import SecretStr

from services.chassis.settings import ServiceSettings


class Settings(ServiceSettings):
    """See `services/inventory/README.md` for the variables."""

    valkey_url: SecretStr
    """Of the gate: redis://… or rediss://…"""
    valkey_cluster: bool = False
    """Whether `valkey_url` names a node of a Valkey Cluster, which tells of the others."""
    gate_enabled: bool = True
    """Without the gate, everybody passes to PostgreSQL."""
