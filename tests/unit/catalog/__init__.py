"""Catalog's rules."""
