"""`limiter-node status` of a real node: the tables, the document, and whom it asked in vain."""

import json
from collections.abc import Iterator

import pytest

from tests.harness import NodeProcess, check, get_json, run_cli
from tests.ports import free_port

RULES = {"rules": {"api": {"rate": "1/d", "backend": "orders"}}, "backends": {"orders": {}}}


@pytest.fixture(scope="module")
def node() -> Iterator[NodeProcess]:
    with NodeProcess("alone", rules=RULES) as process:
        yield process


def test_a_node_is_shown_with_its_ring_and_its_backends(node: NodeProcess) -> None:
    check(node, "api", "bob")
    result = run_cli("status", "--admin", node.admin)
    assert result.code == 0, result.output
    rows = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line}
    assert rows["node"][1] == "alone"
    assert rows["alone"] == ["alone", "-", "100.0%", node.peer, "this", "node"]
    assert rows["orders"][:3] == ["orders", "1", "normal"]
    assert rows["keys"][1:3] == ["1", "bucket"]
    assert f"http {node.http}, admin {node.admin}, peer {node.peer}" in result.stdout


def test_json_is_the_document_itself(node: NodeProcess) -> None:
    result = run_cli("status", "--json", "--admin", f"http://{node.admin}/")
    assert json.loads(result.stdout) == get_json(node.admin, "/v1/status")


def test_the_address_in_the_environment_may_be_the_one_that_serve_takes(node: NodeProcess) -> None:
    everywhere = node.admin.replace("127.0.0.1", "0.0.0.0")
    assert run_cli("status", env={"LIMITER_ADMIN": everywhere}).code == 0


def test_an_address_where_no_node_answers_is_told(node: NodeProcess) -> None:
    for address, reason in (
        (f"127.0.0.1:{free_port()}", "cannot be read, Connection refused"),
        (node.http, "answered 404 Not Found"),
        (node.peer, "was not answered in HTTP"),
    ):
        result = run_cli("status", "--admin", address)
        assert result.code == 1
        assert result.output.startswith(f"limiter-node: http://{address}/v1/status {reason}")
        assert "is that its --admin address?" in result.output
        assert "Traceback" not in result.output


def test_a_wrong_address_is_exit_2() -> None:
    result = run_cli("status", "--admin", "localhost")
    assert result.code == 2
    assert result.output.startswith("limiter-node: --admin: 'localhost' is no address; allowed: HOST:PORT")
