"""The service's own database, and what is built on its transactions."""
