"""Payments on a real database, with the sandbox as provider."""
