"""The error answers of the sandbox's own API. Each protocol has errors of its own, which extend this one."""

from __future__ import annotations


class Refusal(Exception):
    """An error answer with an HTTP status. `saved`: what its request changed until then stays changed."""

    saved = False

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def invalid(message: str) -> Refusal:
    return Refusal(400, message)
