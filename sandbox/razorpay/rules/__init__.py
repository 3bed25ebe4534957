"""The rules of requests, customers and banks, without HTTP, clock or disk."""
