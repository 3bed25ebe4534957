"""Stripe's protocol as such: request forms, JSON objects, error answers and idempotency keys."""
