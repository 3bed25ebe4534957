"""Envoy's route table, derived from the routes of the contract: cluster, time limits, and required token."""

import json
import mimetypes
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gateway.contract import Route

CALL_SECONDS = 15
# `prefer_wait` is at most 20 s, in addition to the call itself.
WAIT_SECONDS = CALL_SECONDS + 20
# The service gets an earlier deadline, so its own answer arrives before the gateway's.
GRACE_SECONDS = 1
STREAM_IDLE_SECONDS = 300
STREAM_SECONDS = 3600
_READ = {"name": ":method", "string_match": {"safe_regex": {"regex": "GET|HEAD"}}}
# Matched first, because almost every request in a flash sale is this one.
HOT = ("POST", "/v1/orders")
STICKY = frozenset({"orders"})
"""Services whose replicas each serve the same customers. A repeat of an order then reaches the process that placed it,
which remembers it when the sale has sold out."""

Config = dict[str, Any]

_TYPE = "type.googleapis.com/envoy.extensions.filters.http"
_TOKEN_REQUIRED: Config = {
    "envoy.filters.http.jwt_authn": {
        "@type": f"{_TYPE}.jwt_authn.v3.PerRouteConfig",
        "requirement_name": "signed-in",
    }
}
SELF = "self"
"""The cluster of the gateway itself."""
_UNSUPPORTED = "/unsupported-media-type"
# The transcoder would take an answer of Envoy itself for one of a service.
_NOT_TRANSCODED: Config = {
    "typed_per_filter_config": {
        "envoy.filters.http.grpc_json_transcoder": {
            "@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig",
            "disabled": True,
        }
    }
}
_NOT_SUPPORTED: Config = {"direct_response": {"status": 415}, **_NOT_TRANSCODED}
# nginx, and proxies like it, would hold back a stream's messages.
_STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def table(routes: Iterable[Route], pages: Mapping[str, Path]) -> list[Config]:
    """Return the route table: own pages, REST routes, and 405 for other methods of known paths.

    Envoy answers 404 to all other paths.
    """
    ordered = sorted(routes, key=_rank)
    own = {
        "/healthz": _page({"inline_string": json.dumps({"status": "alive"})}, "application/json"),
        **{path: _page({"filename": str(file)}, _content_type(file)) for path, file in pages.items()},
    }
    return [
        *_unsupported(),
        *({"match": {"path": path, "headers": [_READ]}, **page} for path, page in own.items()),
        *map(_rest, ordered),
        *_method_not_allowed(ordered),
        *(_other_method({"path": path}, ["GET", "HEAD"]) for path in own),
    ]


def _unsupported() -> list[Config]:
    """Return 415 for bodies that are not JSON: compressed ones, and gRPC's own."""
    compressed = {"name": "content-encoding", "string_match": {"exact": "identity"}, "invert_match": True}
    grpc = {"name": "content-type", "string_match": {"prefix": "application/grpc"}}
    return [
        {"match": {"path": _UNSUPPORTED}, **_NOT_SUPPORTED},
        {"match": {"prefix": "/", "headers": [compressed]}, **_NOT_SUPPORTED},
        {
            # Envoy answers a gRPC request with 200 and puts the error into gRPC's headers, so the answer is fetched.
            "match": {"prefix": "/", "headers": [grpc]},
            "route": {"cluster": SELF, "regex_rewrite": {"pattern": {"regex": ".*"}, "substitution": _UNSUPPORTED}},
            "request_headers_to_remove": ["content-type"],
            **_NOT_TRANSCODED,
        },
    ]


def _rank(route: Route) -> tuple[bool, int, int]:
    """Sort the hot route first, then paths without variables, then longer patterns before shorter ones.

    `/v1/orders/{id}` also matches `/v1/orders/7:ship`, so the longer pattern must be first.
    """
    return (route.verb, route.path) != HOT, route.variables, -len(route.pattern)


def _rest(route: Route) -> Config:
    config: Config = {
        "name": route.method,
        "match": {**_path(route), "headers": [_verb(route.verb)]},
        "route": {"cluster": cluster_of(route), **_limits(route)},
    }
    if route.owner in STICKY:
        config["route"]["hash_policy"] = [{"header": {"header_name": "authorization"}}]
    if route.streams:
        config["response_headers_to_add"] = [_header(name, value) for name, value in _STREAM_HEADERS.items()]
    else:
        config["request_headers_to_add"] = [_deadline(route)]
    config["typed_per_filter_config"] = {
        **_body_limit(route.body_bytes_max),
        **(_TOKEN_REQUIRED if route.signed_in else {}),
    }
    return config


def _body_limit(most: int) -> Config:
    limit = {"@type": f"{_TYPE}.buffer.v3.BufferPerRoute", "buffer": {"max_request_bytes": most}}
    return {"envoy.filters.http.buffer": limit}


def cluster_of(route: Route) -> str:
    """Return the cluster of a route. The transcoder ends an `HttpBody` only at trailers, which need gRPC itself."""
    return f"{route.owner}-grpc" if route.is_body else route.owner


def _path(route: Route) -> Config:
    if route.variables:
        return {"safe_regex": {"regex": route.pattern}}
    return {"path": route.path}


def _verb(verb: str) -> Config:
    return {"name": ":method", "string_match": {"exact": verb}}


def _seconds(route: Route) -> int:
    return WAIT_SECONDS if route.waits else CALL_SECONDS


def _limits(route: Route) -> Config:
    if route.streams:
        # A watch has no timeout of its own; the client reconnects after an hour.
        return {
            "timeout": "0s",
            "idle_timeout": f"{STREAM_IDLE_SECONDS}s",
            "max_stream_duration": {"max_stream_duration": f"{STREAM_SECONDS}s"},
        }
    # The idle timeout must be longer than the call, or it would end a call that waits.
    return {"timeout": f"{_seconds(route)}s", "idle_timeout": f"{_seconds(route) + GRACE_SECONDS}s"}


def _deadline(route: Route) -> Config:
    return {
        "header": {"key": "grpc-timeout", "value": f"{_seconds(route) - GRACE_SECONDS}S"},
        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
    }


def _method_not_allowed(routes: Sequence[Route]) -> list[Config]:
    verbs: dict[str, list[Route]] = {}
    for route in routes:
        verbs.setdefault(route.pattern, []).append(route)
    return [_other_method(_path(same[0]), [route.verb for route in same]) for same in verbs.values()]


def _other_method(path: Config, verbs: Iterable[str]) -> Config:
    return {
        "match": path,
        "direct_response": {"status": 405},
        "response_headers_to_add": [_header("allow", ", ".join(sorted(set(verbs))))],
    }


def _page(body: Config, content_type: str) -> Config:
    return {
        "direct_response": {"status": 200, "body": body},
        "response_headers_to_add": [_header("content-type", content_type)],
    }


def _header(name: str, value: str) -> Config:
    return {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def _content_type(file: Path) -> str:
    return mimetypes.guess_type(file.name)[0] or "application/octet-stream"
