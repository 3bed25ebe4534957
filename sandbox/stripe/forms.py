"""Parses Stripe's request encoding (`a[b]=c`, `expand[]=x`), and checks parameters."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import Any
from urllib.parse import unquote_plus

from sandbox.stripe.errors import invalid, missing_param

PAIRS_MAX = 250
DEPTH_MAX = 7
NAMES_KEPT = 4_096
TEXT_MAX = 1_000
METADATA_KEYS_MAX = 50
METADATA_KEY_LENGTH_MAX = 40
METADATA_VALUE_LENGTH_MAX = 500
EXPANSIONS_MAX = 20

Tree = dict[str, Any]


def parse(encoded: str) -> Tree:
    """Parses parameters into nested dicts of strings; lists become dicts with the keys "0", "1", …"""
    pairs = encoded.split("&") if encoded else []
    tree: Tree = {}
    try:
        if len(pairs) > PAIRS_MAX:
            raise ValueError
        for pair in pairs:
            if pair:
                key, _, value = pair.partition("=")
                _put(tree, steps_of(key), _decoded(value) if "%" in value or "+" in value else value)
    except ValueError:
        raise invalid(f"The request's parameters could not be read, or are more than {PAIRS_MAX}.") from None
    return tree


def _decoded(text: str) -> str:
    return unquote_plus(text, errors="strict")


# The names are the same in each call of one client.
@lru_cache(maxsize=NAMES_KEPT)
def steps_of(encoded: str) -> tuple[str, ...]:
    """The steps of a parameter's encoded name: `a[b][]` has the steps a, b and an empty one."""
    key = _decoded(encoded)
    head, *rest = key.split("[")
    steps = (head, *(part.removesuffix("]") for part in rest))
    if len(steps) > DEPTH_MAX or (rest and not head) or not all(part.endswith("]") for part in rest):
        raise invalid(f"Invalid parameter name: {key[:100]}", param=key[:100])
    return steps


def _put(tree: Tree, steps: tuple[str, ...], value: str) -> None:
    node, head = tree, steps[0]
    if len(steps) == 1:
        if isinstance(node.get(head), dict):
            raise invalid(f"Invalid parameter: {head} is given both as a value and as a hash.", param=head)
        node[head] = value
        return
    for step in steps[:-1]:
        node = node.setdefault(step, {})
        if not isinstance(node, dict):
            raise invalid(f"Invalid parameter: {head} is given both as a value and as a hash.", param=head)
    last = steps[-1] or str(len(node))
    if isinstance(node.get(last), dict):
        raise invalid(f"Invalid parameter: {head} is given both as a value and as a hash.", param=head)
    node[last] = value


class Params:
    """The parameters of one request. Every getter raises Stripe's 400 for an invalid value."""

    __slots__ = ("_path", "_tree")

    def __init__(self, tree: Tree, path: str = "") -> None:
        self._tree = tree
        self._path = path

    def __contains__(self, name: str) -> bool:
        return name in self._tree

    def _name(self, name: str) -> str:
        return f"{self._path}[{name}]" if self._path else name

    def only(self, allowed: Collection[str]) -> None:
        """Refuses unknown parameters, as Stripe does."""
        unknown = [self._name(name) for name in self._tree if name not in allowed]
        if unknown:
            plural = "s" if len(unknown) > 1 else ""
            raise invalid(
                f"Received unknown parameter{plural}: {', '.join(unknown)}",
                param=unknown[0],
                code="parameter_unknown",
            )

    def text(self, name: str, *, longest: int = TEXT_MAX) -> str | None:
        value = self._tree.get(name)
        if value is None:
            return None
        full = self._name(name)
        if not isinstance(value, str):
            raise invalid(f"Invalid string: {full}", param=full)
        if not value:
            raise invalid(
                f"You passed an empty string for '{full}'. We assume empty values are an attempt to unset a "
                f"parameter; however '{full}' cannot be unset. You should remove '{full}' from your request "
                "or supply a non-empty value.",
                param=full,
                code="parameter_invalid_empty",
            )
        if len(value) > longest:
            raise invalid(
                f"Invalid string: {value[:20]}...; must be at most {longest} characters",
                param=full,
                code="parameter_invalid_string_blank" if value.isspace() else None,
            )
        return value

    def required(self, name: str) -> str:
        value = self.text(name)
        if value is None:
            raise missing_param(self._name(name))
        return value

    def integer(self, name: str, *, least: int, most: int) -> int | None:
        value = self.text(name)
        if value is None:
            return None
        full = self._name(name)
        digits = value.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
            raise invalid(f"Invalid integer: {value[:40]}", param=full, code="parameter_invalid_integer")
        number = int(value)
        if number < least:
            raise invalid(
                f"This value must be greater than or equal to {least}.",
                param=full,
                code="parameter_invalid_integer",
            )
        if number > most:
            raise invalid(
                f"This value must be less than or equal to {most}.",
                param=full,
                code="parameter_invalid_integer",
            )
        return number

    def boolean(self, name: str) -> bool | None:
        value = self.text(name)
        if value is None:
            return None
        if value not in ("true", "false"):
            raise invalid(f"Invalid boolean: {value[:40]}", param=self._name(name))
        return value == "true"

    def choice(self, name: str, options: Collection[str]) -> str | None:
        value = self.text(name)
        if value is not None and value not in options:
            raise invalid(
                f"Invalid {self._name(name)}: must be one of {', '.join(sorted(options))}",
                param=self._name(name),
            )
        return value

    def nested(self, name: str) -> Params | None:
        value = self._tree.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise invalid("Invalid object", param=self._name(name))
        return Params(value, self._name(name))

    def items(self, name: str, *, most: int) -> list[Params]:
        """A list of hashes; empty if the parameter is missing."""
        value = self._tree.get(name)
        if value is None:
            return []
        full = self._name(name)
        if not isinstance(value, dict) or not all(isinstance(item, dict) for item in value.values()):
            raise invalid("Invalid array", param=full)
        if len(value) > most:
            raise invalid(f"Array {full} exceeded maximum of {most} elements.", param=full)
        return [Params(item, f"{full}[{index}]") for index, item in value.items()]

    def strings(self, name: str) -> list[str]:
        """A list of short strings; empty if the parameter is missing."""
        value = self._tree.get(name)
        if value is None:
            return []
        items = list(value.values()) if isinstance(value, dict) else None
        if items is None or len(items) > EXPANSIONS_MAX or not all(isinstance(i, str) for i in items):
            raise invalid("Invalid array", param=self._name(name))
        return items

    def metadata(self) -> dict[str, str]:
        raw = self._tree.get("metadata")
        if raw is None or raw == "":
            return {}
        if not isinstance(raw, dict) or not all(isinstance(value, str) for value in raw.values()):
            raise invalid("Invalid metadata: must be a hash of strings", param="metadata")
        if len(raw) > METADATA_KEYS_MAX:
            raise invalid(f"You can specify up to {METADATA_KEYS_MAX} metadata keys", param="metadata")
        for key, value in raw.items():
            if len(key) > METADATA_KEY_LENGTH_MAX:
                raise invalid(f"Metadata keys can have up to {METADATA_KEY_LENGTH_MAX} characters", param="metadata")
            if len(value) > METADATA_VALUE_LENGTH_MAX:
                raise invalid(
                    f"Metadata values can have up to {METADATA_VALUE_LENGTH_MAX} characters, "
                    f"but you passed in a value that is {len(value)} characters.",
                    param=f"metadata[{key}]",
                )
        return {key: value for key, value in raw.items() if value}
