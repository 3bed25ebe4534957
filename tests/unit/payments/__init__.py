"""Payments' rules."""
