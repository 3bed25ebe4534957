"""The sandbox's data: tables in memory, and the append-only file that they are loaded from."""
