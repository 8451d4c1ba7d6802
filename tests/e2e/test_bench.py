"""The bench runs, and what it measures beside a node limits each key, too."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from bench.servers import CHECKOUT, Cores, Numbers, Stage
from bench.speed import NGINX, SYSTEMS

SLOW = Numbers(count=2, period_s=86_400, burst=2)
CORES = Cores(*sorted(os.sched_getaffinity(0))[:2])


def status(address: str, key: str) -> int:
    """What a check of that key is answered."""
    try:
        with urllib.request.urlopen(f"http://{address}/v1/check?rule=bench&key={key}", timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as denied:
        return denied.code


@pytest.mark.parametrize("name", [name for name in SYSTEMS if name != NGINX])
def test_every_system_denies_a_key_past_its_burst_and_no_other(name: str) -> None:
    with Stage() as stage:
        system = SYSTEMS[name](stage, CORES, SLOW)
        # nginx lets one through beyond its burst.
        assert [status(system.http, "greedy") for _ in range(4)] in ([200, 200, 429, 429], [200, 200, 200, 429])
        assert status(system.http, "modest") == 200


def test_a_quick_run_of_one_system_writes_its_report(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.run", "--quick", "--only", "GCRA", "--report", str(tmp_path)]
    done = subprocess.run(
        [*command, "local", "footprint"], cwd=CHECKOUT, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    parts = json.loads((tmp_path / "speed.json").read_text())["parts"]
    (run,) = parts["local"]["runs"]["aiohttp + GCRA Lua on Redis"]
    assert run["checks_per_s"] > 0
    assert run["cpu_us"] > 0
    assert parts["footprint"]["bytes_per_key"].keys() == {"aiohttp + GCRA Lua on Redis"}
    assert "aiohttp + GCRA Lua on Redis" in (tmp_path / "speed.md").read_text()
