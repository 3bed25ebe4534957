"""The settings of inventory."""

from pydantic import Field, SecretStr

from services.chassis.settings import ServiceSettings


class Settings(ServiceSettings):
    """See `services/inventory/README.md` for the variables."""

    catalog_target: str = "catalog:50051"
    valkey_url: SecretStr
    """The address of the gate's Valkey: redis://… or rediss://…"""
    valkey_cluster: bool = False
    """Whether `valkey_url` names a node of a Valkey Cluster, which lists the others."""
    gate_enabled: bool = True
    """If false, all holds pass to PostgreSQL."""
    watchers_per_address: int = Field(200, ge=1)
    """The most streams of sales that one network address can have; one more ends the oldest."""
    open_orders_max: int = Field(20, ge=0, le=1000)
    """The most orders that one customer may have unpaid at once; 0 for any number."""
    held_units_max: int = Field(200, ge=0)
    """The most units in all unpaid orders of one customer; 0 for any number."""
