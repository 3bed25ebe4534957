"""Requests and answers of all protocols: bodies, errors, answers that get lost."""
