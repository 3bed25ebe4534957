"""Render Envoy's configuration: the template, filled in from the contract.

One template serves every deployment. Local: loopback addresses. Compose and
Kubernetes: the defaults, which are service names and container ports.
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

import yaml

from gateway import replies, routes
from gateway.contract import Route, read

HERE = Path(__file__).parent
SERVICES = ("catalog", "identity", "inventory", "orders", "payments")
SELF = "self"

Config = dict[str, Any]


@dataclass(frozen=True)
class Address:
    """A host and a port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Address":
        host, _, port = text.rpartition(":")
        if not host or not port.isdecimal():
            raise ValueError(f"expected host:port, not {text!r}")
        return cls(host.strip("[]"), int(port))


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """What differs between one deployment and another; the defaults suit containers."""

    descriptor: Path
    listen: Address = Address("0.0.0.0", 8080)  # noqa: S104 - in a container, that is the point
    admin_port: int = 9901
    targets: Mapping[str, Address] = field(default_factory=lambda: {name: Address(name, 8000) for name in SERVICES})
    grpc_targets: Mapping[str, Address] = field(
        default_factory=lambda: {name: Address(name, 50051) for name in SERVICES}
    )
    """Where methods are called that answer with a body of their own; see `routes.cluster_of`."""
    descriptor_at: str = ""
    """Where Envoy will find the descriptor set, when not where it is now."""
    issuer: str = "https://stampede.local"
    audience: str = "stampede"
    trusted_hops: int = 0
    """Proxies in front of the gateway whose `X-Forwarded-For` is believed."""
    body_bytes_max: int = 1 << 20
    log: str = "all"
    """Which requests are logged: `all`, `errors` (5xx) or `none`."""
    pages: Mapping[str, Path] = field(default_factory=dict)
    """Files the gateway answers with itself, by path: `/openapi.json`, `/docs`."""


def render(gateway: Gateway) -> Config:
    """The whole configuration, as Envoy reads it.

    Raises `ValueError` when the contract names a service without a target.
    """
    contract = read(gateway.descriptor)
    if unknown := {route.owner for route in contract} - gateway.targets.keys():
        raise ValueError(f"no --target for {', '.join(sorted(unknown))}")
    return _fill(
        "envoy.yaml",
        {
            "LISTEN_HOST": gateway.listen.host,
            "LISTEN_PORT": gateway.listen.port,
            "ADMIN_PORT": gateway.admin_port,
            "BODY_BYTES_MAX": gateway.body_bytes_max,
            "TRUSTED_HOPS": gateway.trusted_hops,
            "ISSUER": gateway.issuer,
            "AUDIENCE": gateway.audience,
            "DESCRIPTOR": gateway.descriptor_at or str(gateway.descriptor.resolve()),
            "SERVICES": json.dumps(sorted({route.service for route in contract})),
            "ROUTES": json.dumps(routes.table(contract, gateway.pages)),
            "LOCAL_REPLIES": json.dumps(replies.mappers()),
            "READY_CLUSTERS": json.dumps({name: {"value": 100} for name in gateway.targets}),
            "ACCESS_LOG": json.dumps(access_log(gateway.log)),
            "CLUSTERS": json.dumps([*_clusters(gateway, contract), _self(gateway)]),
        },
    )


def bare(descriptor: Path, listen: Address, target: Address, services: Iterable[str]) -> Config:
    """Only transcoder and router before one gRPC server: the least that gRPC behind any gateway costs.

    For benchmarks, as the ceiling the full configuration is compared with.
    """
    return _fill(
        "bare.yaml",
        {
            "LISTEN_HOST": listen.host,
            "LISTEN_PORT": listen.port,
            "DESCRIPTOR": str(descriptor.resolve()),
            "SERVICES": json.dumps(sorted(services)),
            "HOST": target.host,
            "PORT": target.port,
        },
    )


