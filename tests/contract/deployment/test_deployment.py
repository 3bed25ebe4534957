"""Compose and Kubernetes agree with the contract, with the settings of the services, and with each other."""

import json
import os
import re
from functools import cache
from unittest import mock

import kubernetes_validate
import pytest
import yaml
from pydantic import SecretStr

from services.chassis import process
from services.chassis.server import http_server
from tests.contract.deployment.deployed import (
    BASE,
    BIN,
    DEPLOY,
    DEV,
    GRPC,
    HTTP,
    METRICS,
    OVERLAYS,
    ROOT,
    SERVICES,
    all_environments,
    built,
    compose,
    compose_environment,
    containers,
    find,
    pod_environment,
    pod_labels,
    pods,
    run,
    secrets,
    settings,
    variables,
)

_PRODUCTION = {
    "ENVIRONMENT": "production", "STRIPE_API_BASE": "https://api.test", "RAZORPAY_API_BASE": "https://api.test"
}  # fmt: skip

# -- the files are well formed -----------------------------------------------------------------------------------------


def test_compose_file_follows_the_compose_specification() -> None:
    checked = run(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml")
    assert checked.returncode == 0, checked.stdout


def test_compose_file_uses_only_what_compose_1_knows() -> None:
    newer = {"develop", "pull_policy", "deploy", "annotations", "post_start"}
    assert not compose().keys() & {"name", "include", "configs", "secrets"}
    assert not {name: part.keys() & newer for name, part in compose()["services"].items() if part.keys() & newer}
    assert not [n for n, part in compose()["services"].items() if "start_interval" in part.get("healthcheck", {})]


def test_dockerfile_passes_hadolint_and_needs_no_buildkit() -> None:
    checked = run(BIN / "hadolint", DEPLOY / "Dockerfile")
    assert checked.returncode == 0, checked.stdout
    text = (DEPLOY / "Dockerfile").read_text()
    assert not re.search(r"^# *syntax=|<<-?['\"]?EOF|--link|--mount", text, re.M)


def test_manifests_are_valid_for_kubernetes() -> None:
    distinct = {json.dumps(each, sort_keys=True): each for folder in OVERLAYS for each in built(folder)}
    # Otherwise the validator parses a schema of 2 MB for every object.
    with mock.patch.object(
        kubernetes_validate.utils, "schema_contents", cache(kubernetes_validate.utils.schema_contents)
    ):
        for each in distinct.values():
            kubernetes_validate.validate(each, "1.34", strict=True)


def test_every_file_beside_a_kustomization_is_used() -> None:
    unused = []
    for overlay in OVERLAYS:
        for folder in {path.parent for path in overlay.rglob("kustomization.yaml")}:
            text = (folder / "kustomization.yaml").read_text()
            below = "".join(path.read_text() for path in folder.rglob("*.yaml"))
            unused += [
                path for path in folder.iterdir()
                if path.name not in text and f"../{path.name}" not in below and path.name != "kustomization.yaml"
            ]  # fmt: skip
    assert not unused


def test_every_patch_of_a_kustomization_has_a_target() -> None:
    """kustomize ignores a patch whose target matches nothing."""
    without = []
    for overlay in OVERLAYS:
        for path in overlay.rglob("kustomization.yaml"):
            for patch in yaml.safe_load(path.read_text()).get("patches", []):
                target = patch["target"]
                # The folder of a service patches the template `service` and renames it.
                name = path.parent.name if target.get("name") == "service" else target.get("name")
                labels = dict(pair.split("=") for pair in target.get("labelSelector", "").split(",") if pair)
                if not any(
                    target.get("kind", each["kind"]) == each["kind"]
                    and name in (None, each["metadata"]["name"])
                    and labels.items() <= each["metadata"].get("labels", {}).items()
                    for each in built(overlay)
                ):
                    without.append(f"{path.parent.name}: {target}")
    assert not without


# -- settings and secrets ----------------------------------------------------------------------------------------------


def test_every_required_setting_is_provided() -> None:
    missing = {}
    for service, place, migrate, serve in all_environments():
        required = {name.upper() for name, field in settings(service).model_fields.items() if field.is_required()}
        missing[place] = (required - migrate.keys()) | (required - serve.keys())
    assert not {place: names for place, names in missing.items() if names}


def test_compose_provides_only_variables_that_a_setting_reads() -> None:
    unread = {
        place: serve.keys() - {name.upper() for name in settings(service).model_fields}
        for service, place, _, serve in all_environments()
        if place.endswith("compose")
    }
    assert not {place: names for place, names in unread.items() if names}


def test_secrets_made_as_the_readme_says_pass_in_production() -> None:
    for service, place, *both in all_environments():
        for environment in both:
            with mock.patch.dict(os.environ, environment, clear=True):
                # The trial cluster calls its sandbox without TLS.
                expected = "local" if place.endswith("in dev") else "production"
                assert settings(service)().environment == expected, place
                with mock.patch.dict(os.environ, _PRODUCTION):
                    settings(service)()


def test_only_the_migration_has_the_owner_s_password() -> None:
    for service, place, migrate, serve in all_environments():
        owner = secrets()[f"{service.upper()}_OWNER_PASSWORD"]
        assert f"{service}_owner:{owner}@" in migrate["MIGRATION_DATABASE_URL"], place
        assert not any(owner in value for value in serve.values()), place


def test_a_service_has_no_secret_of_another() -> None:
    own = {"identity": {"KEY_SECRET", "ADMIN_PASSWORD"}, "inventory": {"VALKEY_PASSWORD"}}
    own |= {"payments": {f"{name}_SECRET" for name in ("STRIPE_WEBHOOK", "RAZORPAY_KEY", "RAZORPAY_WEBHOOK")}}
    own["payments"].add("STRIPE_API_KEY")
    for service, place, _, serve in all_environments():
        allowed = {"NATS_PASSWORD", "MESH_SECRET", "PAGE_SECRET", f"{service.upper()}_PASSWORD", *own.get(service, ())}
        assert {n for n, secret in secrets().items() if any(secret in value for value in serve.values())} == allowed, (
            place
        )


def test_postgresql_quotes_no_rows_in_its_log() -> None:
    terse = "--log_error_verbosity=terse"
    assert terse in compose()["services"]["postgres"]["command"]
    assert terse in containers(find("StatefulSet", "postgres", DEV))[0]["args"]
    # The local mesh: tests/integration/chassis/data/test_error_texts.py


def test_compose_names_a_missing_secret() -> None:
    for missing in secrets().keys() - {"ADMIN_PASSWORD"}:
        given = {name: value for name, value in secrets().items() if name != missing}
        with pytest.raises(KeyError, match=missing):
            for part in compose()["services"]:
                compose_environment(part, given)


def test_bootstrap_has_a_password_for_every_role() -> None:
    asked = set(re.findall(r"\\getenv \w+ (\w+)", (DEPLOY / "postgres/roles.sql").read_text()))
    job = pods(DEV)["roles"]
    for given in (compose_environment("roles", secrets()), pod_environment(job, containers(job)[0], secrets(), DEV)):
        assert {name: given[name] for name in asked} == {name: secrets()[name] for name in asked}


def test_no_secret_is_committed() -> None:
    example = variables((DEPLOY / "compose.env.example").read_text())
    assert set(example.values()) == {"", "sk_test_", "whsec_"}
    assert not any(each["kind"] == "Secret" for each in built(DEV))
    hidden = {
        name.upper() for service in SERVICES for name, field in settings(service).model_fields.items()
        if any(isinstance(kind, type) and issubclass(kind, SecretStr)
               for kind in (field.annotation, *getattr(field.annotation, "__args__", ())))
    }  # fmt: skip
    assert {"DATABASE_URL", "KEY_SECRET"} <= hidden
    assert not find("ConfigMap", "settings")["data"].keys() & hidden
    literal = [
        f"{name}: {variable}"
        for name, part in compose()["services"].items()
        for variable in part.get("environment", {}).keys() & hidden
        if "${" not in part["environment"][variable]
    ]
    assert not literal


def test_readme_explains_every_variable_and_no_other() -> None:
    rows = re.findall(r"^\| `([A-Z_`, ]+)` \|", (DEPLOY / "README.md").read_text(), re.M)
    explained = {name for row in rows for name in re.findall(r"[A-Z_]+", row)}
    roles = {f"{service.upper()}{kind}" for service in SERVICES for kind in ("_PASSWORD", "_OWNER_PASSWORD")}
    in_compose = set(re.findall(r"(?<!\$)\$\{(\w+)", (DEPLOY / "compose.yaml").read_text()))
    assert explained | roles == secrets().keys() | in_compose | find("ConfigMap", "settings")["data"].keys()


# -- how it runs -------------------------------------------------------------------------------------------------------


def test_ports_agree_with_the_listeners_of_the_services() -> None:
    ports = {"http": HTTP, "grpc": GRPC, "metrics": METRICS}
    for service in SERVICES:
        fields = settings(service).model_fields
        listens = {"http": fields["http_listen"], "grpc": fields["listen"], "metrics": fields["metrics_listen"]}
        assert {name: field.default for name, field in listens.items()} == {n: f"0.0.0.0:{p}" for n, p in ports.items()}
        container = containers(find("Deployment", service))[-1]
        assert {port["name"]: port["containerPort"] for port in container["ports"]} == ports, service
        assert container["readinessProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}, service
        offered = {port["targetPort"]: port["port"] for port in find("Service", service)["spec"]["ports"]}
        assert offered == {"http": HTTP, "grpc": GRPC}, service
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    assert f"EXPOSE {HTTP} {GRPC} {METRICS}" in dockerfile
    assert f"'127.0.0.1', {HTTP}" in dockerfile


def test_clients_see_every_pod_of_a_service() -> None:
    assert not [name for name in SERVICES if find("Service", name)["spec"]["clusterIP"] != "None"]


def test_selectors_match_only_the_pods_of_their_own_name() -> None:
    wrong = []
    for folder in OVERLAYS:
        for each in built(folder):
            if selector := each.get("spec", {}).get("selector"):
                wanted = selector.get("matchLabels", selector).items()
                found = {name for name, labels in pod_labels(folder).items() if wanted <= labels.items()}
                if found != {each["metadata"]["name"]}:
                    wrong.append(f"{folder.name}: {each['kind']} {each['metadata']['name']} selects {found}")
    assert not wrong


def test_every_pod_is_unprivileged() -> None:
    unprivileged = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    for folder in OVERLAYS:
        for name, each in pods(folder).items():
            spec = each["spec"]["template"]["spec"]
            assert spec["securityContext"]["runAsNonRoot"] is True, name
            assert spec["securityContext"]["runAsUser"] > 0, name
            assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
            assert spec["automountServiceAccountToken"] is False, name
            for container in containers(each):
                assert container["securityContext"] == unprivileged, name
                assert container["resources"].keys() == {"requests", "limits"}, name


def test_every_container_of_compose_is_unprivileged_and_bounded() -> None:
    for name, part in compose()["services"].items():
        assert (part["read_only"], part["cap_drop"]) == (True, ["ALL"]), name
        assert part["security_opt"] == ["no-new-privileges:true"], name
        assert {"mem_limit", "cpus", "pids_limit", "restart", "networks"} <= part.keys(), name


def test_pods_have_the_time_to_drain() -> None:
    """A pod leaves the load balancers and gateways; then calls have the chassis' 10 s, and the service its own time."""
    for service in SERVICES:
        spec = find("Deployment", service)["spec"]["template"]["spec"]
        main = (ROOT / f"services/{service}/__main__.py").read_text()
        own = re.search(r"_DRAIN_SECONDS = ([\d.]+)", main)
        drain = process._LEAVE_SECONDS + process._DRAIN_SECONDS + http_server._CANCEL_SECONDS
        drain += float(own[1]) * len(re.findall(r"\((?:seconds=)?_DRAIN_SECONDS\)", main)) if own else 0
        leave = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert leave >= 5
        assert spec["terminationGracePeriodSeconds"] >= leave + drain + 5, service
        assert float(compose()["services"][service]["stop_grace_period"].removesuffix("s")) >= drain + 5, service


def test_an_unavailable_database_restarts_no_service() -> None:
    alive = {"path": "/livez", "port": "http"}
    for service in SERVICES:
        container = containers(find("Deployment", service))[-1]
        assert [container[probe]["httpGet"] for probe in ("startupProbe", "livenessProbe")] == [alive, alive], service


def test_broker_that_hangs_is_restarted_and_one_that_recovers_is_not() -> None:
    """Without `js-server-only` the probe asks for each stream, and a large one takes long to recover."""
    [broker] = containers(find("StatefulSet", "nats", DEV))
    probe = broker["livenessProbe"]
    assert probe["httpGet"] == {"path": "/healthz?js-server-only=true", "port": "monitor"}
    assert broker["readinessProbe"]["httpGet"] == {"path": "/healthz", "port": "monitor"}


def test_scaled_out_services_stay_within_role_and_provider_limits() -> None:
    limit = re.search(r'ROLE :"service" .* CONNECTION LIMIT (\d+)', (DEPLOY / "postgres/service.sql").read_text())
    assert limit
    plain = find("ConfigMap", "settings", BASE)["data"]
    for service in SERVICES:
        scaler = find("HorizontalPodAutoscaler", service)["spec"]
        surge = find("Deployment", service)["spec"]["strategy"]["rollingUpdate"]["maxSurge"]
        assert scaler["scaleTargetRef"]["name"] == service
        assert scaler["minReplicas"] >= 2
        connections = int(plain["DATABASE_POOL_SIZE"]) + 1  # and that of readiness
        assert (scaler["maxReplicas"] + surge) * connections <= int(limit[1])
        assert scaler["maxReplicas"] * float(plain["PROVIDER_CALLS_PER_SECOND"]) <= 100


def test_services_wait_for_their_migration_and_migrations_for_the_roles() -> None:
    done = {"condition": "service_completed_successfully"}
    parts = compose()["services"]
    for service in SERVICES:
        assert parts[service]["depends_on"][f"{service}-migrate"] == done
        assert parts[f"{service}-migrate"]["depends_on"] == {"roles": done}
        assert parts[f"{service}-migrate"]["command"] == ["service", "migrate"]


def test_no_file_names_a_machine_s_path_or_a_package_index() -> None:
    written = [DEPLOY / "Dockerfile", DEPLOY / "README.md", DEPLOY / "compose.yaml", DEPLOY / "compose.env.example"]
    written += [path for path in (DEPLOY / "k8s").rglob("*") if path.is_file()]
    forbidden = re.compile(r"/home/|/wor[k]/|/Users/|py[p]i|index-ur[l]|PIP_INDEX")
    assert not [path for path in written if forbidden.search(path.read_text())]
