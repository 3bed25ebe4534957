"""Answering calls: the two servers, the guard before every handler, and what handlers share."""
