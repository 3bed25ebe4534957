"""The routes of the contract, read from its descriptors.

This module imports no generated code: it needs only a descriptor set, so the gateway's image contains no Python of a
service.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor

PUBLIC = "ACCESS_PUBLIC"
MESH = "ACCESS_MESH"
_ACCESS = "stampede.access.v1.access"
_HTTP = "google.api.http"
_BODY_BYTES_MAX = "stampede.access.v1.body_bytes_max"
_VERBS = ("get", "put", "post", "delete", "patch")


@dataclass(frozen=True, kw_only=True)
class Route:
    """One REST route of one method."""

    verb: str
    path: str
    method: str
    owner: str
    """The service that answers: the package's part after `stampede.`."""
    signed_in: bool
    streams: bool
    is_body: bool
    """Whether the response is a `google.api.HttpBody`, a body of the service's own."""
    waits: bool
    """Whether the caller may wait for an outcome (`prefer_wait`)."""
    body_bytes_max: int = 64 * 1024
    """The longest request body."""

    @property
    def service(self) -> str:
        return self.method.rpartition(".")[0]

    @property
    def variables(self) -> int:
        return self.path.count("{")

    @property
    def pattern(self) -> str:
        """The path as an RE2 expression. A path without variables is its own pattern."""
        pieces = re.split(r"\{([^}]*)\}", self.path)
        return "".join(_variable(piece) if at % 2 else re.escape(piece) for at, piece in enumerate(pieces))


def read(descriptor_set: Path) -> list[Route]:
    """Return every route of outside clients, in the order of the files.

    Raises `ValueError` for a route whose method declares no access or is for the mesh only.
    """
    files = descriptor_pb2.FileDescriptorSet.FromString(descriptor_set.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    return [
        route
        for file in files.file
        for service in file.service
        for method in pool.FindServiceByName(f"{file.package}.{service.name}").methods
        for route in _routes(method, pool)
    ]


def _routes(method: MethodDescriptor, pool: descriptor_pool.DescriptorPool) -> Iterator[Route]:
    options = _options(method, pool)
    bindings, access = options.get(_HTTP, []), options.get(_ACCESS)
    if not bindings:
        return
    if access in {None, "ACCESS_UNSPECIFIED", MESH}:
        raise ValueError(f"{method.full_name} has a REST route but its access is {access or 'not given'}")
    for verb, path in bindings:
        yield Route(
            verb=verb,
            path=path,
            method=method.full_name,
            owner=method.full_name.split(".")[1],
            signed_in=access != PUBLIC,
            streams=method.server_streaming,
            is_body=method.output_type.full_name == "google.api.HttpBody",
            waits="prefer_wait" in method.input_type.fields_by_name,
            body_bytes_max=options.get(_BODY_BYTES_MAX, Route.body_bytes_max),
        )


def _options(method: MethodDescriptor, pool: descriptor_pool.DescriptorPool) -> dict[str, Any]:
    """Return the options of a method by name: its access as text, its routes as (verb, path) pairs."""
    # Only the options class of this pool has the extensions.
    options_type: Any = message_factory.GetMessageClass(pool.FindMessageTypeByName("google.protobuf.MethodOptions"))
    options = options_type.FromString(method.GetOptions().SerializeToString())
    found: dict[str, Any] = {field.full_name: value for field, value in options.ListFields()}
    for field, value in options.ListFields():
        if field.full_name == _ACCESS:
            found[_ACCESS] = _enum_name(field, value)
        elif field.full_name == _HTTP:
            found[_HTTP] = [_binding(rule) for rule in (value, *value.additional_bindings)]
    return found


def _enum_name(field: FieldDescriptor, number: int) -> str:
    assert field.enum_type is not None
    return str(field.enum_type.values_by_number[number].name)


def _binding(rule: Any) -> tuple[str, str]:
    verb = rule.WhichOneof("pattern")
    if verb not in _VERBS:
        raise ValueError(f"custom HTTP verbs are not supported: {rule}")
    return verb.upper(), getattr(rule, verb)


def _variable(inside: str) -> str:
    """Return the expression for `{name}` or `{name=template}`."""
    template = inside.partition("=")[2] or "*"
    return re.escape(template).replace(r"\*\*", ".+").replace(r"\*", "[^/]+")
