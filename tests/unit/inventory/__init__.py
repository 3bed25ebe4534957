"""Inventory's rules."""
