"""The commands."""

from __future__ import annotations

import secrets
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import structlog
import uvloop

from limiter_node import __version__, settings
from limiter_node.control.rules_file import check_file
from limiter_node.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import EventDict, Processor

_Command = TypeVar("_Command", bound="Callable[..., Any]")


def _option(name: str, help_text: str, **kwargs: Any) -> Callable[[_Command], _Command]:
    """An option that is also `LIMITER_<NAME>` in the environment, and says so."""
    variable = "LIMITER_" + name.removeprefix("--").replace("-", "_").upper()
    shows = kwargs.get("default") is not None
    return click.option(name, envvar=variable, show_envvar=True, show_default=shows, help=help_text, **kwargs)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="limiter-node")
def main() -> None:
    """A distributed rate limiter: ask any node, one node owns each key, counts are exact.

    A single limiter with its rules in a file:

        limiter-node serve --rules rules.yaml

    A node of a fleet, its rules in etcd:

        limiter-node serve --etcd http://127.0.0.1:2379

    Then ask:

        curl 'http://127.0.0.1:8080/v1/check?rule=api&key=user:42'
    """


@main.command()
@_option("--etcd", "etcd client endpoints. None: standalone, one node without etcd.", metavar="URL[,URL...]")
@_option("--etcd-ca", "PEM file of the authority that signed etcd's certificate.", metavar="FILE")
@_option("--etcd-cert", "PEM file of this node's client certificate for etcd.", metavar="FILE")
@_option("--etcd-key", "PEM file of the key to --etcd-cert.", metavar="FILE")
@_option("--etcd-user", "User name for etcd.", metavar="NAME")
@_option("--etcd-password", "Password for etcd; better given by the environment.", metavar="TEXT")
@_option(
    "--rules",
    "Standalone only: YAML or JSON file with the rules; read again when it changes.",
    metavar="FILE",
)
@_option("--prefix", "Root of the keys in etcd.", default="/limiter", metavar="PATH")
@_option("--node-id", "Unique name of this node.  [default: <hostname>-<4 hex>]", metavar="NAME")
@_option("--zone", "Failure domain; a key's replica is placed in another one when there is one.", metavar="NAME")
@_option(
    "--http",
    "Where the check API listens; port 0 picks a free one.",
    default="127.0.0.1:8080",
    metavar="HOST:PORT",
)
@_option("--admin", "Where health, metrics and status are.", default="127.0.0.1:8081", metavar="HOST:PORT")
@_option("--peer", "Where other nodes are answered.", default="127.0.0.1:8082", metavar="HOST:PORT")
@_option("--advertise", "What other nodes dial.  [default: the --peer address]", metavar="HOST:PORT")
@_option(
    "--lease-ttl",
    "etcd lease of this node's registration, in seconds.",
    default=5,
    type=click.IntRange(1, 3600),
    metavar="SECONDS",
)
@_option(
    "--replication-interval",
    "Longest time a change waits before it is sent to the key's replica, in milliseconds.",
    default=20,
    type=click.IntRange(1, 60_000),
    metavar="MS",
)
@_option(
    "--peer-timeout",
    "Deadline of one hop to another node, in milliseconds, the same on all nodes; one silent for four fifths of it is"
    " stood in for.",
    default=100,
    type=click.IntRange(1, 60_000),
    metavar="MS",
)
@_option(
    "--drain-delay",
    "After SIGTERM: not ready, but still serving new connections, in seconds.",
    default=1.0,
    type=click.FloatRange(0, 3600),
    metavar="SECONDS",
)
@_option(
    "--drain-timeout",
    "Longest time from SIGTERM to exit, in seconds.",
    default=10.0,
    type=click.FloatRange(0, 3600),
    metavar="SECONDS",
)
@_option(
    "--on-unknown-rule",
    "Answer to a check whose rule does not exist.",
    default="error",
    type=click.Choice(["error", "allow", "deny"]),
)
@_option(
    "--max-keys",
    "Most buckets in memory; past it those nearest to full are forgotten first.",
    default=10_000_000,
    type=click.IntRange(1),
    metavar="N",
)
@_option(
    "--log-format",
    "json: one object a line; human: for reading, in colour on a terminal.",
    default="json",
    type=click.Choice(["json", "human"]),
)
@_option(
    "--log-checks",
    "Fraction of the checks that are told in the log, here and on the node that decides them, picked at random. With"
    " any at all, every check takes about three times the CPU.",
    default=0.0,
    type=click.FloatRange(0, 1),
    metavar="FRACTION",
)
def serve(**options: Any) -> None:
    """Run one node in the foreground.

    SIGTERM or SIGINT drain and leave, a second one exits at once; SIGHUP reads certificates and tokens again. The log
    goes to standard error, a line for each event.
    """
    # Here, not above: importing the whole node takes half a second, which `--help` need not wait for.
    from limiter_node.app import serve as serve_node  # noqa: PLC0415

    options["node_id"] = options["node_id"] or _default_node_id()
    try:
        parsed = settings.parse(options)
        _configure_log(parsed)
        uvloop.run(serve_node(parsed))
    except ConfigError as error:
        for problem in error.problems:
            click.echo(f"limiter-node: {problem}", err=True)
        sys.exit(2)
    except OSError as error:
        click.echo(f"limiter-node: {error}", err=True)
        sys.exit(1)


@main.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
def validate(files: tuple[Path, ...]) -> None:
    """Check rules files without touching anything.

    Exit code 0, or 1 after listing every problem: the file, the place in it, what is wrong and what is allowed.
    """
    problems: list[str] = []
    for file in files:
        try:
            check_file(file)
        except ConfigError as error:
            problems += error.problems
    for problem in problems:
        click.echo(problem, err=True)
    sys.exit(1 if problems else 0)


def _default_node_id() -> str:
    host = "".join(
        char if char.isascii() and (char.isalnum() or char in "._-") else "-" for char in socket.gethostname()
    )
    return f"{host[:59]}-{secrets.token_hex(2)}"


def _configure_log(parsed: settings.Settings) -> None:
    is_human = parsed.log_format == "human"
    ending: tuple[Processor, ...] = (structlog.processors.format_exc_info, _headed, structlog.processors.JSONRenderer())
    if is_human:
        ending = (structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S.%f" if is_human else "iso", utc=not is_human),
            *ending,
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    # In every line: logs of several nodes are often read together.
    structlog.contextvars.bind_contextvars(node=parsed.node_id)


def _headed(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Put first what people look for first."""
    return {**{name: event.pop(name) for name in ("timestamp", "level", "node", "event") if name in event}, **event}
