"""Inventory on a real database and a real Valkey."""
