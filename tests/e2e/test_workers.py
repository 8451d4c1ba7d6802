"""Nodes with several workers, real processes: one count per key, one admin address, and whoever dies is back."""

import json
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.etcd_process import EtcdProcess
from tests.fleet import PATIENT, daily, metric
from tests.harness import NodeProcess, check, eventually, get_json, key_path, request, run_cli

TWO = ("--workers", "2")
RULES = {"rules": {"api": daily(10), "more": daily(1000)}}


def status(node: NodeProcess) -> Any:
    return get_json(node.admin, "/v1/status")


def workers(node: NodeProcess) -> dict[str, Any]:
    return {worker["id"]: worker for worker in status(node)["workers"]}


def granted(node: NodeProcess, key: str, times: int, rule: str = "api") -> int:
    """Of so many checks, each on a connection of its own, so that the kernel chooses a worker for each."""
    answers = [check(node, rule, key) for _ in range(times)]
    assert {answer.status for answer in answers} <= {200, 429}, answers
    assert not any(answer.body["degraded"] for answer in answers)
    return sum(answer.status == 200 for answer in answers)


def owned_by(worker: str, node: NodeProcess, count: int) -> list[str]:
    keys = (f"client:{number}" for number in range(10_000))
    owned = (key for key in keys if get_json(node.admin, f"/v1/owner?key={key}")["owner"] == worker)
    return [key for key, _ in zip(owned, range(count), strict=False)]


def has_replicated(node: NodeProcess) -> bool:
    told = status(node)
    is_due = any(told["handover"]["due"].values()) or told["replication_lag_ms"] > 0
    return not is_due and metric(node, "limiter_replication_due_copies") == 0


def is_whole(node: NodeProcess) -> bool:
    return all(worker["ready"] and not worker["fenced"] for worker in workers(node).values())


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def kill(node: NodeProcess, name: str) -> None:
    """SIGKILL a worker; it takes a moment, in which the kernel still queues connections for the dead."""
    pid = workers(node)[name]["pid"]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: workers(node)[name]["pid"] != pid)


def log_of(node: NodeProcess, event: str) -> list[dict[str, Any]]:
    return [line for line in node.log_events if line["event"] == event]


# Standalone


@pytest.fixture
def alone() -> Iterator[NodeProcess]:
    with NodeProcess("alone", rules=RULES, args=(*TWO, *PATIENT, "--drain-delay", "0")) as node:
        yield node


def test_a_standalone_node_keeps_one_count_per_key_whoever_dies(alone: NodeProcess) -> None:
    assert [granted(alone, key, 12) for key in ("a", "b", "c", "d")] == [10, 10, 10, 10]
    assert metric(alone, "limiter_checks_total", rule="api") == 48
    eventually(lambda: has_replicated(alone))
    told = status(alone)
    assert (told["node"], told["standalone"], told["ready"], told["leader"]) == ("alone", True, True, "alone.1")
    assert told["addresses"] == {"http": alone.http, "admin": alone.admin, "peer": alone.peer}
    assert (told["keys"], [member["id"] for member in told["ring"]["members"]]) == (8, ["alone.1", "alone.2"])

    spent = owned_by("alone.1", alone, 5)
    assert [granted(alone, key, 7, "more") for key in spent] == [7] * 5
    eventually(lambda: has_replicated(alone))
    dead = workers(alone)["alone.1"]["pid"]
    kill(alone, "alone.1")
    # Its replica decides at once, and a connection goes to whoever listens.
    assert [check(alone, "more", key).body["remaining"] for key in spent] == [992] * 5
    assert request(alone.admin, "GET", "/readyz").status == 200
    eventually(lambda: is_whole(alone), 20, "both workers ready")
    back = workers(alone)["alone.1"]
    assert (back["pid"] != dead, back["restarts"]) == (True, 1)
    assert metric(alone, "limiter_worker_restarts_total", worker="alone.1") == 1
    assert [check(alone, "more", key).body["remaining"] for key in spent] == [991] * 5
    assert status(alone)["leader"] == "alone.2"
    assert metric(alone, "limiter_checks_total", rule="api") == 48  # what the dead one has counted, too
    [died] = log_of(alone, "worker died, starting it again")
    assert (died["worker"], died["code"], died["node"]) == ("alone.1", -9, "alone")

    # Rules are read by every worker; SIGHUP reaches them all.
    alone.write_rules({"rules": {"api": daily(20)}})
    eventually(lambda: {check(alone, "api", "a", cost=0).body["limit"] for _ in range(20)} == {20})
    alone.process.send_signal(signal.SIGHUP)
    eventually(
        lambda: {line["node"] for line in log_of(alone, "reloading certificates and tokens")} == {"alone.1", "alone.2"}
    )

    # Nobody would start them again: without their supervisor they drain.
    pids = [worker["pid"] for worker in workers(alone).values()]
    os.kill(alone.pid, signal.SIGKILL)
    eventually(lambda: not any(map(is_running, pids)), 20, "the end of the workers")
    assert {line["why"] for line in log_of(alone, "draining")} == {"the supervisor is gone"}
    assert len(log_of(alone, "stopped")) == 2


