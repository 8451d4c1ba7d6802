"""Settings: what options become, and every problem at once."""

from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from limiter_node.core.errors import ConfigError
from limiter_node.settings import Address, Settings, parse, parse_address, parse_etcd

OPTIONS: dict[str, Any] = {
    "etcd": None,
    "etcd_ca": None,
    "etcd_cert": None,
    "etcd_key": None,
    "etcd_user": None,
    "etcd_password": None,
    "rules": None,
    "prefix": "/limiter",
    "node_id": "node-1",
    "zone": None,
    "http": "127.0.0.1:8080",
    "admin": "127.0.0.1:8081",
    "peer": "127.0.0.1:8082",
    "advertise": None,
    "lease_ttl": 5,
    "peer_timeout": 100,
    "replication_interval": 20,
    "drain_delay": 1.0,
    "drain_timeout": 10.0,
    "on_unknown_rule": "error",
    "max_keys": 10_000_000,
    "log_format": "json",
    "log_checks": 0.0,
    "workers": 1,
}
ETCD = "http://127.0.0.1:2379"


def settings_of(**changes: Any) -> Settings:
    return parse({**OPTIONS, **changes})


def problems_of(**changes: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        settings_of(**changes)
    return list(caught.value.problems)


def test_without_etcd_a_node_is_standalone() -> None:
    settings = settings_of(rules="rules.yaml")
    assert settings.is_standalone
    assert (settings.etcd.endpoints, settings.rules) == ((), Path("rules.yaml"))
    assert settings.http == Address("127.0.0.1", 8080)
    assert (settings.lease_ttl_s, settings.peer_timeout_ms, settings.drain_delay_s) == (5, 100, 1.0)


def test_with_etcd_a_node_is_of_a_fleet() -> None:
    settings = settings_of(
        etcd=f"{ETCD}, https://etcd.example:2379/ ,",
        etcd_ca="ca.pem",
        etcd_cert="cert.pem",
        etcd_key="key.pem",
        etcd_user="limiter",
        etcd_password="secret",
        prefix="/a/b/",
        zone="east",
        peer="0.0.0.0:0",
        advertise="[2001:db8::1]:8082",
    )
    assert not settings.is_standalone
    assert settings.etcd.endpoints == (ETCD, "https://etcd.example:2379")
    assert (settings.etcd.prefix, settings.zone) == ("/a/b", "east")
    assert settings.advertise == Address("2001:db8::1", 8082)
    assert (settings.etcd.ca, settings.etcd.cert, settings.etcd.key) == (
        Path("ca.pem"),
        Path("cert.pem"),
        Path("key.pem"),
    )


def test_the_settings_for_etcd_can_be_had_alone_and_without_its_password_in_their_text() -> None:
    options = {**OPTIONS, "etcd": ETCD, "etcd_user": "u", "etcd_password": "secret"}
    assert parse_etcd(options) == parse(options).etcd
    assert "secret" not in repr(parse(options))
    with pytest.raises(ConfigError) as caught:
        parse_etcd({**options, "etcd": " , ", "prefix": "x", "etcd_key": "k"})
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "--etcd-cert and --etcd-key",
        "--etcd",
        "--prefix",
    ]


@pytest.mark.parametrize("text", ["", " , ", ","])
def test_an_option_for_etcd_without_an_endpoint_makes_no_node_standalone(text: str) -> None:
    for parse_it in (parse, parse_etcd):
        with pytest.raises(ConfigError, match="--etcd: no endpoint is given; allowed: http://HOST:PORT"):
            parse_it({**OPTIONS, "etcd": text})


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        settings_of().node_id = "other"  # type: ignore[misc]  # that is the point


