"""Helpers of all tests: servers, ports, tokens, clients, waits, crashes."""
