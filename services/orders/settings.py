"""What orders is told by its environment."""

from services.chassis.settings import ServiceSettings


class Settings(ServiceSettings):
    """See `services/orders/README.md` for the variables."""

    catalog_target: str = "catalog:50051"
    inventory_target: str = "inventory:50051"
    payments_target: str = "payments:50051"
