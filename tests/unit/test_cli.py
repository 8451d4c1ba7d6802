"""What the command line takes for options that the settings never see as they were written."""

import os

import click
import pytest
from click.testing import CliRunner

from limiter_node import cli


@pytest.mark.parametrize("count", ["0", "65", "-1", "many", "", "1.5"])
def test_a_count_of_workers_that_is_none_is_refused_with_what_is_allowed(count: str) -> None:
    result = CliRunner().invoke(cli.main, ["serve", "--workers", count])
    assert result.exit_code == 2
    assert "Invalid value for '--workers'" in result.output
    assert "allowed: 1 to 64, or auto" in result.output


@pytest.mark.parametrize("command", [command for command in cli.main.commands if not cli.main.commands[command].hidden])
def test_every_option_can_be_given_by_the_environment_and_is_explained(command: str) -> None:
    for option in cli.main.commands[command].params:
        if isinstance(option, click.Option):
            assert option.envvar == f"LIMITER_{str(option.name).upper()}"
            assert option.show_envvar
            assert option.help


def test_auto_is_a_worker_for_each_core_that_may_be_used() -> None:
    serve = cli.main.commands["serve"]
    options = serve.make_context("serve", ["--workers", "auto"]).params
    assert options["workers"] == len(os.sched_getaffinity(0))
    assert serve.make_context("serve", []).params["workers"] == 1


def test_a_worker_is_started_by_nobody_but_its_supervisor() -> None:
    result = CliRunner().invoke(cli.main, ["worker"])
    assert result.exit_code == 2
    assert "started by serve --workers" in result.output
