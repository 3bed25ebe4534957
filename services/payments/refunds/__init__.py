"""Refunds: `create` makes those that staff decided, `rules` are pure, `listed` adopts the provider's records."""
