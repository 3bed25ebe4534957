"""Holds: reserve, settle, return; and random walks over all of them against a model."""
