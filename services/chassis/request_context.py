"""The call that the current task answers: its caller, request id and deadline."""

import hashlib
import ipaddress
import time
import uuid
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field

from google.protobuf.message import Message


@dataclass(frozen=True, slots=True)
class Caller:
    """A signed-in user, or a service of the mesh. `service` is empty for users."""

    user_id: uuid.UUID | None = None
    roles: frozenset[str] = frozenset()
    service: str = ""

    @property
    def is_staff(self) -> bool:
        return not self.roles.isdisjoint(("staff", "admin"))


ANONYMOUS = Caller()
_ADDRESS_HEADER = "x-envoy-external-address"
Metadata = Mapping[str, str | bytes]
"""The metadata of a gRPC call or the headers of an HTTP call, by lower-case name."""


@dataclass(slots=True)
class Call:
    """A call, as the guard established it."""

    method: str
    request_id: str
    """Joins log lines across services. It is not the client's idempotency key."""
    caller: Caller = ANONYMOUS
    deadline: float | None = None
    """Seconds on the monotonic clock."""
    traceparent: str = ""
    metadata: Metadata = field(default_factory=dict, repr=False)

    def seconds_left(self) -> float | None:
        return None if self.deadline is None else self.deadline - time.monotonic()


_current: ContextVar[Call | None] = ContextVar("call", default=None)
enter = _current.set


def current() -> Call:
    """Returns the call being answered; outside of a call, as in a worker, one without a caller."""
    return _current.get() or Call(method="", request_id=str(uuid.uuid4()))


def is_answering() -> bool:
    """Whether the current task answers a call or a batch of calls, and is not a background task."""
    return _current.get() is not None


def is_shared() -> bool:
    """Whether the current task answers for several clients, as a batch does and a call of another service may."""
    call = _current.get()
    return call is not None and (bool(call.caller.service) or not call.method.startswith("/"))


def client() -> str | None:
    """Returns what distinguishes the current call's client from others: the user, else the network address.

    None for other services, and for calls that did not pass the gateway.
    """
    caller = current().caller
    return str(caller.user_id) if caller.user_id else client_address() or None


def client_address() -> str:
    """Returns the network address of the current call's client; empty if the call did not pass the gateway.

    The gateway replaces what a client says of itself. Of IPv6, 64 bits are left out, because one customer has them all.
    """
    call = _current.get()
    try:
        address = ipaddress.ip_address(str(call.metadata.get(_ADDRESS_HEADER, "")) if call else "")
    except ValueError:
        return ""
    if address.version == 4:
        return str(address)
    return str(address.ipv4_mapped or ipaddress.ip_network((address, 64), strict=False).network_address)


def request_id() -> str:
    """Returns the request id of the current call; empty outside of a call."""
    call = _current.get()
    return call.request_id if call else ""


def user_id() -> uuid.UUID:
    """Returns the signed-in user of the current call. Only for methods whose access requires one."""
    user = current().caller.user_id
    assert user is not None, "the method accepts callers that are not signed in"
    return user


@dataclass(frozen=True, slots=True)
class RequestKey:
    """Identifies a mutation and its repeats: the same caller, method and request id."""

    caller: str
    method: str
    request_id: uuid.UUID
    digest: bytes
    """A hash of the request's content, which differs if another request uses the same id."""


def request_key(request: Message) -> RequestKey | None:
    """Returns the key of the current call; None if the client sent no request id and cannot repeat safely."""
    text: str = request.request_id  # type: ignore[attr-defined]  # every mutation's request declares it
    if not text:
        return None
    call = current()
    content = type(request)()
    content.CopyFrom(request)
    content.ClearField("request_id")
    digest = hashlib.sha256(content.SerializeToString(deterministic=True)).digest()
    who = str(call.caller.user_id or call.caller.service)
    return RequestKey(who, call.method, uuid.UUID(text), digest)
