"""Finds card numbers in the texts of a request: they are refused, so that no log and no table ever contains one.

Cards reach the provider from the customer's browser; here only the provider's tokens of them are used.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from buf.validate import validate_pb2
from stampede.access.v1 import access_pb2

_LEAST, _MOST = 13, 19
_PHONE_MOST = 15
# The numbers of issuers, by length. Without it one of ten long numbers (articles, phones, parcels) would be refused.
_ISSUED = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})"  # Visa
    r"|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}"  # Mastercard
    r"|3[47]\d{13}"  # American Express
    r"|3(?:0[0-5]|[689]\d)\d{11}|3(?:0[0-5]|[689]\d)\d{13,16}"  # Diners Club
    r"|35\d{14,17}|(?:2131|1800)\d{11}"  # JCB
    r"|6\d{15,18}|8[12]\d{14,17}|5[06-9]\d{14,17}"  # Discover, RuPay, UnionPay, Maestro
)
# Groups of digits as cards show them, with a little between them.
_GROUPS = re.compile(r"(?<!\d)\d{3,}(?:[\W_]{1,2}\d{3,})*")
_DIGITS = re.compile(r"\d+")
# For the fast test: digits become 1, and so do parts of other scripts' characters, which may be digits too. Bytes that
# may stand between digits are left out, and the first bytes of these characters; not those of protobuf between fields.
_AS_ONES = bytes(0x31 if 0x30 <= byte <= 0x39 or 0x80 <= byte < 0xC0 else 0x78 for byte in range(256))
_BETWEEN = bytes(byte for byte in range(0x20, 0x100) if byte >= 0xC0 or (byte < 0x7F and not chr(byte).isalnum()))
_RUN = b"1" * _LEAST
_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)
_RAW = "google.api.HttpBody"


class _Field(NamedTuple):
    """A field with text, or with messages that have some."""

    name: str
    json_name: str
    is_message: bool


def may_contain(request: Message, data: bytes) -> bool:
    """Return whether `data`, the serialized `request`, has digits enough for a card number. Costs a microsecond."""
    return _RUN in data.translate(_AS_ONES, _BETWEEN) and bool(_fields(request.DESCRIPTOR))


def fields_with(request: Message, prefix: str = "") -> Iterator[str]:
    """Yield the fields of a request whose text contains a card number, as clients write them."""
    for field in _fields(request.DESCRIPTOR):
        value: Any = getattr(request, field.name)
        if isinstance(value, str):
            parts: Any = {"": value}
        elif isinstance(value, Message):
            parts = {"": value} if request.HasField(field.name) else {}
        elif isinstance(value, Mapping):
            secret = next((key for key in value if has_card_number(str(key))), None)
            # A key that contains one is not repeated in the name.
            parts = {f"[{key}]": value[key] for key in value} if secret is None else {"": secret}
        else:
            parts = {f"[{at}]": part for at, part in enumerate(value)}
        for where, part in parts.items():
            path = f"{prefix}{field.json_name}{where}"
            if isinstance(part, Message):
                yield from fields_with(part, f"{path}.")
            elif has_card_number(part):
                yield path


def has_card_number(text: str) -> bool:
    """Return whether `text` contains the number of a card: 13 to 19 digits that an issuer may use, with a valid sum."""
    for found in _GROUPS.finditer(text):
        groups = _DIGITS.findall(found.group() if text.isascii() else _ascii_digits(found.group()))
        is_phone = text[: found.start()].endswith("+")
        least = _PHONE_MOST + 1 if is_phone else _LEAST
        if any(_ISSUED.fullmatch(number) and _has_valid_sum(number) for number in _numbers(groups, least)):
            return True
    return False


def _numbers(groups: list[str], least: int) -> Iterator[str]:
    """Yield the numbers that neighbouring groups make, of at least `least` digits."""
    for first in range(len(groups)):
        number = ""
        for group in groups[first:]:
            number += group
            if len(number) > _MOST:
                break
            if len(number) >= least:
                yield number


def _has_valid_sum(number: str) -> bool:
    """Return whether the check digit is right (Luhn's algorithm)."""
    digits = [int(digit) for digit in reversed(number)]
    return (sum(digits[::2]) + sum(_DOUBLED[digit] for digit in digits[1::2])) % 10 == 0


def _ascii_digits(text: str) -> str:
    return "".join(str(unicodedata.decimal(one, one)) for one in text)


@cache
def _fields(message: Descriptor) -> tuple[_Field, ...]:
    """Return the fields to look into: not the ids, and not those in which the contract allows long numbers."""
    if message.full_name == _RAW:  # verified by its handler, and reduced to what is used
        return ()
    found = []
    for field in message.fields:
        inner = field.message_type
        if inner is None:
            looked_at = field.type == FieldDescriptor.TYPE_STRING and not _is_excused(field)
        else:
            looked_at = bool(_fields(inner)) and not _is_excused(field)
        if looked_at:
            found.append(_Field(field.name, str(field.json_name), inner is not None))
    return tuple(found)


def _is_excused(field: FieldDescriptor) -> bool:
    options = field.GetOptions()
    rules = options.Extensions[validate_pb2.field]
    text = rules.repeated.items.string if field.is_repeated else rules.string
    return bool(text.uuid or options.Extensions[access_pb2.long_numbers])
