"""The Kubernetes manifests of compose/: valid, and of one mind with each other and with the node."""

from typing import Any

import kubernetes_validate
import pytest
import yaml

from limiter_node.cli import serve
from tests.harness import ROOT

VERSION = "1.30"
"""The oldest Kubernetes that has a preStop of sleep."""

TEXT = (ROOT / "compose" / "kubernetes" / "limiter.yaml").read_text()
MANIFESTS: dict[str, Any] = {f"{each['kind']} {each['metadata']['name']}": each for each in yaml.safe_load_all(TEXT)}
STATEFUL_SET = MANIFESTS["StatefulSet limiter"]["spec"]
POD = STATEFUL_SET["template"]
CONTAINER = POD["spec"]["containers"][0]
ENVIRONMENT = {each["name"]: each.get("value") for each in CONTAINER["env"]}


@pytest.mark.parametrize("version", [VERSION, kubernetes_validate.latest_version()])
@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_is_valid(name: str, version: str) -> None:
    kubernetes_validate.validate(MANIFESTS[name], version, strict=True)


def test_a_misspelt_field_would_be_found() -> None:
    manifest = yaml.safe_load(yaml.safe_dump(MANIFESTS["StatefulSet limiter"]))
    manifest["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, VERSION, strict=True)


def test_everything_selects_the_pods_of_the_stateful_set() -> None:
    labels = POD["metadata"]["labels"]
    assert STATEFUL_SET["selector"] == {"matchLabels": labels}
    assert f"Service {STATEFUL_SET['serviceName']}" in MANIFESTS
    for name in ("Service limiter", "Service limiter-nodes"):
        assert MANIFESTS[name]["spec"]["selector"] == labels
    assert MANIFESTS["PodDisruptionBudget limiter"]["spec"]["selector"] == {"matchLabels": labels}
    assert MANIFESTS["NetworkPolicy limiter"]["spec"]["podSelector"] == {"matchLabels": labels}


def test_every_port_that_is_named_is_one_of_the_container() -> None:
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    for name in ("Service limiter", "Service limiter-nodes"):
        for port in MANIFESTS[name]["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]
    probes = [CONTAINER[probe]["httpGet"]["port"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")]
    assert set(probes) <= set(ports)
    ingress = MANIFESTS["NetworkPolicy limiter"]["spec"]["ingress"]
    assert {port["port"] for each in ingress for port in each["ports"]} == set(ports.values())


def test_every_setting_is_an_option_of_the_node() -> None:
    options = {parameter.envvar for parameter in serve.params}
    assert {name for name in ENVIRONMENT if name.startswith("LIMITER_")} <= options


def test_a_pod_has_time_to_drain() -> None:
    sleep_s = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain_s = float(ENVIRONMENT["LIMITER_DRAIN_TIMEOUT"])
    assert POD["spec"]["terminationGracePeriodSeconds"] > sleep_s + drain_s


def test_no_two_nodes_are_taken_at_once() -> None:
    assert MANIFESTS["PodDisruptionBudget limiter"]["spec"]["maxUnavailable"] == 1
    assert STATEFUL_SET.get("updateStrategy", {}).get("type", "RollingUpdate") == "RollingUpdate"
