"""A payment provider for machines without one: speaks Stripe's HTTP protocol on loopback."""