def _clusters(gateway: Gateway, contract: Iterable[Route]) -> Iterator[Config]:
    """The services; and the gRPC ports of those that need it."""
    for name, target in gateway.targets.items():
        yield _fill("cluster.yaml", {"NAME": name, "HOST": target.host, "PORT": target.port})
    for owner in sorted({route.owner for route in contract if route.is_body}):
        target = gateway.grpc_targets[owner]
        yield _fill("cluster_grpc.yaml", {"NAME": f"{owner}-grpc", "HOST": target.host, "PORT": target.port})


def access_log(which: str) -> list[Config]:
    """JSON lines on standard output: no query string, no header that holds a secret."""
    if which == "none":
        return []
    log = _fill("access_log.yaml", {})
    if which == "errors":
        at_least = {"default_value": 500, "runtime_key": "access_log.min_status"}
        log["filter"] = {"status_code_filter": {"comparison": {"op": "GE", "value": at_least}}}
    return [log]


def _self(gateway: Gateway) -> Config:
    """The gateway as its own client, for identity's keys."""
    address = {"address": "127.0.0.1", "port_value": gateway.listen.port}
    endpoint = {"endpoint": {"address": {"socket_address": address}}}
    return {
        "name": SELF,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": SELF, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def _fill(template: str, values: Mapping[str, object]) -> Config:
    text = Template((HERE / template).read_text(encoding="utf-8")).substitute(values)
    config: Config = yaml.safe_load(text)
    return config


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, not {text!r}")
    return name, value


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m gateway.render", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where envoy.yaml is written")
    parser.add_argument(
        "--descriptor",
        type=Path,
        default=HERE.parent / "protos/gen/gateway.binpb",
        help="descriptor set to derive from (default: %(default)s)",
    )
    parser.add_argument("--descriptor-at", default="", metavar="PATH", help="where Envoy will find it")
    parser.add_argument("--listen", type=Address.parse, default=Gateway.listen, metavar="HOST:PORT")
    parser.add_argument("--admin-port", type=int, default=Gateway.admin_port, help="always on 127.0.0.1")
    parser.add_argument(
        "--target",
        type=_pair,
        action="append",
        default=[],
        metavar="SERVICE=HOST:PORT",
        help="where a service listens (default: SERVICE:8000); repeat for each",
    )
    parser.add_argument(
        "--grpc-target",
        type=_pair,
        action="append",
        default=[],
        metavar="SERVICE=HOST:PORT",
        help="where it speaks gRPC (default: SERVICE:50051); repeat for each",
    )
    parser.add_argument(
        "--page", type=_pair, action="append", default=[], metavar="PATH=FILE", help="answer PATH with FILE"
    )
    parser.add_argument("--issuer", default=Gateway.issuer, help="issuer of tokens (default: %(default)s)")
    parser.add_argument("--audience", default=Gateway.audience, help="their audience (default: %(default)s)")
    parser.add_argument("--trusted-hops", type=int, default=0, help="proxies in front (default: none)")
    parser.add_argument("--log", choices=("all", "errors", "none"), default=Gateway.log)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _arguments(arguments)
    config = render(
        Gateway(
            descriptor=options.descriptor,
            descriptor_at=options.descriptor_at,
            listen=options.listen,
            admin_port=options.admin_port,
            targets=_with(Gateway(descriptor=options.descriptor).targets, options.target),
            grpc_targets=_with(Gateway(descriptor=options.descriptor).grpc_targets, options.grpc_target),
            issuer=options.issuer,
            audience=options.audience,
            trusted_hops=options.trusted_hops,
            log=options.log,
            pages={path: Path(file) for path, file in options.page},
        )
    )
    write(config, options.out)


def _with(targets: Mapping[str, Address], options: Iterable[tuple[str, str]]) -> dict[str, Address]:
    return {**targets, **{name: Address.parse(address) for name, address in options}}


def write(config: Config, directory: Path) -> Path:
    """Writes `envoy.yaml` into the directory and returns its path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "envoy.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False, width=120), encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
