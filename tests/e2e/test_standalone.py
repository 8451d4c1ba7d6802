"""One node without etcd: its commands, its rules file, its admin API and its end (contract, sections 1 and 3).

Rules refill once a day, so that what was spent is a whole number from the first line of a test to the last.
"""

import functools
import json
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.harness import (
    ROOT,
    CliResult,
    HttpClient,
    NodeProcess,
    RawConnection,
    check,
    check_body,
    eventually,
    get_json,
    key_path,
    replace_file,
    request,
    run_cli,
    split_address,
)

RULES: dict[str, Any] = {
    "rules": {
        "api": {
            "rate": "100/s",
            "burst": 200,
            "segments": {"premium": {"rate": "1000/s", "burst": 2000}, "free": {"rate": "10/s"}},
        },
        "daily": {"rate": "1/d", "burst": 500},
    }
}
RELOAD_DEADLINE_S = 3.0  # a change is in force within about 2 s

_keys = count()


@pytest.fixture(scope="module")
def node() -> Iterator[NodeProcess]:
    with NodeProcess("alone", rules=RULES) as running:
        yield running


@pytest.fixture
def key() -> str:
    return f"client:{next(_keys)}"


def rule_file(burst: int, **more: Any) -> dict[str, Any]:
    return {"rules": {"daily": {"rate": "1/d", "burst": burst}, **more}}


def rules_in_force(node: NodeProcess) -> dict[str, Any]:
    rules: dict[str, Any] = get_json(node.admin, "/v1/rules")["rules"]
    return rules


def await_burst(node: NodeProcess, burst: int) -> None:
    eventually(lambda: rules_in_force(node)["daily"]["burst"] == burst, RELOAD_DEADLINE_S, f"burst {burst}")


def problems(node: NodeProcess) -> dict[str, str]:
    listed = get_json(node.admin, "/v1/status")["config"]["problems"]
    return {problem["key"]: problem["error"] for problem in listed}


