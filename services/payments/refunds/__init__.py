"""Refunds: `create` makes those that staff decided."""