@pytest.mark.parametrize(
    ("text", "address", "again"),
    [
        ("127.0.0.1:8080", Address("127.0.0.1", 8080), "127.0.0.1:8080"),
        ("localhost:0", Address("localhost", 0), "localhost:0"),
        (":65535", Address("", 65535), ":65535"),
        ("[::1]:80", Address("::1", 80), "[::1]:80"),
    ],
)
def test_an_address_is_host_and_port(text: str, address: Address, again: str) -> None:
    assert parse_address(text) == address
    assert str(address) == again


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        "host:",
        "host:http",
        "host:-1",
        "host:65536",
        "host:1.5",
        "host:\u0661",
        "h:\u00b2",
        "h:" + "9" * 5_000,
    ],
)
def test_what_is_no_address_is_told_what_one_is(text: str) -> None:
    with pytest.raises(ValueError, match="is no address; allowed: HOST:PORT, PORT 0 to 65535, 0 picks a free one"):
        parse_address(text)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"http": "8080"}, "--http: '8080' is no address; allowed: "),
        ({"admin": "a:b"}, "--admin: 'a:b' is no address; allowed: "),
        ({"peer": ""}, "--peer: '' is no address; allowed: "),
        ({"advertise": "host"}, "--advertise: 'host' is no address; allowed: "),
        ({"advertise": "host:0"}, "--advertise: 'host:0' cannot be dialled; allowed: "),
        ({"advertise": "0.0.0.0:1"}, "--advertise: '0.0.0.0:1' cannot be dialled; allowed: "),
        ({"advertise": "[::]:1"}, "--advertise: '[::]:1' cannot be dialled; allowed: "),
        ({"advertise": ":1"}, "--advertise: ':1' cannot be dialled; allowed: "),
        ({"etcd": "127.0.0.1:2379"}, "--etcd: '127.0.0.1:2379' is no endpoint; allowed: http://HOST:PORT or https://"),
        ({"etcd": f"{ETCD},ftp://a:1"}, "--etcd: 'ftp://a:1' is no endpoint; allowed: "),
        ({"etcd": "http://a"}, "--etcd: 'http://a' is no endpoint; allowed: "),
        ({"etcd": "http://:1"}, "--etcd: 'http://:1' is no endpoint; allowed: "),
        ({"etcd": "http://a:1/path"}, "--etcd: 'http://a:1/path' is no endpoint; allowed: "),
        ({"etcd": "http://a:x"}, "--etcd: 'http://a:x' is no endpoint; allowed: "),
        ({"etcd": "http://a:65536"}, "--etcd: 'http://a:65536' is no endpoint; allowed: "),
        ({"prefix": "limiter"}, "--prefix: 'limiter' is not allowed; allowed: a path such as /limiter"),
        ({"prefix": ""}, "--prefix: '' is not allowed; allowed: "),
        ({"prefix": "/"}, "--prefix: '/' is not allowed; allowed: "),
        ({"node_id": "a b"}, "--node-id: 'a b' is not allowed; allowed: "),
        ({"drain_delay": float("nan")}, "--drain-delay: nan is not allowed; allowed: a number"),
        ({"drain_timeout": float("nan")}, "--drain-timeout: nan is not allowed; allowed: a number"),
        ({"log_checks": float("nan")}, "--log-checks: nan is not allowed; allowed: a number"),
        ({"zone": ""}, "--zone: '' is not allowed; allowed: "),
        ({"etcd": ETCD, "rules": "rules.yaml"}, "--rules: for a standalone node only"),
        (
            {"etcd": ETCD, "peer": "0.0.0.0:8082"},
            "--advertise: needed, since other nodes cannot dial --peer 0.0.0.0:8082",
        ),
        ({"etcd": ETCD, "peer": "[::]:8082"}, "--advertise: needed, since other nodes cannot dial --peer [::]:8082"),
        ({"etcd_cert": "c"}, "--etcd-cert and --etcd-key: one needs the other"),
        ({"etcd_key": "k"}, "--etcd-cert and --etcd-key: one needs the other"),
        ({"etcd_user": "u"}, "--etcd-user and --etcd-password: one needs the other"),
        ({"etcd_password": "p"}, "--etcd-user and --etcd-password: one needs the other"),
        (
            {"workers": 10, "node_id": "n" * 62},
            f"--node-id: '{'n' * 62}' is too long; allowed: with the .10 of a worker",
        ),
        ({"workers": 4, "peer": "127.0.0.1:65533"}, "--peer: 4 workers take as many ports, and there is none after"),
        ({"workers": 4, "advertise": "host:65533"}, "--advertise: 4 workers take as many ports, and there is none"),
        ({"drain_delay": 11.0}, "--drain-delay: longer than --drain-timeout, which includes it"),
    ],
)
def test_one_problem_is_told_with_its_option(changes: dict[str, Any], problem: str) -> None:
    problems = problems_of(**changes)
    # An --advertise that is no good is not there either.
    assert problems[0].startswith(problem)
    assert len(problems) == 1


def test_every_problem_is_told_at_once() -> None:
    problems = problems_of(
        etcd="nowhere",
        http="x",
        peer="y",
        advertise="z",
        prefix="p",
        node_id="",
        zone="a b",
        etcd_user="u",
        drain_delay=11,
    )
    assert {problem.partition(":")[0] for problem in problems} == {
        "--etcd",
        "--http",
        "--peer",
        "--advertise",
        "--prefix",
        "--node-id",
        "--zone",
        "--etcd-user and --etcd-password",
        "--drain-delay",
    }


def test_a_standalone_node_may_listen_anywhere() -> None:
    settings = settings_of(peer="0.0.0.0:0", http="[::]:8080")
    assert str(settings.http) == "[::]:8080"


def test_a_worker_has_a_name_ports_and_a_part_of_the_memory_of_its_own() -> None:
    whole = settings_of(workers=3, node_id="n", advertise="host:9000", max_keys=10)
    first, last = whole.of_worker(1, "run"), whole.of_worker(3, "run")
    assert (first.node_id, first.peer, first.advertise) == ("n.1", whole.peer, whole.advertise)
    assert (last.node_id, str(last.peer), str(last.advertise)) == ("n.3", "127.0.0.1:8084", "host:9002")
    assert (last.http, last.max_keys) == (whole.http, 4)
    assert last.worker is not None
    assert list(last.worker.siblings) == ["n.1", "n.2", "n.3"]
    assert last.worker.siblings["n.3"] == last.worker.socket_of(3, "peer") != last.worker.socket_of(3, "admin")
    assert (whole.is_alone, first.is_standalone, first.is_alone) == (True, True, False)


def test_a_worker_at_a_free_port_takes_another_one() -> None:
    assert str(settings_of(workers=2, peer="127.0.0.1:0").of_worker(2, "run").peer) == "127.0.0.1:0"


def test_the_sockets_of_two_runs_differ_and_fit_an_address() -> None:
    whole = settings_of(workers=64, node_id="n" * 61)
    names = {run: whole.of_worker(64, run * 16).worker.socket_of(64, "admin") for run in "ab"}  # type: ignore[union-attr]
    assert names["a"] != names["b"]
    assert max(map(len, names.values())) <= 108
