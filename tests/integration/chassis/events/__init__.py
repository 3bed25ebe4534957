"""Outbox, consumers, dead letters and broadcast on a real JetStream."""
