"""Envoy's own answers, rewritten as `google.rpc.Status` JSON.

Envoy's texts name upstream addresses and transport failures. Only its messages about the request (400) are passed on,
because a client can correct the request with them.
"""

from dataclasses import dataclass
from typing import Any

Config = dict[str, Any]
DOMAIN = "gateway.stampede"
RETRY_SECONDS = 1
READY_PATH = {"safe_regex": {"regex": r"/readyz(\?.*)?"}}
"""Matches the path with or without a query, such as load balancers append."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One HTTP status and its `google.rpc.Status`."""

    http: int
    code: int
    reason: str | None
    message: str
    retry: bool = False
    challenge: bool = False
    """Whether the answer has `WWW-Authenticate`."""


_SIGN_IN = Reply(http=401, code=16, reason="UNAUTHENTICATED", message="Sign in to call this method.", challenge=True)
_UNREADABLE = Reply(http=400, code=3, reason=None, message="%LOCAL_REPLY_BODY%")
_NO_KEYS = Reply(
    http=503,
    code=14,
    reason="UNAVAILABLE",
    message="The token cannot be verified at the moment.",
    retry=True,
    # Replaces Envoy's header, which has "invalid_token": the token may be valid.
    challenge=True,
)
_FULL = Reply(http=429, code=8, reason="RATE_LIMITED", message="Too many requests.", retry=True)
_REPLIES = (
    Reply(http=400, code=3, reason=None, message="The request is malformed."),
    _SIGN_IN,
    Reply(http=404, code=5, reason="NOT_FOUND", message="This address does not exist."),
    Reply(http=405, code=12, reason="METHOD_NOT_ALLOWED", message="This address does not support this method."),
    Reply(http=408, code=4, reason="DEADLINE_EXCEEDED", message="The request did not arrive in time."),
    Reply(http=413, code=3, reason="REQUEST_TOO_LARGE", message="The request body is too large."),
    Reply(http=415, code=3, reason="UNSUPPORTED_MEDIA_TYPE", message="The content type is not supported."),
    Reply(http=426, code=3, reason="UPGRADE_REQUIRED", message="This protocol version is not supported."),
    _FULL,
    Reply(http=431, code=3, reason="HEADERS_TOO_LARGE", message="The request headers are too large."),
    Reply(http=501, code=12, reason="NOT_IMPLEMENTED", message="This transfer coding is not supported."),
    Reply(http=502, code=14, reason="UNAVAILABLE", message="A service is unavailable at the moment.", retry=True),
    Reply(http=503, code=14, reason="UNAVAILABLE", message="A service is unavailable at the moment.", retry=True),
    Reply(http=504, code=4, reason="DEADLINE_EXCEEDED", message="The answer took too long.", retry=True),
)
_ANYTHING_ELSE = Reply(http=500, code=13, reason="INTERNAL", message="Internal error.")


def mappers() -> list[Config]:
    """Return Envoy's `local_reply_config.mappers`. Envoy takes the first that matches."""
    return [
        _ready(),
        # Missing keys of identity are our failure, not the caller's.
        _mapper(_NO_KEYS, _details(401, "emote_fetch")),
        # More calls than a service may have at once: it is full, and not unavailable.
        _mapper(_FULL, {"response_flag_filter": {"flags": ["UO"]}}),
        # Envoy answers 403 only to a token with another audience.
        _mapper(_SIGN_IN, _status("EQ", 403)),
        _mapper(_UNREADABLE, _details(400, "grpc_json_transcode")),
        *(_mapper(reply, _status("EQ", reply.http)) for reply in _REPLIES),
        _mapper(_ANYTHING_ELSE, _status("GE", 500)),
    ]


def _mapper(reply: Reply, condition: Config) -> Config:
    headers = []
    if reply.retry:
        headers.append(_set("retry-after", str(RETRY_SECONDS)))
    if reply.challenge:
        headers.append(_set("www-authenticate", 'Bearer realm="stampede"'))
    return {
        "filter": condition,
        "status_code": reply.http,
        "headers_to_add": headers,
        "body_format_override": {"json_format": _body(reply), "content_type": "application/json"},
    }


def _body(reply: Reply) -> Config:
    details: list[Config] = []
    if reply.reason:
        details.append({"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reply.reason, "domain": DOMAIN})
    if reply.retry:
        details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{RETRY_SECONDS}s"})
    return {"code": reply.code, "message": reply.message, "details": details}


def _ready() -> Config:
    """Return the mapper that adds a body to the 200 of the health check filter."""
    is_ready = {"header_filter": {"header": {"name": ":path", "string_match": READY_PATH}}}
    return {
        "filter": {"and_filter": {"filters": [_status("EQ", 200), is_ready]}},
        "body_format_override": {"json_format": {"status": "ready"}, "content_type": "application/json"},
    }


def _details(code: int, words: str) -> Config:
    """Return a filter for answers whose response code details contain `words`."""
    return {
        "extension_filter": {
            "name": "envoy.access_loggers.extension_filters.cel",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter",
                "expression": f"response.code == {code} && response.code_details.contains('{words}')",
            },
        }
    }


def _status(op: str, code: int) -> Config:
    value = {"default_value": code, "runtime_key": f"local_reply.{op.lower()}_{code}"}
    return {"status_code_filter": {"comparison": {"op": op, "value": value}}}


def _set(name: str, value: str) -> Config:
    return {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
