"""The README's examples are run as they stand; only addresses are replaced by those of the test's processes."""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.etcd_process import EtcdProcess
from tests.harness import ROOT, NodeProcess, check, eventually, get_json, run_cli

README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^\$ (.+)$", README, re.MULTILINE)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def etcd() -> Iterator[EtcdProcess]:
    with EtcdProcess() as process:
        yield process


def test_the_readme_is_short_enough_to_be_read() -> None:
    assert len(README.splitlines()) <= 400


def test_the_rules_file_and_the_curls_of_the_readme_answer_as_it_says(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(blocks("yaml")[0])
    curls = [command for command in COMMANDS if command.startswith("curl")]
    assert len(curls) == 2
    with NodeProcess(rules=rules) as node:
        answers = [
            subprocess.run(
                shlex.split(curl.replace("127.0.0.1:8080", node.http)), capture_output=True, text=True, check=True
            ).stdout
            for curl in curls
        ]
    for answer, shown in zip(answers, re.split(r"^\$ .+\n", blocks("console")[0], flags=re.MULTILINE)[1:], strict=True):
        for line in shown.splitlines():
            if line != "...":
                assert line in answer


def test_the_etcdctl_commands_of_the_readme_take_effect(etcd: EtcdProcess) -> None:
    puts = [shlex.split(command) for command in COMMANDS if command.startswith("etcdctl")]
    with NodeProcess(etcd=etcd.url) as node:
        for put in puts:
            etcd.etcdctl(*put[1:])
        eventually(lambda: get_json(node.admin, "/v1/status")["backends"].get("orders", {}).get("multiplier") == 0.3)
        assert get_json(node.admin, "/v1/status")["config"]["problems"] == []
        assert check(node, "api", "bob").body["limit"] == 200
        assert check(node, "api", "alice").body["limit"] == 2000
        assert check(node, "api", "10.1.2.3").body["limit"] == 5
        assert check(node, "api", "10.1.2.4").body["limit"] == 20
        assert check(node, "api", "tenant-a:7").body["limit"] == 2000


def test_applying_the_rules_file_of_the_readme_says_what_it_shows(etcd: EtcdProcess, tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(blocks("yaml")[0])
    puts, shown = blocks("console")[1:3]
    for put in re.findall(r"^\$ (etcdctl .+)$", puts, re.MULTILINE):
        etcd.etcdctl(*shlex.split(put)[1:])
    command, output = shown.removeprefix("$ limiter-node ").split("\n", 1)
    arguments = command.replace("http://127.0.0.1:2379", etcd.url).replace("rules.yaml", str(tmp_path / "rules.yaml"))
    assert run_cli(*arguments.split()).output == output


def test_the_worked_example_of_the_readme_comes_out_as_told(etcd: EtcdProcess) -> None:
    with NodeProcess(etcd=etcd.url) as node:

        def change(burst: int) -> None:
            etcd.etcdctl("put", "/limiter/rules/example", json.dumps({"rate": "1/d", "burst": burst}))
            eventually(lambda: get_json(node.admin, "/v1/rules")["rules"].get("example", {}).get("burst") == burst)

        left = []
        for burst, checks in ((100, 2), (10, 2), (200, 1)):
            change(burst)
            left += [check(node, "example", "bob").body["remaining"] for _ in range(checks)]
        assert left == [99, 98, 7, 6, 195]


def test_every_option_is_in_the_readme_and_every_option_of_the_readme_exists() -> None:
    named = set(re.findall(r"`?(--[a-z][a-z-]+)", README.split("## Configuration")[1].split("## Operating")[0]))
    in_help = set(re.findall(r"^\s+(--[a-z][a-z-]+) ", run_cli("serve", "--help").output, re.MULTILINE))
    assert named - {"--help"} == in_help - {"--help"}
