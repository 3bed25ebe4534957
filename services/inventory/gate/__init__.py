"""The admission gate in Valkey. README.md explains it on one page."""
