"""The commands."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import stat
import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec
import structlog
import uvloop

from limiter_node import __version__, settings
from limiter_node.control.board import Task, decode_of_supervisor
from limiter_node.control.rules_file import SECTIONS, check_files, merged
from limiter_node.core.errors import ConfigError
from limiter_node.core.schema import rules_file_schema
from limiter_node.status import NoStatus, admin_url, fetch, tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from structlog.typing import EventDict, Processor

LARGE_BYTES = 1_000_000
"""A file of which more is said, for it takes seconds to read."""

_Command = TypeVar("_Command", bound="Callable[..., Any]")


def _option(name: str, help_text: str, **kwargs: Any) -> Callable[[_Command], _Command]:
    """An option that is also `LIMITER_<NAME>` in the environment, and says so."""
    variable = "LIMITER_" + name.removeprefix("--").replace("-", "_").upper()
    shows = kwargs.get("default") is not None
    return click.option(name, envvar=variable, show_envvar=True, show_default=shows, help=help_text, **kwargs)


def _etcd_options(command: _Command) -> _Command:
    """How to be let in by etcd, and what is ours in it."""
    for option in reversed(
        (
            _option("--etcd-ca", "PEM file of the authority that signed etcd's certificate.", metavar="FILE"),
            _option("--etcd-cert", "PEM file of a client certificate for etcd.", metavar="FILE"),
            _option("--etcd-key", "PEM file of the key to --etcd-cert.", metavar="FILE"),
            _option("--etcd-user", "User name for etcd.", metavar="NAME"),
            _option("--etcd-password", "Password for etcd; better given by the environment.", metavar="TEXT"),
            _option("--prefix", "Root of the keys in etcd.", default="/limiter", metavar="PATH"),
        )
    ):
        command = option(command)
    return command


_files = click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))


class _Workers(click.ParamType[int]):
    """How many processes; `auto` is one for each core that this one may use."""

    name = "workers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if value == "auto":
            return min(len(os.sched_getaffinity(0)), settings.WORKERS_MAX)
        if not str(value).isdecimal() or not 1 <= int(value) <= settings.WORKERS_MAX:
            self.fail(f"{value!r} is not allowed; allowed: 1 to {settings.WORKERS_MAX}, or auto", param, ctx)
        return int(value)


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
@_etcd_options
@_option(
    "--rules",
    "Standalone only: YAML or JSON file with the rules; read again when it changes.",
    metavar="FILE",
)
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
    "--workers",
    "Processes that listen for checks together, each a member of the ring (<node-id>.1, .2, ...) with a peer port of"
    " its own, from the given one on; auto: one for each usable core.",
    default="1",
    type=_Workers(),
    metavar="N|auto",
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

    With several workers this process starts them, starts again one that dies, and answers at --admin for all of them
    together.
    """
    options["node_id"] = options["node_id"] or _default_node_id()
    with _start_exits():
        parsed = settings.parse(options)
        _configure_log(parsed)
        # Here, not above: importing the whole node takes half a second, which `--help` need not wait for.
        if parsed.workers > 1:
            from limiter_node.supervisor import supervise  # noqa: PLC0415

            sys.exit(asyncio.run(supervise(parsed, options)))
        from limiter_node.app import serve as serve_node  # noqa: PLC0415

        uvloop.run(serve_node(parsed))


@main.command(hidden=True)
def worker() -> None:
    """Be one of the workers of a node: started by `serve --workers`, which tells the rest over standard input."""
    from limiter_node.app import serve as serve_node  # noqa: PLC0415

    if not stat.S_ISSOCK(os.fstat(0).st_mode):
        raise click.UsageError("started by serve --workers, and by nobody else")
    line = sys.stdin.buffer.readline()
    if not line:
        return  # the supervisor is gone already
    task = decode_of_supervisor(line)
    assert isinstance(task, Task)
    with _start_exits():
        parsed = settings.parse(task.options).of_worker(task.number, task.run)
        _configure_log(parsed)
        uvloop.run(serve_node(parsed, socket.socket(fileno=0)))


@main.command()
@_files
def validate(files: tuple[Path, ...]) -> None:
    """Check rules files without touching anything.

    A file is YAML or JSON with rules, keys and backends. Exit code 0, or 1 after listing every problem: the file and
    the line, the place in the document, what is wrong and what is allowed.

    \b
        $ limiter-node validate rules.yaml
        rules.yaml:4: rules/api: brust: unknown field; allowed: rate, burst, ...; did you mean "burst"?
    """
    for file, documents in _checked(files).items():
        counts = Counter(key.partition("/")[0] for key in documents)
        click.echo(f"{file}: ok ({', '.join(f'{section}: {counts[section]:,}' for section in SECTIONS)})")


