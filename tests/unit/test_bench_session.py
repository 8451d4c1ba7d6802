"""A run of the bench: what fails does not take the rest with it, and no part replaces a report of everything."""

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import session
from bench.servers import ServerError

PARTS = ("local", "memory")


def fail() -> Any:
    raise ServerError("nginx ended")


def test_a_part_that_fails_leaves_the_others_their_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # this process is ended as it always was
    written = []
    with pytest.raises(SystemExit) as ended:
        session.run(
            {"machine": "a small one"},
            {"local": fail, "memory": lambda: {"sizes": (1, 2)}},
            lambda results, folder: written.append((results, folder)),
            tmp_path,
        )
    assert ended.value.code == 1
    ((results, folder),) = written
    assert folder == tmp_path
    assert results["parts"] == {"memory": {"sizes": [1, 2]}}
    assert results["facts"]["failed"] == "local"
    assert "nginx ended" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [
        ([], session.REPORT),
        (["--quick"], None),
        (["memory"], None),
        (["memory", "--report", "elsewhere"], Path("elsewhere")),
    ],
)
def test_only_a_run_of_everything_replaces_the_report(
    arguments: list[str], folder: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    parser = argparse.ArgumentParser()
    session.add_arguments(parser, PARTS)
    assert session.parse(parser, PARTS).report == folder
