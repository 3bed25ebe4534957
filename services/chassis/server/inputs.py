"""The headers and ids of a request, as values: a header fills its field, and every spelling of a UUID becomes one."""

import uuid
from functools import cache
from typing import Any, NamedTuple

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from buf.validate import validate_pb2
from services.chassis.errors import InvalidFields
from services.chassis.request_context import Metadata

_IDEMPOTENCY_KEY_MAX = 255
# The namespace of the UUIDs that are made from idempotency keys which are not UUIDs.
_KEY_NAMESPACE = uuid.UUID("6f1c1f0e-6f5b-4c0e-9d7e-1f6c0d6f7a52")
# Conditions of HTTP that no mutation can obey. A read may ignore them: it answers in full.
_NOT_OBEYED = {"if-none-match": "If-None-Match", "if-unmodified-since": "If-Unmodified-Since"}


class _IdField(NamedTuple):
    """A field that is a UUID, a list of them, or a message that contains some."""

    name: str
    is_repeated: bool
    message: Descriptor | None


def take_headers(request: Message, metadata: Metadata, *, reads: bool) -> None:
    """Fill an empty `request_id` from `Idempotency-Key`, and `etag` from `If-Match`.

    Raises `InvalidFields` for a condition that the method cannot obey, or that contradicts `etag`.
    """
    if key := metadata.get("idempotency-key"):
        _take_idempotency_key(request, str(key))
    if wanted := metadata.get("if-match"):
        _take_if_match(request, str(wanted))
    if not reads and not metadata.keys().isdisjoint(_NOT_OBEYED):
        refused = [name for key, name in _NOT_OBEYED.items() if key in metadata]
        raise InvalidFields(dict.fromkeys(refused, "is not supported; send the etag as If-Match"))


def normalize_ids(request: Message) -> None:
    """Rewrite every UUID of a request in lower case, so that rules and digests compare values and not spellings.

    Its lists must be bounded.
    """
    for field in _id_fields(request.DESCRIPTOR):
        value: Any = getattr(request, field.name)
        if field.message:
            if field.is_repeated:
                for part in value:
                    normalize_ids(part)
            elif request.HasField(field.name):
                normalize_ids(value)
        elif field.is_repeated:
            if any(text != text.lower() for text in value):
                value[:] = [text.lower() for text in value]
        elif value != (lower := value.lower()):
            setattr(request, field.name, lower)


@cache
def _id_fields(message: Descriptor) -> tuple[_IdField, ...]:
    found = []
    for field in message.fields:
        rules = field.GetOptions().Extensions[validate_pb2.field]
        text = rules.repeated.items.string if field.is_repeated else rules.string
        inner = field.message_type
        is_map = inner is not None and inner.GetOptions().map_entry
        if (inner is not None and not is_map and _id_fields(inner)) or text.uuid:
            found.append(_IdField(field.name, field.is_repeated, inner))
    return tuple(found)


def _take_idempotency_key(request: Message, header: str) -> None:
    if "request_id" not in request.DESCRIPTOR.fields_by_name or request.request_id:  # type: ignore[attr-defined]
        return  # the field takes precedence: some HTTP clients make a key of their own for each attempt
    if len(header) > _IDEMPOTENCY_KEY_MAX:
        raise InvalidFields({"Idempotency-Key": f"must have at most {_IDEMPOTENCY_KEY_MAX} characters"})
    key = header.strip('"')  # RFC 8941 writes a text in quotes
    try:
        request.request_id = str(uuid.UUID(key))  # type: ignore[attr-defined]
    except ValueError:
        request.request_id = str(uuid.uuid5(_KEY_NAMESPACE, key))  # type: ignore[attr-defined]


def _take_if_match(request: Message, header: str) -> None:
    if "etag" not in request.DESCRIPTOR.fields_by_name:
        raise InvalidFields({"If-Match": "is not supported by this method, which compares no versions"})
    if header.strip() == "*":  # any version of what exists, and a method that changes a resource needs it to exist
        return
    if "," in header:
        raise InvalidFields({"If-Match": "must be one etag"})
    given: str = request.etag  # type: ignore[attr-defined]
    if given and given != header:
        raise InvalidFields({"If-Match": "is another version than etag; send one of the two"})
    request.etag = header  # type: ignore[attr-defined]