def test_a_second_signal_ends_all_workers_at_once() -> None:
    with NodeProcess("alone", args=(*TWO, "--drain-delay", "9")) as node:
        pids = [worker["pid"] for worker in workers(node).values()]
        node.terminate()
        eventually(lambda: len(log_of(node, "draining")) == 3)
        assert request(node.admin, "GET", "/readyz").status == 503
        node.terminate()
        assert node.wait() == 1
        eventually(lambda: not any(map(is_running, pids)))


def test_what_keeps_a_node_from_starting_is_told_once(tmp_path: Path) -> None:
    bad = tmp_path / "rules.json"
    bad.write_text(json.dumps({"rules": {"api": {"rate": "1"}}}))
    listen = ("--http", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--peer", "127.0.0.1:0")
    told = run_cli("serve", "--workers", "3", *listen, "--rules", str(bad))
    assert (told.code, told.output.count("rules/api: rate:")) == (2, 1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for option in ("--http", "--peer"):  # of the supervisor, and of the first worker
            told = run_cli("serve", "--workers", "3", *listen, option, address)
            assert (told.code, told.output.lower().count("address already in use")) == (1, 1), told
            assert "Traceback" not in told.output


def test_one_worker_is_no_extra_process() -> None:
    with NodeProcess("alone", args=("--workers", "1")) as node:
        assert not Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text()
        assert "workers" not in status(node)


# In a fleet


@pytest.fixture
def hosts() -> Iterator[tuple[NodeProcess, NodeProcess]]:
    """Two nodes as on two hosts, of two workers each."""
    with EtcdProcess() as etcd:
        for rule, document in RULES["rules"].items():
            etcd.etcdctl("put", f"/limiter/rules/{rule}", json.dumps(document))
        nodes = (
            NodeProcess("a", etcd=etcd.url, args=(*TWO, *PATIENT)),
            NodeProcess("b", etcd=etcd.url, args=(*TWO, *PATIENT)),
        )
        nodes[1].peer = "127.0.0.2:0"
        try:
            with ThreadPoolExecutor() as pool:
                list(pool.map(NodeProcess.start, nodes))
            yield nodes
        finally:
            for node in nodes:
                node.close()


def test_a_fleet_of_nodes_with_workers_is_exact_whoever_dies_or_leaves(hosts: tuple[NodeProcess, NodeProcess]) -> None:
    a, b = hosts
    names = ["a.1", "a.2", "b.1", "b.2"]
    for node in hosts:
        eventually(lambda node=node: [one["id"] for one in status(node)["ring"]["members"]] == names, 10)  # type: ignore[misc]

    # One count per key, whichever host and worker is asked; each copy is on the other host.
    keys = [f"user:{number}" for number in range(8)]
    assert [granted(a, key, 6) + granted(b, key, 6) for key in keys] == [10] * 8
    homes = [get_json(b.admin, f"/v1/owner?key={key}") for key in keys]
    assert all(home["owner"][0] != home["replica"][0] for home in homes), homes
    assert metric(a, "limiter_checks_total", rule="api") == metric(b, "limiter_checks_total", rule="api") == 48

    # The admin address speaks for all workers, and for the fleet.
    assert sum(owned["limit"] - owned["remaining"] for key in keys for owned in [_bucket(a, key)]) == 80
    assert request(a.admin, "DELETE", key_path("api", "a/b ..")).status == 204
    assert get_json(a.admin, key_path("api", "a/b .."))["key"] == "a/b .."
    assert get_json(a.admin, "/v1/rules")["rules"].keys() == {"api", "more"}
    eventually(lambda: {row["id"] for row in get_json(b.admin, "/v1/fleet")["nodes"] if row["answers"]} == set(names))
    shown = run_cli("status", "--admin", b.admin).stdout
    assert all(f"\n{name}" in shown for name in (*names, "WORKER"))

    # A worker is killed: its keys live on at the other host, and it comes back to them.
    spent = owned_by("a.1", b, 10)
    assert [granted(b, key, 3, "more") for key in spent] == [3] * 10
    eventually(lambda: has_replicated(a) and has_replicated(b))
    kill(a, "a.1")
    assert [check(node, "more", key).body["remaining"] for node in hosts for key in spent] == [996] * 10 + [995] * 10
    eventually(lambda: is_whole(a), 20, "both workers ready")
    assert workers(a)["a.1"]["restarts"] == 1
    assert [check(b, "more", key).body["remaining"] for key in spent] == [994] * 10

    # A node leaves: all that its workers know goes to the other one.
    pids = [worker["pid"] for worker in workers(a).values()]
    assert a.stop() == 0
    assert not any(map(is_running, pids))
    assert not log_of(a, "not all keys were handed over in time")
    eventually(lambda: [member["id"] for member in status(b)["ring"]["members"]] == names[2:])
    assert [check(b, "more", key).body["remaining"] for key in spent] == [993] * 10
    assert [granted(b, key, 1) for key in keys] == [0] * 8

    # And the last one: nobody is left to wait for.
    assert b.stop() == 0
    assert not log_of(b, "etcd did not confirm the leave; the lease will run out")


def _bucket(node: NodeProcess, key: str) -> Any:
    return get_json(node.admin, key_path("api", key))
