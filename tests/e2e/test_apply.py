"""`limiter-node apply` on a real etcd: what it writes, tells and leaves alone, also while others write."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from limiter_node.cli import main
from limiter_node.control.apply import OPERATIONS_MAX, TRIES, NotApplied, _batches, apply
from limiter_node.control.changes import Change
from limiter_node.control.etcd_link import EtcdConfig
from tests.etcd_process import EtcdProcess
from tests.harness import CliResult, run_cli
from tests.ports import free_ports

PREFIX = "/limiter"
RULES = """
rules:
  api: {rate: 100/d, burst: 200}
  login: {rate: 5/m}
keys:
  alice: {segment: premium}
backends:
  orders: {slo_ms: 250}
"""


@pytest.fixture(scope="module")
def server() -> Iterator[EtcdProcess]:
    with EtcdProcess() as process:
        yield process


@pytest.fixture
def etcd(server: EtcdProcess) -> EtcdProcess:
    server.etcdctl("del", "--prefix", "")
    return server


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rules.yaml"
    path.write_text(RULES)
    return path


def run(etcd: EtcdProcess, *args: str | Path, env: dict[str, str] | None = None) -> CliResult:
    """As `run_cli`, in this process, which saves the half second that a new one takes."""
    done = CliRunner(env=env).invoke(main, ["apply", *map(str, args), "--etcd", etcd.url])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    return CliResult(done.exit_code, done.stdout, done.stderr)


def held(etcd: EtcdProcess) -> dict[str, str]:
    lines = etcd.etcdctl("get", "--prefix", "").splitlines()
    return dict(zip(lines[::2], lines[1::2], strict=True))


def revision(etcd: EtcdProcess) -> int:
    return int(json.loads(etcd.etcdctl("get", "x", "-w", "json"))["header"]["revision"])


def test_a_file_is_written_by_one_transaction_and_then_nothing_more(etcd: EtcdProcess, file: Path) -> None:
    before = revision(etcd)
    first = run(etcd, file)
    assert (first.code, first.stdout.splitlines()) == (
        0,
        [
            "+ rules/api",
            "+ rules/login",
            "+ keys/alice",
            "+ backends/orders",
            "4 added, 0 changed, 0 deleted, 0 unchanged",
        ],
    )
    assert revision(etcd) == before + 1
    assert {key: json.loads(value) for key, value in held(etcd).items()} == {
        "/limiter/rules/api": {"rate": "100/d", "burst": 200},
        "/limiter/rules/login": {"rate": "5/m"},
        "/limiter/keys/alice": {"segment": "premium"},
        "/limiter/backends/orders": {"slo_ms": 250},
    }
    again = run(etcd, file)
    assert (again.code, again.stdout) == (0, "0 added, 0 changed, 0 deleted, 4 unchanged\n")
    assert revision(etcd) == before + 1


def test_a_dry_run_tells_what_the_run_will_and_writes_nothing(etcd: EtcdProcess, file: Path) -> None:
    etcd.etcdctl("put", "/limiter/rules/api", '{"rate": "50/d"}')
    etcd.etcdctl("put", "/limiter/keys/old", '{"segment": "x"}')
    before = held(etcd)
    dry = run(etcd, file, "--dry-run", "--prune")
    assert (dry.code, held(etcd)) == (0, before)
    wet = run(etcd, file, "--prune")
    *changes, counts = wet.stdout.splitlines()
    assert changes[0] == "~ rules/api: rate 50/d -> 100/d, burst unset -> 200"
    assert changes[-1] == "- keys/old"
    assert dry.stdout.splitlines() == [*changes, f"would be {counts}; nothing was written"]


def test_prune_deletes_what_people_write_and_nothing_else(etcd: EtcdProcess, file: Path) -> None:
    others = {
        "/limiter/multipliers/orders": '{"multiplier": 0.5, "pinned": true}',
        "/limiter/health/orders": "{}",
        "/limiter/nodes/n1": "{}",
        "/limiter/leader": "n1",
        "/limiter/rulesets/x": "{}",
        "/limiter2/rules/x": "{}",
    }
    for key, value in {
        **others,
        "/limiter/rules/old": "{}",
        "/limiter/keys/a/b": "{",
        "/limiter/backends/z": "{}",
    }.items():
        etcd.etcdctl("put", key, value)
    assert run(etcd, file).code == 0
    assert "/limiter/rules/old" in held(etcd)
    pruned = run(etcd, file, "--prune")
    assert pruned.stdout.splitlines()[:3] == ["- backends/z", "- keys/a/b", "- rules/old"]
    assert {key: value for key, value in held(etcd).items() if key in others} == others
    assert len(held(etcd)) == len(others) + 4


def test_a_file_with_a_problem_writes_nothing(etcd: EtcdProcess, file: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("rules:\n  web: {rate: 1/s, brust: 3}\n")
    result = run(etcd, file, bad)
    assert result.code == 1
    assert result.output.startswith(f"{bad}:2: rules/web: brust: unknown field")
    assert held(etcd) == {}


def test_a_document_in_two_files_is_a_problem(etcd: EtcdProcess, file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("rules: {login: {rate: 9/m}, web: {rate: 1/s}}")
    result = run(etcd, file, other)
    assert (result.code, held(etcd)) == (1, {})
    assert result.output == f"{other}: rules/login: is in {file} too; allowed: in one file\n"


def test_more_than_one_transaction_takes_is_said_and_written(etcd: EtcdProcess, tmp_path: Path) -> None:
    many = tmp_path / "many.json"
    many.write_text(json.dumps({"keys": {f"user:{n}": {"segment": "x"} for n in range(300)}}))
    before = revision(etcd)
    result = run(etcd, many, "--prefix", "/a/b")
    assert (result.code, revision(etcd) - before, len(held(etcd))) == (0, 3, 300)
    assert "300 changes need 3 transactions of at most 128" in result.output
    assert result.stdout.splitlines()[-2:] == [
        "... and 200 more additions and changes",
        "300 added, 0 changed, 0 deleted, 0 unchanged",
    ]
    assert run(etcd, many, "--prefix", "/a/b").stdout == "0 added, 0 changed, 0 deleted, 300 unchanged\n"


class Meddler:
    """Writes the same key between the plan and its transaction, so many times."""

    def __init__(self, etcd: EtcdProcess, times: int, key: str = "rules/api") -> None:
        self.etcd = etcd
        self.times = times
        self.key = key
        self.plans: list[list[str]] = []
        self.crossings = 0

    def planned(self, changes: Sequence[Change], transactions: int) -> None:
        self.plans.append([str(change) for change in changes])
        if len(self.plans) <= self.times:
            self.etcd.etcdctl("put", f"/limiter/{self.key}", json.dumps({"rate": f"{len(self.plans)}/s"}))

    def written(self, changes: Sequence[Change]) -> None:
        pass

    def crossed(self) -> None:
        self.crossings += 1


WANTED: dict[str, Any] = {"rules/api": {"rate": "100/s"}, "rules/web": {"rate": "7/s"}}


def write(etcd: EtcdProcess, listener: Meddler, wanted: dict[str, Any] = WANTED) -> None:
    config = EtcdConfig(endpoints=(etcd.url,), prefix=PREFIX, lease_ttl_s=15)
    asyncio.run(apply(config, wanted, listener, prune=False, dry_run=False))


def test_a_change_by_somebody_else_meanwhile_is_looked_at_before_it_is_overwritten(etcd: EtcdProcess) -> None:
    meddler = Meddler(etcd, times=2)
    write(etcd, meddler)
    assert meddler.crossings == 2
    assert meddler.plans == [
        ["+ rules/api", "+ rules/web"],
        ["~ rules/api: rate 1/s -> 100/s", "+ rules/web"],
        ["~ rules/api: rate 2/s -> 100/s", "+ rules/web"],
    ]
    assert {key: json.loads(value)["rate"] for key, value in held(etcd).items()} == {
        "/limiter/rules/api": "100/s",
        "/limiter/rules/web": "7/s",
    }


def test_of_several_transactions_only_what_is_left_is_planned_again(etcd: EtcdProcess) -> None:
    wanted = {f"rules/r{n}": {"rate": "100/s"} for n in range(OPERATIONS_MAX + 3)}
    meddler = Meddler(etcd, times=1, key=f"rules/r{OPERATIONS_MAX + 1}")
    write(etcd, meddler, wanted)
    assert meddler.plans[1] == [
        f"+ rules/r{OPERATIONS_MAX}",
        f"~ rules/r{OPERATIONS_MAX + 1}: rate 1/s -> 100/s",
        f"+ rules/r{OPERATIONS_MAX + 2}",
    ]
    assert {json.loads(value)["rate"] for value in held(etcd).values()} == {"100/s"}


def test_it_gives_up_on_keys_that_never_hold_still_and_has_written_nothing(etcd: EtcdProcess) -> None:
    with pytest.raises(NotApplied, match="others keep changing the same keys"):
        write(etcd, Meddler(etcd, times=TRIES))
    assert held(etcd) == {"/limiter/rules/api": json.dumps({"rate": f"{TRIES}/s"})}


def test_the_endpoints_are_tried_in_turn_and_named_when_none_answers(etcd: EtcdProcess, file: Path) -> None:
    dead = [f"http://127.0.0.1:{port}" for port in free_ports(2)]
    assert run_cli("apply", str(file), "--etcd", f"{dead[0]},{etcd.url}").code == 0
    result = run_cli("apply", str(file), "--etcd", ",".join(dead))
    assert result.code == 1
    assert result.output.startswith("limiter-node: etcd could not be used; tried:\n")
    assert all(f"  {url}: UNAVAILABLE: " in result.output for url in dead)
    assert "Traceback" not in result.output


def test_wrong_options_are_exit_2_and_name_what_is_allowed(file: Path) -> None:
    assert run_cli("apply", str(file)).code == 2
    result = run_cli("apply", str(file), "--etcd", "nowhere", "--prefix", "x", "--etcd-user", "u")
    assert result.code == 2
    for option in ("--etcd:", "--prefix:", "--etcd-user and --etcd-password:"):
        assert f"limiter-node: {option}" in result.output


def test_tls_and_a_log_in_work_as_with_serve(file: Path) -> None:
    with EtcdProcess(tls=True) as etcd:
        etcd.enable_auth("root-password", limiter="secret")
        tls = etcd.certificates
        assert tls is not None
        options: list[str | Path] = [
            "--etcd-ca",
            tls.ca,
            "--etcd-cert",
            tls.cert,
            "--etcd-key",
            tls.key,
            "--etcd-user",
            "limiter",
        ]
        refused = run(etcd, file, *options, env={"LIMITER_ETCD_PASSWORD": "no"})
        assert refused.code == 1
        assert "authentication failed" in refused.output
        done = run(etcd, file, *options, env={"LIMITER_ETCD_PASSWORD": "secret"})
        assert done.code == 0, done.output
        assert len(held(etcd)) == 4


@pytest.mark.parametrize(
    ("sizes", "batches"),
    [
        ([], []),
        ([10] * OPERATIONS_MAX, [OPERATIONS_MAX]),
        ([10] * (OPERATIONS_MAX + 1), [OPERATIONS_MAX, 1]),
        ([400_000, 400_000, 400_000, 10], [2, 2]),
        ([2_000_000, 10, 2_000_000], [1, 1, 1]),
    ],
)
def test_a_transaction_is_bounded_in_operations_and_bytes(sizes: list[int], batches: list[int]) -> None:
    changes = [Change("keys/k", None, b"x" * size, 0) for size in sizes]
    found = list(_batches(changes))
    assert [len(batch) for batch in found] == batches
    assert [change for batch in found for change in batch] == changes
