"""Readings of a running mesh: CPU time and memory by process, statements, transactions, calls, and a sale's records."""
