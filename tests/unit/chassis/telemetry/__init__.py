"""Logs and heartbeats, without a server."""
