"""Statements, leases, idempotency, partitions and clean-ups on a real PostgreSQL."""
