"""The settings of orders, from its environment."""

from pydantic import Field

from services.chassis.settings import ServiceSettings


class Settings(ServiceSettings):
    """See `services/orders/README.md` for the variables."""

    catalog_target: str = "catalog:50051"
    inventory_target: str = "inventory:50051"
    payments_target: str = "payments:50051"
    sagas_at_once: int = Field(512, ge=0)
    """How many sagas this process carries at once; 0 leaves them to other replicas."""
    backlog_max: int = Field(10_000, ge=1, le=20_000)
    """With so many orders being placed and sagas running or due, new orders are refused with `RATE_LIMITED`."""
    unpaid_stock_hold_seconds: int = Field(300, ge=10, le=600)
    """For how long ordinary stock is held for an order without a payment method."""
    watchers_per_user: int = Field(50, ge=1)
    """The most orders that one user can watch or wait for at once; one more ends the oldest."""
    log_keep_months: int = Field(24, ge=1)
    """How long entries of the order log are kept."""
