"""The metrics that all adapters share."""

from prometheus_client import Counter, Histogram

SECONDS = Histogram("stampede_provider_seconds", "Time of one call to the provider, without waiting.", ["operation"])
UNKNOWN = Counter("stampede_provider_unknown_total", "Calls whose outcome is not known.", ["operation", "cause"])
