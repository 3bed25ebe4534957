"""The parameters of Razorpay's requests: JSON bodies, and queries of lists."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sandbox.razorpay.errors import invalid
from sandbox.rows import Json

NOTES_MAX, NOTE_LENGTH_MAX, RECEIPT_LENGTH_MAX = 15, 256, 40
COUNT_MAX = 100
AMOUNT_MAX = 10**12


class Params:
    """A JSON object of which each field is read with its type; `end` refuses the rest."""

    def __init__(self, body: Json) -> None:
        self._left = dict(body)

    def integer(self, name: str, *, least: int = 0, most: int = AMOUNT_MAX, default: int | None = None) -> int:
        value = self._left.pop(name, default)
        if isinstance(value, str) and value.isascii() and value.isdigit():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise invalid(f"The {name} must be an integer.", name)
        if not least <= value <= most:
            raise invalid(f"The {name} must be between {least} and {most}.", name)
        return value

    def text(self, name: str, *, most: int = 255, default: str | None = None) -> str | None:
        value = self._left.pop(name, default)
        if value is not None and (not isinstance(value, str) or len(value) > most):
            raise invalid(f"The {name} may not be greater than {most} characters.", name)
        return value

    def notes(self) -> dict[str, str]:
        value = self._left.pop("notes", None) or {}
        if not isinstance(value, dict) or len(value) > NOTES_MAX:
            raise invalid(f"Number of fields in notes should be less than or equal to {NOTES_MAX}", "notes")
        notes = {str(key): str(text) for key, text in value.items()}
        if any(len(text) > NOTE_LENGTH_MAX for text in notes.values()):
            raise invalid(f"Notes value should be less than or equal to {NOTE_LENGTH_MAX} characters", "notes")
        return notes

    def part(self, name: str) -> Params:
        value = self._left.pop(name, None) or {}
        if not isinstance(value, dict):
            raise invalid(f"The {name} must be an object.", name)
        return Params(value)

    def end(self) -> None:
        """Refuses fields that nothing has read."""
        if self._left:
            raise invalid(f"{', '.join(sorted(self._left))} is/are not required and should not be sent")


def parse(raw: bytes) -> Json:
    """Reads a body. Raises `ApiError` unless it is a JSON object."""
    try:
        value: Any = json.loads(raw or b"{}")
    except (ValueError, RecursionError):
        raise invalid("The request body is not JSON.") from None
    if not isinstance(value, dict):
        raise invalid("The request body is not an object.")
    return value


def of_query(query: Mapping[str, str]) -> Params:
    return Params(dict(query))
