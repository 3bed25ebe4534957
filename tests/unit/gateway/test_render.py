"""The gateway's configuration follows the contract, and Envoy accepts it."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.local import wheels
from gateway import contract, replies
from gateway.render import SERVICES, Address, Gateway, bare, main, render, write
from services.chassis import process
from services.chassis.server import guard, http_server

Config = dict[str, Any]
ROOT = Path(__file__).parents[3]


def manager(config: Config) -> Config:
    filters = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"]
    found: Config = filters[0]["typed_config"]
    return found


def routes(config: Config) -> list[Config]:
    found: list[Config] = manager(config)["route_config"]["virtual_hosts"][0]["routes"]
    return found


def route(config: Config, name: str) -> Config:
    return next(each for each in routes(config) if each.get("name") == f"stampede.orders.v1.OrderService.{name}")


def transcoder(config: Config) -> Config:
    filters = manager(config)["http_filters"]
    found: Config = next(f["typed_config"] for f in filters if f["name"].endswith("grpc_json_transcoder"))
    return found


def cluster(config: Config, name: str) -> Config:
    return next(each for each in config["static_resources"]["clusters"] if each["name"] == name)


def protocol(cluster: Config) -> Config:
    (options,) = cluster["typed_extension_protocol_options"].values()
    found: Config = options
    return found


def address(cluster: Config) -> tuple[str, int]:
    (place,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    found = place["endpoint"]["address"]["socket_address"]
    return found["address"], found["port_value"]


def seconds(duration: str) -> float:
    return float(duration.removesuffix("s"))


def accepts(config: Config, directory: Path) -> None:
    """Fail with Envoy's message if Envoy refuses the configuration."""
    path = write(config, directory)
    command = [str(wheels.envoy()), "--mode", "validate", "--use-dynamic-base-id", "-c", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture
def config(descriptor: Path) -> Config:
    return render(Gateway(descriptor=descriptor))


def test_a_route_that_is_not_public_requires_a_token(config: Config) -> None:
    requirement = route(config, "PlaceOrder")["typed_per_filter_config"]["envoy.filters.http.jwt_authn"]
    assert requirement["requirement_name"] == "signed-in"


def test_a_public_route_requires_none(config: Config) -> None:
    assert "envoy.filters.http.jwt_authn" not in route(config, "ListOrders")["typed_per_filter_config"]


def test_a_mesh_service_is_not_served(config: Config) -> None:
    assert transcoder(config)["services"] == ["stampede.orders.v1.OrderService"]
    assert not [each for each in routes(config) if "Saga" in str(each)]


def test_no_grpc_path_has_a_route(config: Config) -> None:
    assert transcoder(config)["match_incoming_request_route"] is True
    assert not [each for each in routes(config) if "stampede." in str(each["match"])]


def test_placing_an_order_is_matched_before_all_other_methods(config: Config) -> None:
    names = [each["name"] for each in routes(config) if "name" in each]
    assert names[0] == "stampede.orders.v1.OrderService.PlaceOrder"


def test_a_verb_is_matched_before_the_resource_it_belongs_to(config: Config) -> None:
    names = [each.get("name", "").rpartition(".")[2] for each in routes(config)]
    assert names.index("WatchOrder") < names.index("GetOrder")


def test_a_service_gets_an_earlier_deadline_than_the_gateway(config: Config) -> None:
    assert route(config, "GetOrder")["route"]["timeout"] == "15s"
    assert route(config, "GetOrder")["request_headers_to_add"][0]["header"] == {
        "key": "grpc-timeout",
        "value": "14S",
    }


def test_a_call_that_may_wait_gets_a_longer_timeout(config: Config) -> None:
    assert route(config, "PlaceOrder")["route"]["timeout"] == "35s"


def test_a_stream_ends_only_when_idle_or_very_old(config: Config) -> None:
    assert route(config, "WatchOrder")["route"]["timeout"] == "0s"
    assert route(config, "WatchOrder")["route"]["idle_timeout"] == "300s"
    assert "request_headers_to_add" not in route(config, "WatchOrder")


def test_405_names_the_methods_of_the_path(config: Config) -> None:
    refusals = [each for each in routes(config) if each.get("direct_response", {}).get("status") == 405]
    allowed = {str(each["match"]): each["response_headers_to_add"][0]["header"]["value"] for each in refusals}
    assert allowed["{'path': '/v1/orders'}"] == "GET, POST"


def test_readiness_needs_every_service(config: Config) -> None:
    filters = {each["name"]: each["typed_config"] for each in manager(config)["http_filters"]}
    health_check = filters["envoy.filters.http.health_check"]
    assert set(health_check["cluster_min_healthy_percentages"]) == {
        "catalog",
        "identity",
        "inventory",
        "orders",
        "payments",
    }


def test_services_are_called_over_http_1(config: Config) -> None:
    for name in SERVICES:
        assert set(protocol(cluster(config, name))["explicit_http_config"]) == {"http_protocol_options"}
        assert address(cluster(config, name)) == (name, 8000)


def test_a_repeat_reaches_the_orders_process_that_placed_the_order(config: Config) -> None:
    """The process remembers its orders; another one would answer that the sale has sold out."""
    assert cluster(config, "orders")["lb_policy"] == "MAGLEV"
    assert route(config, "PlaceOrder")["route"]["hash_policy"] == [{"header": {"header_name": "authorization"}}]


def test_the_gateway_closes_idle_connections_before_the_service(config: Config) -> None:
    """Otherwise a call could be sent on a connection that the service is closing, and is not retried."""
    idle = protocol(cluster(config, "orders"))["common_http_protocol_options"]["idle_timeout"]
    assert 0 < seconds(idle) <= http_server._IDLE_SECONDS - 15


def test_health_checks_notice_a_draining_service_in_time(config: Config) -> None:
    for name in (*SERVICES, "orders-grpc"):
        (check,) = cluster(config, name)["health_checks"]
        assert seconds(check["interval"]) == seconds(check["no_traffic_healthy_interval"]) < process._LEAVE_SECONDS
    (check,) = cluster(config, "orders")["health_checks"]
    assert check["http_health_check"] == {"path": "/healthz"}


def test_connections_are_as_many_as_concurrent_calls(config: Config) -> None:
    (limits,) = cluster(config, "orders")["circuit_breakers"]["thresholds"]
    assert limits["max_connections"] == limits["max_requests"] == guard._IN_FLIGHT_MAX
    assert 2 * limits["max_connections"] < process._FILES_MAX


def test_only_http_bodies_come_from_the_grpc_port(config: Config) -> None:
    clusters = {each["name"].rpartition(".")[2]: each["route"]["cluster"] for each in routes(config) if "name" in each}
    assert clusters == {
        "PlaceOrder": "orders", "ListOrders": "orders", "GetOrder": "orders", "WatchOrder": "orders",
        "TakeWebhook": "orders", "ExportOrders": "orders-grpc",
    }  # fmt: skip
    assert set(protocol(cluster(config, "orders-grpc"))["explicit_http_config"]) == {"http2_protocol_options"}
    assert address(cluster(config, "orders-grpc")) == ("orders", 50051)
    names = {each["name"] for each in config["static_resources"]["clusters"]}
    assert names == {*SERVICES, "orders-grpc", "self"}


def test_targets_of_both_ports_can_be_given(descriptor: Path, tmp_path: Path) -> None:
    targets = ["--target", "orders=10.0.0.1:80", "--grpc-target", "orders=10.0.0.2:81"]
    main(["--out", str(tmp_path), "--descriptor", str(descriptor), *targets])
    config = yaml.safe_load((tmp_path / "envoy.yaml").read_text())
    assert address(cluster(config, "orders")) == ("10.0.0.1", 80)
    assert address(cluster(config, "orders-grpc")) == ("10.0.0.2", 81)
    assert address(cluster(config, "catalog")) == ("catalog", 8000)


@pytest.mark.parametrize("access", ["ACCESS_MESH", "ACCESS_UNSPECIFIED"])
def test_a_route_without_public_access_is_refused(
    access: str, compile_contract: Callable[[str], Path], shop: str
) -> None:
    descriptor = compile_contract(shop.replace("ACCESS_PUBLIC", access))
    with pytest.raises(ValueError, match=f"ListOrders has a REST route but its access is {access}"):
        contract.read(descriptor)


def test_a_service_without_a_target_is_refused(descriptor: Path) -> None:
    with pytest.raises(ValueError, match="no --target for orders"):
        render(Gateway(descriptor=descriptor, targets={"catalog": Address("catalog", 8000)}))


@pytest.mark.parametrize("status", [401, 403, 404, 405, 413, 429, 431, 503, 504])
def test_envoy_s_answers_are_statuses_of_ours(status: int) -> None:
    fitting = [
        mapper
        for mapper in replies.mappers()
        if mapper["filter"].get("status_code_filter", {}).get("comparison", {}).get("value", {}).get("default_value")
        == status
    ]
    body = fitting[0]["body_format_override"]["json_format"]
    assert "%" not in body["message"]
    assert body["details"][0]["domain"] == "gateway.stampede"


def test_service_with_too_many_calls_is_full_and_not_unavailable() -> None:
    """Envoy calls it "upstream overflow" and answers 503. Its first fitting mapper counts."""
    mappers = replies.mappers()
    full = next(mapper for mapper in mappers if mapper["filter"] == {"response_flag_filter": {"flags": ["UO"]}})
    assert full["status_code"] == 429
    unavailable = next(m for m in mappers if m.get("status_code") == 503 and "status_code_filter" in m["filter"])
    assert mappers.index(full) < mappers.index(unavailable)


@pytest.mark.parametrize("status", [429, 503, 504])
def test_retryable_answers_have_retry_after(status: int) -> None:
    reply = next(reply for reply in replies._REPLIES if reply.http == status)
    mapper = replies._mapper(reply, {})
    assert mapper["headers_to_add"][0]["header"] == {"key": "retry-after", "value": "1"}
    assert mapper["body_format_override"]["json_format"]["details"][1]["retryDelay"] == "1s"


@pytest.mark.parametrize(
    "gateway",
    [
        {"listen": Address("127.0.0.1", 8080), "targets": {"orders": Address("127.0.0.1", 8093)}, "log": "errors"},
        {},
        {"listen": Address("::", 80), "trusted_hops": 2, "log": "none"},
    ],
    ids=["local", "containers", "behind-proxies"],
)
def test_envoy_accepts_every_rendering(gateway: Config, descriptor: Path, tmp_path: Path) -> None:
    accepts(render(Gateway(descriptor=descriptor, **gateway)), tmp_path)


def test_envoy_accepts_pages(descriptor: Path, tmp_path: Path) -> None:
    page = tmp_path / "openapi.json"
    page.write_text("{}")
    accepts(render(Gateway(descriptor=descriptor, pages={"/openapi.json": page})), tmp_path)


def test_envoy_accepts_the_bare_gateway(descriptor: Path, tmp_path: Path) -> None:
    services = ["stampede.orders.v1.OrderService"]
    accepts(bare(descriptor, Address("127.0.0.1", 8080), Address("127.0.0.1", 50051), services), tmp_path)


def test_the_command_fills_in_the_whole_template(descriptor: Path, tmp_path: Path) -> None:
    main(["--out", str(tmp_path), "--descriptor", str(descriptor), "--descriptor-at", "/etc/gateway.binpb"])
    text = (tmp_path / "envoy.yaml").read_text()
    assert "/etc/gateway.binpb" in text
    assert "${" not in text
