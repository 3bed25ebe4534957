"""The strength of secrets: what a service accepts in production. Random secrets of 16 characters pass."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from urllib.parse import parse_qs, unquote, urlsplit

_LENGTH_MIN = 16
_DIFFERENT_MIN = 6
"""Of 16 random hexadecimal digits, fewer than 6 differ once in 100,000 times."""
_PLACEHOLDERS = (
    "changeme", "changethis", "replaceme", "example", "default", "password", "passwort", "passphrase", "secret",
    "placeholder", "qwert", "asdfg", "1q2w3e", "letmein", "iloveyou", "deadbeef", "insecure", "sandbox", "admin",
    "stampede",
)  # fmt: skip
_LOOKALIKES = str.maketrans("013457@$", "oieastas")
_KIND = re.compile(r"^(?:(?:sk|rk|pk)_(?:test|live)|whsec)_")
"""The prefixes by which providers mark the kind of a key."""


def passwords_in(url: str) -> Iterator[str]:
    """Yields the passwords of a URL, decoded; an empty one if it has none."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError("is not a URL") from None  # the error of the library quotes it
    yield unquote(parts.password or "")
    yield from parse_qs(parts.query).get("password", ())


def weakness_of(secret: str) -> str | None:
    """Returns why the secret is weak, without the secret; None if it is strong."""
    core = _core(secret)
    if not core:
        return "holds no password" if not secret else "is empty"
    if len(core) < _LENGTH_MIN:
        return f"is shorter than {_LENGTH_MIN} characters"
    letters = _letters(core.translate(_LOOKALIKES))
    if any(word in letters or word in _letters(core) for word in _PLACEHOLDERS):
        return "is a placeholder"
    if len(set(core)) < _DIFFERENT_MIN or any(core.startswith(core[n:]) for n in range(1, len(core) // 2 + 1)):
        return "repeats a few characters"
    steps = Counter(ord(after) - ord(before) for before, after in pairwise(core))
    if 2 * max(steps.values()) >= len(core):
        return "is a sequence"
    return None


def shared(secrets: Mapping[str, Sequence[str]]) -> tuple[str, str] | None:
    """Returns the names of two settings that hold the same secret, or a name twice if one setting holds it twice."""
    seen: dict[str, str] = {}
    for name, values in secrets.items():
        for value in values:
            form = _letters(_core(value))
            if form in seen:
                return seen[form], name
            seen[form] = name
    return None


def _core(secret: str) -> str:
    return _KIND.sub("", secret.strip()).strip()


def _letters(text: str) -> str:
    """The form in which secrets are compared: other cases and other separators make no other secret."""
    return re.sub(r"[\W_]", "", text.casefold())
