"""Settings of the catalog."""

from services.chassis.settings import ServiceSettings


class Settings(ServiceSettings):
    """The catalog has no settings of its own."""
