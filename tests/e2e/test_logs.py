"""Logs: a line for each event that matters, with what changed and why; checks only when asked for, under one id."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.etcd_process import EtcdProcess
from tests.fleet import PATIENT, Fleet
from tests.harness import ROOT, NodeProcess, check, check_body, eventually, request

if TYPE_CHECKING:
    from pathlib import Path

RULE = {"rate": "10/s", "burst": 5}
AT_ONCE = ("--drain-delay", "0")


def events(node: NodeProcess, name: str) -> list[dict[str, Any]]:
    return [event for event in node.log_events if event["event"] == name]


def ask(node: NodeProcess, key: str, request_id: str | None = None) -> None:
    headers = {} if request_id is None else {"X-Request-Id": request_id}
    assert request(node.http, "GET", f"/v1/check?rule=api&key={key}", headers=headers).status in {200, 429}


def test_a_change_of_a_rule_is_told_field_by_field_and_none_is_told_of_what_stays() -> None:
    rules = {"api": RULE, "other": RULE}
    with NodeProcess("n1", rules={"rules": rules}, args=AT_ONCE).start() as node:
        node.write_rules({"rules": {"api": {**RULE, "rate": "20/s"}, "other": RULE}})
        eventually(lambda: events(node, "configuration changed"), what="the change in the log")
        node.write_rules({"rules": {"api": {**RULE, "rate": "20/s"}}})
        eventually(lambda: events(node, "configuration removed"), what="the removal in the log")
        assert node.stop() == 0
    assert {event["key"] for event in events(node, "configuration added")} == {"rules/api", "rules/other"}
    (changed,) = events(node, "configuration changed")
    assert (changed["key"], changed["changes"]) == ("rules/api", {"rate": ["10/s", "20/s"]})
    assert [event["key"] for event in events(node, "configuration removed")] == ["rules/other"]
    assert [event["why"] for event in events(node, "draining")] == ["SIGTERM"]
    assert {event["node"] for event in node.log_events} == {"n1"}
    assert list(node.log_events[0])[:4] == ["timestamp", "level", "node", "event"]


def test_for_people_a_line_is_text(tmp_path: Path) -> None:
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps({"rules": {"api": RULE}}))
    command = [sys.executable, "-m", "limiter_node", "serve", "--log-format", "human", "--node-id", "n1"]
    for listener in ("--http", "--admin", "--peer"):
        command += [listener, "127.0.0.1:0"]
    command += ["--rules", str(rules), "--drain-delay", "0"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as node:
        assert node.stderr is not None
        lines: list[str] = []
        while not (lines and "ready" in lines[-1]):
            lines.append(node.stderr.readline())
            assert lines[-1], lines
        node.terminate()
        lines += node.stderr.readlines()
    line = next(line for line in lines if "configuration added" in line)
    assert re.match(r"\d\d:\d\d:\d\d\.\d+ \[info +\] configuration added +key=rules/api node=n1 value=", line)
    assert "\x1b" not in line  # no terminal, no colours


@pytest.mark.parametrize("options", [(), ("--log-checks", "1")], ids=["as usual", "when asked for"])
def test_checks_are_told_only_when_asked_for(options: tuple[str, ...]) -> None:
    with NodeProcess(rules={"rules": {"api": RULE}}, args=(*AT_ONCE, *options)).start() as node:
        for number in range(7):
            ask(node, "bob", f"id-{number}")
        assert check(node, "api", "alice").status == 200
        bodies = [json.loads(check_body("api", "carol")), {"rule": "nosuch", "key": "x"}]
        answer = request(node.http, "POST", "/v1/check/batch", json.dumps({"checks": bodies}), {"X-Request-Id": "b 1"})
        assert [result.get("allowed") for result in answer.body["results"]] == [True, None]
        node.stop()
    told = events(node, "check")
    if not options:
        assert told == []
        return
    assert [event["request_id"] for event in told[:7]] == [f"id-{number}" for number in range(7)]
    assert [event["allowed"] for event in told[:7]] == [True] * 5 + [False] * 2
    assert told[6]["retry_after_s"] > 0
    assert [(event["key"], event.get("problem")) for event in told[7:]] == [
        ("alice", None),
        ("carol", None),
        ("x", "rule: 'nosuch' does not exist"),
    ]
    # Whatever is no good as an id is replaced.
    assert all(re.fullmatch("[0-9a-f]{16}", event["request_id"]) for event in told[7:])


def test_a_fraction_of_the_checks_is_told() -> None:
    with NodeProcess(rules={"rules": {"api": RULE}}, args=(*AT_ONCE, "--log-checks", "0.2")).start() as node:
        for number in range(200):
            ask(node, f"client-{number}")
        node.stop()
    assert 10 <= len(events(node, "check")) <= 80


def test_a_request_id_goes_with_a_check_to_the_node_that_decides_it() -> None:
    with EtcdProcess() as etcd, Fleet(etcd, args=PATIENT) as fleet:
        fleet.put("rules/api", RULE)
        asked, owner, other = fleet.nodes
        # A node that tells checks sits beside nodes that tell only what they are asked to.
        with NodeProcess("teller", etcd=etcd.url, args=(*PATIENT, *AT_ONCE, "--log-checks", "1")).start() as teller:
            fleet.wait_members([*fleet.nodes, teller])
            (key,) = fleet.owned_by(owner, 1)
            ask(teller, key, "trace-me")
            ask(asked, key, "tell-nobody")
            eventually(lambda: events(owner, "check for a peer"), what="the owner's line")
            teller.stop()
        fleet.wait_members(fleet.nodes)
        (first,) = events(teller, "check")
        assert (first["request_id"], first["key"], first["path"], first["owner"]) == (
            "trace-me",
            key,
            "forwarded",
            "n2",
        )
        assert [
            (event["request_id"], event["key"], event["allowed"]) for event in events(owner, "check for a peer")
        ] == [("trace-me", key, True)]
        assert not events(asked, "check") + events(other, "check for a peer")
        ring = [event for event in events(other, "ring changed") if "joined" in event or "left" in event]
        assert ring[-2]["joined"] == ["teller"]
        assert ring[-1]["left"] == ["teller"]
