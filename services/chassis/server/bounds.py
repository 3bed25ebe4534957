"""The contract's bounds of lists, checked before its other rules: a rule may cost the square of the number of items."""

from functools import cache
from typing import Any, NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from buf.validate import validate_pb2
from services.chassis.errors import InvalidFields


class _List(NamedTuple):
    name: str
    json_name: str
    most: int
    has_lists: bool
    """Whether its items have lists too."""


def check_lists(message: Message, prefix: str = "") -> None:
    """Raises `InvalidFields` for the first list or map of `message` with more items than the contract allows."""
    for field in _lists(message.DESCRIPTOR):
        items = getattr(message, field.name)
        path = f"{prefix}{field.json_name}"
        if field.most and len(items) > field.most:
            raise InvalidFields({path: f"must contain no more than {field.most} item(s)"})
        if field.has_lists:
            for at, item in enumerate(items):
                check_lists(item, f"{path}[{at}].")


@cache
def _lists(descriptor: Descriptor) -> tuple[_List, ...]:
    found = (
        _List(field.name, str(field.json_name), most_items(field), _has_lists(field))
        for field in descriptor.fields
        if field.is_repeated
    )
    return tuple(field for field in found if field.most or field.has_lists)


def _has_lists(field: FieldDescriptor) -> bool:
    items = field.message_type
    return items is not None and not items.GetOptions().map_entry and bool(_lists(items))


def most_items(field: FieldDescriptor) -> int:
    """Returns the most items or pairs that the rule of `field` allows; 0 without a bound."""
    rules: Any = field.GetOptions().Extensions[validate_pb2.field]
    return int(rules.repeated.max_items or rules.map.max_pairs)