def samples(node: NodeProcess) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample of /metrics by its name and labels."""
    answer = request(node.admin, "GET", "/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.body)
        for sample in family.samples
    }


# The rules file


def in_json(rules: Mapping[str, Any]) -> str:
    return json.dumps(rules)


def in_yaml(rules: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(rules))


def in_place(path: Path, text: str) -> None:
    path.write_text(text)


@pytest.mark.parametrize(
    ("name", "written", "save"),
    [("rules.json", in_json, replace_file), ("rules.yaml", in_yaml, in_place)],
    ids=["JSON, renamed over", "YAML, in place"],
)
def test_a_changed_rules_file_is_in_force_soon_and_keeps_what_was_spent(
    tmp_path: Path,
    name: str,
    written: Callable[[Mapping[str, Any]], str],
    save: Callable[[Path, str], None],
) -> None:
    path = tmp_path / name
    path.write_text(written(rule_file(100)))
    with NodeProcess("reload", rules=path) as node:
        assert [check(node, "daily", "a").body["remaining"] for _ in range(2)] == [99, 98]
        save(path, written(rule_file(10)))
        await_burst(node, 10)
        assert [check(node, "daily", "a").body["remaining"] for _ in range(2)] == [7, 6]
        save(path, written(rule_file(200)))
        await_burst(node, 200)
        assert check(node, "daily", "a").body["remaining"] == 195


def test_rules_come_and_go_with_the_file_and_a_deleted_rule_forgets_its_buckets() -> None:
    with NodeProcess("come-and-go", rules=rule_file(100)) as node:
        assert check(node, "extra", "a").status == 404
        node.write_rules(rule_file(100, extra={"rate": "1/d", "burst": 5}))
        eventually(lambda: check(node, "extra", "a", cost=5).status == 200, RELOAD_DEADLINE_S)
        assert check(node, "extra", "a").status == 429
        node.write_rules(rule_file(100))
        eventually(lambda: check(node, "extra", "a").status == 404, RELOAD_DEADLINE_S)
        node.write_rules(rule_file(100, extra={"rate": "1/d", "burst": 5}))
        eventually(lambda: check(node, "extra", "a", cost=0).status == 200, RELOAD_DEADLINE_S)
        assert check(node, "extra", "a").body["remaining"] == 4


def test_a_key_moved_to_other_numbers_by_the_file_keeps_what_it_has_spent() -> None:
    segments = {"large": {"rate": "1/d", "burst": 1000}}
    rules = {"rules": {"daily": {"rate": "1/d", "burst": 100, "segments": segments}}}
    moves: list[tuple[dict[str, Any], int, int]] = [
        ({"segment": "large"}, 1000, 989),
        ({"rules": {"daily": {"rate": "1/d", "burst": 20}}}, 20, 8),
        ({}, 100, 87),
    ]
    with NodeProcess("moved", rules=rules) as node:
        assert check(node, "daily", "a", cost=10).body["remaining"] == 90
        for entry, limit, left in moves:
            node.write_rules({**rules, "keys": {"a": entry} if entry else {}})
            at_limit = functools.partial(has_limit, node, limit)
            eventually(at_limit, RELOAD_DEADLINE_S, f"limit {limit}")
            assert check(node, "daily", "a").body["remaining"] == left
            assert check(node, "daily", "b", cost=0).body["limit"] == 100


def has_limit(node: NodeProcess, limit: int) -> bool:
    told: int = check(node, "daily", "a", cost=0).body["limit"]
    return told == limit


def test_a_file_broken_later_leaves_the_last_good_rules_in_force_until_it_is_mended() -> None:
    with NodeProcess("broken-later", rules=rule_file(100)) as node:
        assert check(node, "daily", "a").body["remaining"] == 99
        assert problems(node) == {}

        node.write_rules({"rules": {"daily": {"rate": "1/fortnight", "burst": 10}}})
        eventually(lambda: "rules/daily" in problems(node), RELOAD_DEADLINE_S, "the problem")
        assert "rate" in problems(node)["rules/daily"]
        assert check(node, "daily", "a").body["remaining"] == 98
        assert rules_in_force(node)["daily"]["burst"] == 100
        assert node.is_ready()

        assert node.rules_path is not None
        replace_file(node.rules_path, "{ this is no document")
        eventually(lambda: set(problems(node)) - {"rules/daily"}, RELOAD_DEADLINE_S, "the file's problem")
        assert check(node, "daily", "a").body["remaining"] == 97

        node.write_rules(rule_file(50))
        eventually(lambda: not problems(node), RELOAD_DEADLINE_S, "the end of the problem")
        assert check(node, "daily", "a").body["remaining"] == 46

        node.rules_path.unlink()
        eventually(lambda: problems(node), RELOAD_DEADLINE_S, "the problem of a file that is gone")
        assert check(node, "daily", "a").body["remaining"] == 45

        node.write_rules(rule_file(60))
        eventually(lambda: not problems(node), RELOAD_DEADLINE_S, "the end of the problem")
        assert check(node, "daily", "a").body["remaining"] == 54


BROKEN = {
    "rules": {
        "api": {"rate": "100/fortnight", "burst": 0},
        "daily": {"rate": "1/d", "algorithm": "leaky_pail", "colour": "red"},
        "two words": {"rate": "1/d"},
        "segmented": {"rate": "1/d", "segments": {"free": {"rate": 7}}},
        "good": {"rate": "1/d"},
    }
}
# Per problem: what one line of the output must say (where it is, and what is wrong or allowed).
BROKEN_LINES = [
    ("api", "rate"),
    ("api", "burst"),
    ("daily", "algorithm", "token_bucket"),
    ("daily", "colour"),
    ("two words",),
    ("segmented", "free", "rate"),
]


def assert_every_problem_is_listed(result: CliResult, path: Path) -> None:
    assert path.name in result.output
    lines = result.output.replace("\\n", "\n").splitlines()
    for words in BROKEN_LINES:
        assert any(all(word in line for word in words) for line in lines), (words, result.output)
    assert "Traceback" not in result.output


def test_a_rules_file_broken_at_start_is_exit_2_with_every_problem_at_once(tmp_path: Path) -> None:
    path = tmp_path / "broken-rules.yaml"
    path.write_text(in_yaml(BROKEN))
    result = serve_badly("--rules", str(path))
    assert result.code == 2, result.output
    assert_every_problem_is_listed(result, path)


def test_a_file_that_is_no_rules_document_or_not_there_is_exit_2_naming_it(tmp_path: Path) -> None:
    texts = {"no-yaml": "{ no document", "no-object": "7", "no-rules": '{"rulez": {}}', "not-there": None}
    for name, text in texts.items():
        if text is not None:
            (tmp_path / name).write_text(text)
    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(lambda name: serve_badly("--rules", str(tmp_path / name)), texts))
    for name, result in zip(texts, results, strict=True):
        assert result.code == 2, result.output
        assert name in result.output
        assert "Traceback" not in result.output


def test_validate_exits_0_for_good_files(tmp_path: Path) -> None:
    as_json, as_yaml = tmp_path / "good.json", tmp_path / "good.yaml"
    as_json.write_text(in_json(RULES))
    as_yaml.write_text(in_yaml(RULES))
    result = run_cli("validate", str(as_json), str(as_yaml))
    assert result.code == 0, result.output


def test_validate_lists_every_problem_of_every_file_and_exits_1(tmp_path: Path) -> None:
    good, broken, worse = tmp_path / "good.yaml", tmp_path / "broken.json", tmp_path / "worse.json"
    good.write_text(in_yaml(RULES))
    broken.write_text(in_json(BROKEN))
    worse.write_text("{")
    result = run_cli("validate", str(broken), str(good), str(worse))
    assert result.code == 1, result.output
    assert_every_problem_is_listed(result, broken)
    assert "worse.json" in result.output


# The admin API


def test_a_standalone_node_says_so_in_its_log_and_status(node: NodeProcess) -> None:
    assert any("standalone" in line for line in node.log_lines)
    assert get_json(node.admin, "/v1/status")["standalone"] is True


def test_a_serving_node_is_healthy_and_ready(node: NodeProcess) -> None:
    assert request(node.admin, "GET", "/healthz").status == 200
    assert request(node.admin, "GET", "/readyz").status == 200


def test_status_has_every_field_of_the_contract(node: NodeProcess) -> None:
    status = get_json(node.admin, "/v1/status")
    assert status["node"] == "alone"
    assert status["ready"] is True
    for address in (node.http, node.admin, node.peer):
        assert address in json.dumps(status["addresses"])
    assert status["etcd"]["connected"] is False
    assert "revision" in status["etcd"]
    assert status["leader"] in {None, "alone"}
    (member,) = status["ring"]["members"]
    assert set(member) >= {"id", "peer", "zone", "share"}
    assert (member["id"], member["peer"], member["zone"]) == ("alone", node.peer, None)
    assert member["share"] == pytest.approx(1.0)
    assert "revision" in status["ring"]
    assert set(status["config"]) >= {"revision", "rules", "problems"}
    assert status["config"]["problems"] == []
    assert status["backends"] == {}


def test_status_counts_the_buckets_in_memory(node: NodeProcess, key: str) -> None:
    before = get_json(node.admin, "/v1/status")["keys"]
    for number in range(20):
        check(node, "daily", f"{key}.{number}")
        check(node, "daily", f"{key}.{number}")
    assert get_json(node.admin, "/v1/status")["keys"] == before + 20


def test_metrics_are_prometheus_text_and_count_checks(node: NodeProcess, key: str) -> None:
    before = samples(node)
    with HttpClient(node.http) as client:
        for _ in range(100):
            client.check("daily", key)

    def has_grown() -> bool:
        return any(
            name.endswith("_total") and value - before.get((name, labels), 0) >= 100
            for (name, labels), value in samples(node).items()
        )

    eventually(has_grown, what="a counter that grew by the checks made")


def test_metrics_do_not_name_client_keys(node: NodeProcess) -> None:
    check(node, "daily", "a-very-private-key")
    assert "a-very-private-key" not in request(node.admin, "GET", "/metrics").body


@pytest.mark.parametrize("written", ["user:42", "a%20b", "a+b", "caf%C3%A9", "a%2Fb%3Fc"])
def test_the_only_node_owns_every_key_and_has_no_replica(node: NodeProcess, written: str) -> None:
    meant = {"a%20b": "a b", "a+b": "a b", "caf%C3%A9": "café", "a%2Fb%3Fc": "a/b?c"}.get(written, written)
    assert get_json(node.admin, f"/v1/owner?key={written}") == {
        "key": meant,
        "owner": "alone",
        "replica": None,
    }


@pytest.mark.parametrize("query", ["", "?key=", "?key=%00", "?key=%ff", "?key=" + "k" * 513])
def test_the_owner_of_no_key_is_400(node: NodeProcess, query: str) -> None:
    answer = request(node.admin, "GET", f"/v1/owner{query}")
    assert answer.status == 400
    assert answer.headers["content-type"].startswith("application/problem+json")


def test_a_bucket_can_be_looked_at_without_spending(node: NodeProcess, key: str) -> None:
    check(node, "daily", key, cost=3)
    for _ in range(2):
        bucket = get_json(node.admin, key_path("daily", key))
        assert bucket.pop("used") == pytest.approx(3, abs=0.01)
        assert bucket.pop("segment") in {"default", None}
        assert bucket == {
            "rule": "daily",
            "key": key,
            "algorithm": "token_bucket",
            "limit": 500,
            "remaining": 497,
            "owner": "alone",
            "replica": None,
        }


@pytest.mark.parametrize(
    "name", ["a/b", "/", "a//b/", "a b", "a+b", "100%", "%2F", "café", "?x=1#y", "..", ".", "🍣", "a;b", "\\"]
)
def test_any_key_can_be_named_in_a_path(node: NodeProcess, name: str) -> None:
    check(node, "daily", name, cost=7)
    bucket = get_json(node.admin, key_path("daily", name))
    assert (bucket["key"], bucket["remaining"]) == (name, 493)
    assert request(node.admin, "DELETE", key_path("daily", name)).status == 204
    assert check(node, "daily", name, cost=0).body["remaining"] == 500


def test_a_deleted_bucket_is_full_again_and_deleting_what_is_not_there_is_fine(node: NodeProcess, key: str) -> None:
    check(node, "daily", key, cost=500)
    check(node, "daily", key + "x", cost=500)
    for _ in range(2):
        answer = request(node.admin, "DELETE", key_path("daily", key))
        assert (answer.status, answer.body) == (204, "")
    assert check(node, "daily", key).body["remaining"] == 499
    assert check(node, "daily", key + "x").status == 429


def test_a_bucket_of_an_unknown_rule_is_404(node: NodeProcess, key: str) -> None:
    answer = request(node.admin, "GET", key_path("no-such-rule", key))
    assert answer.status == 404
    assert answer.headers["content-type"].startswith("application/problem+json")


def test_rules_are_listed_with_their_defaults_filled_in(node: NodeProcess) -> None:
    listed = get_json(node.admin, "/v1/rules")
    assert set(listed) == {"revision", "rules"}
    assert set(listed["rules"]) == {"api", "daily"}
    api = listed["rules"]["api"]
    expected = {
        "rate": "100/s",
        "burst": 200,
        "algorithm": "token_bucket",
        "priority": 5,
        "on_unreachable": "local",
        "durability": "async",
        "shadow": False,
        "lease": "auto",
    }
    assert {name: api.get(name) for name in expected} == expected
    assert set(api["segments"]) == {"premium", "free"}
    assert (api["segments"]["premium"]["rate"], api["segments"]["premium"]["burst"]) == ("1000/s", 2000)
    assert (api["segments"]["free"]["rate"], api["segments"]["free"]["burst"]) == ("10/s", 10)
    assert api["segments"]["free"]["algorithm"] == "token_bucket"


def test_an_unknown_admin_path_is_404(node: NodeProcess) -> None:
    assert request(node.admin, "GET", "/v1/nothing").status == 404
    assert request(node.admin, "POST", "/v1/status").status == 405


# The command line


def test_the_version_is_printed() -> None:
    result = run_cli("--version")
    assert result.code == 0
    assert re.search(r"\d+\.\d+\.\d+", result.stdout)


def test_the_log_says_whether_the_node_is_compiled(node: NodeProcess) -> None:
    (listening,) = (event for event in node.log_events if event["event"] == "listening")
    assert listening["compiled"] is any((ROOT / "limiter_node").rglob("*.so"))


def test_help_lists_the_commands() -> None:
    result = run_cli("--help")
    assert result.code == 0
    for command in ("serve", "validate", "apply", "status", "schema"):
        assert re.search(rf"^ +{command}\b", result.stdout, re.MULTILINE), command


def test_help_of_serve_lists_every_option_with_its_default_and_unit() -> None:
    result = run_cli("serve", "--help", env={"COLUMNS": "100"})
    assert result.code == 0
    blocks = re.split(r"\n +(?=--)", result.stdout)
    told = {block.split()[0]: " ".join(block.split()) for block in blocks[1:]}
    expected = {
        "--etcd": ["standalone"],
        "--rules": [],
        "--prefix": ["/limiter"],
        "--node-id": [],
        "--zone": [],
        "--http": ["127.0.0.1:8080"],
        "--admin": ["127.0.0.1:8081"],
        "--peer": ["127.0.0.1:8082"],
        "--advertise": ["--peer"],
        "--lease-ttl": ["5", "second"],
        "--replication-interval": ["20", "m"],
        "--peer-timeout": ["100", "m"],
        "--drain-delay": ["1", "second"],
        "--drain-timeout": ["10", "second"],
        "--on-unknown-rule": ["error", "allow", "deny"],
        "--max-keys": ["10000000"],
    }
    for option, words in expected.items():
        assert option in told, result.stdout
        for word in words:
            assert word.lower() in told[option].lower().replace("10_000_000", "10000000"), (option, told[option])


def serve_badly(*args: str) -> CliResult:
    """Run `serve` in a way that must make it exit by itself."""
    listen = ["--http", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--peer", "127.0.0.1:0"]
    return run_cli("serve", *listen, *args)


def test_an_option_that_cannot_be_used_is_exit_2_naming_it() -> None:
    bad = [
        ("--http", "127.0.0.1:99999"),
        ("--peer", "127.0.0.1"),
        ("--lease-ttl", "0"),
        ("--drain-timeout", "later"),
        ("--node-id", "two words"),
        ("--on-unknown-rule", "maybe"),
        ("--max-keys", "0"),
    ]
    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(lambda option: serve_badly(*option), bad))
    for (option, value), result in zip(bad, results, strict=True):
        assert result.code == 2, (option, value, result.output)
        assert option in result.output, (option, value, result.output)
        assert "Traceback" not in result.output


def test_a_port_in_use_is_a_message_and_not_a_traceback(node: NodeProcess) -> None:
    result = run_cli("serve", "--http", node.http, "--admin", "127.0.0.1:0", "--peer", "127.0.0.1:0")
    assert result.code > 0
    assert f"--http: cannot listen at {node.http}: Address already in use" in result.output
    assert "Traceback" not in result.output


def test_options_may_come_from_the_environment_and_a_restart_listens_where_it_did(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(in_yaml(RULES))
    env = {
        "LIMITER_NODE_ID": "by-env",
        "LIMITER_RULES": str(path),
        "LIMITER_ZONE": "zone-a",
        "LIMITER_ON_UNKNOWN_RULE": "deny",
        "LIMITER_DRAIN_DELAY": "0",
    }
    with NodeProcess(env=env, listen_by_env=True) as node:
        status = get_json(node.admin, "/v1/status")
        assert status["node"] == "by-env"
        assert status["ring"]["members"][0]["zone"] == "zone-a"
        assert check(node, "daily", "a").body["remaining"] == 499
        assert check(node, "no-such-rule", "a").status == 429
        addresses = (node.http, node.admin, node.peer)
        assert node.stop() == 0
        # The addresses of the first run were picked for it; now they are asked for.
        node.start()
        assert (node.http, node.admin, node.peer) == addresses
        assert check(node, "daily", "a").body["remaining"] == 499


def test_a_bad_environment_variable_is_exit_2_too() -> None:
    result = run_cli("serve", env={"LIMITER_LEASE_TTL": "0", "LIMITER_HTTP": "127.0.0.1:0"})
    assert result.code == 2
    assert "--lease-ttl" in result.output or "LIMITER_LEASE_TTL" in result.output


# Memory


def test_past_max_keys_the_keys_nearest_to_full_are_forgotten_first_and_counted() -> None:
    heavy = [f"heavy:{number}" for number in range(50)]
    with NodeProcess(rules=RULES, args=["--max-keys", "200"]) as node:
        # Nobody named this node, so it named itself.
        assert re.search(r"-[0-9a-f]{4}$", get_json(node.admin, "/v1/status")["node"])
        for key in heavy:
            check(node, "daily", key, cost=400)
        before = samples(node)
        with HttpClient(node.http) as client:
            for number in range(1000):
                assert client.check("daily", f"light:{number}").status == 200
        assert [check(node, "daily", key, cost=0).body["remaining"] for key in heavy] == [100] * 50
        assert eventually(lambda: get_json(node.admin, "/v1/status")["keys"] <= 200)
        grown = {name for (name, labels), value in samples(node).items() if value > before.get((name, labels), 0)}
        assert [name for name in grown if re.search("forg|evict|drop|max_keys", name)], sorted(grown)


# The end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_node_told_to_end_drains_and_exits_0(number: signal.Signals) -> None:
    rules = {"rules": {"daily": {"rate": "1/d", "burst": 500}}}
    with (
        NodeProcess("drains", rules=rules, args=["--drain-delay", "1", "--drain-timeout", "5"]) as node,
        HttpClient(node.http) as kept_alive,
        RawConnection(node.http) as half_way,
        RawConnection(node.http) as idle,
    ):
        assert "connection" not in kept_alive.check("daily", "a").headers
        idle.send("GET /v1/check?rule=daily&key=a HTTP/1.1\r\nHost: limiter\r\n\r\n")
        assert idle.read_answer().status == 200
        body = check_body("daily", "b")
        half_way.send(f"POST /v1/check HTTP/1.1\r\nHost: limiter\r\nContent-Length: {len(body)}\r\n\r\n{body[:9]}")

        node.process.send_signal(number)
        told_at_s = time.monotonic()
        eventually(lambda: request(node.admin, "GET", "/readyz").status == 503)
        assert request(node.admin, "GET", "/healthz").status == 200
        for answer in (kept_alive.check("daily", "a"), check(node, "daily", "a")):
            assert answer.status == 200
            assert answer.headers["connection"].lower() == "close"
        half_way.send(body[9:])
        (answer,) = half_way.read_to_end()
        assert (answer.status, answer.body["remaining"]) == (200, 499)
        assert answer.headers["connection"].lower() == "close"

        eventually(lambda: not accepts(node.http), what="the end of new connections")
        assert time.monotonic() - told_at_s >= 0.9, "new connections are served for the drain delay"
        assert node.wait(5.0 + 1.0) == 0


def accepts(address: str) -> bool:
    try:
        with socket.create_connection(split_address(address), 1.0):
            return True
    except OSError:
        return False


def test_a_request_that_never_ends_does_not_hold_up_the_exit_past_the_drain_timeout() -> None:
    args = ["--drain-delay", "0", "--drain-timeout", "1"]
    with NodeProcess("held-up", rules=RULES, args=args) as node, RawConnection(node.http) as half_way:
        half_way.send("POST /v1/check HTTP/1.1\r\nHost: limiter\r\nContent-Length: 100\r\n\r\n{")
        node.terminate()
        assert node.wait(1.0 + 1.0) == 0


def test_a_second_sigterm_ends_the_node_at_once() -> None:
    args = ["--drain-delay", "20", "--drain-timeout", "30"]
    with NodeProcess("impatient", rules=RULES, args=args) as node:
        node.terminate()
        eventually(lambda: request(node.admin, "GET", "/readyz").status == 503)
        node.terminate()
        node.wait(2.0)


def test_sighup_is_no_reason_to_end(node: NodeProcess, key: str) -> None:
    check(node, "daily", key)
    node.process.send_signal(signal.SIGHUP)
    for left in (498, 497):
        assert check(node, "daily", key).body["remaining"] == left
    assert node.is_ready()