@main.command()
@_files
@_option("--etcd", "etcd client endpoints, tried in turn.", required=True, metavar="URL[,URL...]")
@_option("--dry-run", "Show what would change, and write nothing.", is_flag=True)
@_option("--prune", "Delete the rules, keys and backends in etcd that are in none of the files.", is_flag=True)
@_etcd_options
def apply(files: tuple[Path, ...], *, dry_run: bool, prune: bool, **options: Any) -> None:
    """Write the rules, keys and backends of rules files to etcd.

    All files are validated first. What etcd holds already is left alone; the rest is written in one transaction, or in
    several where there are more than 128 changes, and comes into force on all nodes at once. A change that somebody
    else makes meanwhile is not overwritten unseen.

    \b
        $ limiter-node apply rules.yaml --etcd http://127.0.0.1:2379 --dry-run
        + keys/alice
        ~ rules/api: rate 100/s -> 200/s
        would be 1 added, 1 changed, 0 deleted, 5 unchanged; nothing was written

    Exit code 0, 1 when a file has problems or etcd cannot be used, 2 for a wrong option.
    """
    # Here, not above: gRPC takes a third of a second, which the other commands need not wait for.
    from limiter_node.applying import Narrator  # noqa: PLC0415
    from limiter_node.control.apply import NotApplied  # noqa: PLC0415
    from limiter_node.control.apply import apply as write  # noqa: PLC0415
    from limiter_node.control.etcd_link import EtcdConfig  # noqa: PLC0415

    with _problems_exit(2, "limiter-node: "):
        etcd = settings.parse_etcd(options)
    files_documents = _checked(files)
    with _problems_exit(1):
        documents = merged(files_documents)
    narrator = Narrator(click.echo, partial(click.echo, err=True), len(documents), dry_run=dry_run)
    # There is no lease; its time sets how long a log-in may take.
    config = EtcdConfig(lease_ttl_s=15, **asdict(etcd))
    try:
        uvloop.run(write(config, documents, narrator, prune=prune, dry_run=dry_run))
    except NotApplied as error:
        click.echo(f"limiter-node: {error}", err=True)
        sys.exit(1)
    narrator.sum_up()


@main.command()
def schema() -> None:
    """Print the JSON schema of a rules file, for editors.

    An editor with the YAML language server then completes, explains and checks fields as you type:

    \b
        $ limiter-node schema > rules.schema.json
        $ head -1 rules.yaml
        # yaml-language-server: $schema=rules.schema.json
    """
    click.echo(msgspec.json.format(msgspec.json.encode(rules_file_schema()), indent=2))


@main.command()
@_option("--admin", "Admin API of any node: a URL, or HOST:PORT.", default="http://127.0.0.1:8081", metavar="URL")
@_option("--json", "Print the document of GET /v1/status instead.", is_flag=True)
def status(*, admin: str, json: bool) -> None:
    """Show the fleet as one node sees it.

    Node, etcd, leader and configuration, then the members of the ring with their share of the keys, the backends with
    their multiplier, and what is wrong with the configuration.

    \b
        $ limiter-node status --admin http://127.0.0.1:8081
        node    node-1 0.1.0, ready
        etcd    connected, revision 42
        ...

    Exit code 0, 1 when the node does not answer, 2 for a wrong option.
    """
    try:
        url = admin_url(admin)
    except ValueError as error:
        click.echo(f"limiter-node: --admin: {error}", err=True)
        sys.exit(2)
    try:
        body = fetch(url)
        shown = tables(body)
    except NoStatus as error:
        click.echo(f"limiter-node: {error}", err=True)
        sys.exit(1)
    click.echo(msgspec.json.format(body, indent=2) if json else shown)


def _checked(files: tuple[Path, ...]) -> dict[Path, dict[str, Any]]:
    """The documents of each file; exits with 1 where something is wrong with one."""
    for file in files:
        if file.is_file() and file.stat().st_size > LARGE_BYTES:
            click.echo(f"reading {file}, {file.stat().st_size / 1e6:.0f} MB", err=True)
    with _problems_exit(1):
        return check_files(files)


@contextmanager
def _start_exits() -> Iterator[None]:
    """End the process where a node cannot start, after telling why."""
    try:
        with _problems_exit(2, "limiter-node: "):
            yield
    except OSError as error:
        click.echo(f"limiter-node: {error}", err=True)
        sys.exit(1)


@contextmanager
def _problems_exit(code: int, prefix: str = "") -> Iterator[None]:
    """End the process with this code where something is configured badly, after telling every problem."""
    try:
        yield
    except ConfigError as error:
        for problem in error.problems:
            click.echo(f"{prefix}{problem}", err=True)
        sys.exit(code)


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
        # In one write, newline and all: workers write to the same pipe.
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    # In every line: logs of several nodes are often read together.
    structlog.contextvars.bind_contextvars(node=parsed.node_id)


def _headed(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Put first what people look for first."""
    return {**{name: event.pop(name) for name in ("timestamp", "level", "node", "event") if name in event}, **event}
