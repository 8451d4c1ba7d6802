"""Prometheus as operators run it: promtool on names, rules and alerts; a real one scrapes a fleet for its dashboard.

The dashboard's queries, read from Grafana's JSON, are put to Prometheus' API: Debian has no Grafana.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

import pytest

from tests.etcd_process import EtcdProcess
from tests.fleet import PATIENT, Fleet
from tests.harness import ROOT, check, eventually, get_json, request
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

COMPOSE = ROOT / "compose"
RULES = sorted((COMPOSE / "prometheus" / "rules").glob("*.yml"))
ALERT_TESTS = COMPOSE / "prometheus" / "tests" / "alerts.yml"
DASHBOARD = json.loads((COMPOSE / "grafana" / "limiter.json").read_text())
CHECKS = 120


def promtool(*arguments: str | Path, given: str = "") -> str:
    """Run it; what it says must be that all is well."""
    done = subprocess.run(["promtool", *map(str, arguments)], input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


class Prometheus:
    """One of Debian's that scrapes these addresses once a second, with the rules of the compose file."""

    def __init__(self, targets: Sequence[str]) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self._folder = tempfile.TemporaryDirectory(prefix="limiter-prometheus-")
        self._config = Path(self._folder.name) / "prometheus.yml"
        config = {  # JSON is YAML
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(path) for path in RULES],
            "scrape_configs": [{"job_name": "limiter", "static_configs": [{"targets": list(targets)}]}],
        }
        self._config.write_text(json.dumps(config))

    def __enter__(self) -> Self:
        folder = Path(self._folder.name)
        command = [
            "prometheus",
            f"--config.file={self._config}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={self.address}",
            "--log.level=warn",
        ]
        with (folder / "log").open("w") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            eventually(lambda: request(self.address, "GET", "/-/ready").status == 200, 20, "a ready Prometheus")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()

    def targets(self) -> list[Any]:
        """What its targets page shows."""
        targets: list[Any] = get_json(self.address, "/api/v1/targets")["data"]["activeTargets"]
        return targets

    def query(self, expression: str) -> list[Any]:
        """The samples of an expression now."""
        answer = request(self.address, "GET", f"/api/v1/query?query={quote(expression, safe='')}")
        assert answer.status == 200, (expression, answer.body)
        samples: list[Any] = answer.body["data"]["result"]
        return samples

    def value(self, expression: str) -> float | None:
        """The one sample of an expression."""
        samples = self.query(expression)
        return float(samples[0]["value"][1]) if samples else None


def dashboard_queries() -> list[str]:
    """Every query of every panel, for all rules and backends."""
    expressions = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    return [re.sub(r"\$\w+", ".*", expression) for expression in expressions]


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with EtcdProcess() as etcd, Fleet(etcd, args=PATIENT) as running:
        running.put("rules/api", {"rate": "1/d", "burst": 3, "segments": {"premium": {"rate": "1/d", "burst": 1000}}})
        running.put("rules/guarded", {"rate": "1000/s", "backend": "orders"})
        yield running


def send_traffic(fleet: Fleet) -> None:
    """Something of everything that the dashboard shows: CHECKS checks of two segments, a problem, reports."""
    for number in range(CHECKS // 4):
        node = fleet.nodes[number % 3]
        for segment in (None, "premium"):
            check(node, "api", f"client:{number % 5}", segment=segment)
        check(node, "guarded", f"client:{number}")
        check(node, "guarded", "client:hot")
        report = {"backend": "orders", "outcomes": [{"latency_ms": 12.5, "status": 200, "count": 20}]}
        assert request(node.http, "POST", "/v1/report", json.dumps(report)).status == 202
    assert check(fleet.nodes[0], "nosuch", "x").status == 404


def test_rules_and_alerts_are_good_and_each_alert_is_tested() -> None:
    assert "SUCCESS" in promtool("check", "rules", *RULES)
    assert "SUCCESS" in promtool("test", "rules", ALERT_TESTS)
    alerts = set(re.findall(r"alert: (\w+)", "".join(path.read_text() for path in RULES)))
    assert alerts
    assert alerts == set(re.findall(r'alertname="(\w+)"', ALERT_TESTS.read_text()))


def test_prometheus_scrapes_the_fleet_and_answers_every_query_of_the_dashboard(fleet: Fleet) -> None:
    with Prometheus([node.admin for node in fleet.nodes]) as prometheus:
        eventually(
            lambda: [target["health"] for target in prometheus.targets()] == ["up"] * 3, 15, "all targets are up"
        )
        eventually(lambda: (prometheus.value("count(limiter_ready)") or 0) == 3, what="a first scrape")
        send_traffic(fleet)
        eventually(lambda: prometheus.value("sum(limiter_checks_total)") == CHECKS, what="every check in Prometheus")
        queries = dashboard_queries()
        assert len(queries) > 40

        def all_are_answered() -> bool:
            unanswered = [query for query in queries if not prometheus.query(query)]
            assert not unanswered, unanswered
            return True

        eventually(all_are_answered, 20, "an answer to every query")
        denied = 'rule_segment:limiter_checks_denied:ratio_rate1m{rule="api",segment="%s"}'
        assert (prometheus.value(denied % "default") or 0) > 0.5
        assert prometheus.value(denied % "premium") == 0


def test_metrics_are_named_by_the_conventions_and_hold_no_client_key(fleet: Fleet) -> None:
    check(fleet.nodes[0], "api", "secret-client-key", segment="unlisted")
    for node in fleet.nodes:
        page = str(request(node.admin, "GET", "/metrics").body)
        assert promtool("check", "metrics", given=page) == ""
        assert "secret-client-key" not in page
        assert "unlisted" not in page
