"""The rules file of a standalone node: read at start, read again when it changes.

The file is a YAML or JSON object with `rules`, `keys` and `backends`, each {name: document as in etcd}. At start every
problem in it is an error; later a bad document leaves the last good one in force, as with etcd.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from limiter_node.core.backends import parse_backend
from limiter_node.core.errors import UNDECODABLE, BadRule, ConfigError
from limiter_node.core.rules import parse_key_entry, parse_rule

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from limiter_node.control.rulebook import RuleBook

log = structlog.get_logger()

POLL_S = 0.5
SECTIONS: dict[str, Callable[[str, Any], object]] = {
    "rules": parse_rule,
    "keys": parse_key_entry,
    "backends": parse_backend,
}


def read_documents(path: Path) -> dict[str, Any]:
    """{`rules/<name>` and so on: document} of a file; raises `BadRule` when it is no such file."""
    try:
        # JSON is YAML, but not every YAML reader knows all of JSON, and msgspec reads it faster.
        decode = msgspec.json.decode if path.suffix == ".json" else msgspec.yaml.decode
        content = decode(path.read_bytes())
    except OSError as error:
        raise BadRule((f"cannot be read: {error.strerror}",)) from None
    except (*UNDECODABLE, ValueError) as error:  # YAML knows dates and numbers that Python does not
        raise BadRule((f"neither YAML nor JSON: {error}",)) from None
    if not isinstance(content, dict):
        raise BadRule(("must be an object with rules, keys and backends",))
    problems, documents = [], {}
    for section, entries in content.items():
        if section not in SECTIONS:
            problems.append(f"{section}: unknown field; allowed: {', '.join(SECTIONS)}")
        elif not isinstance(entries, dict):
            problems.append(f"{section}: must be an object")
        else:
            # A number is as good as its digits; what YAML makes of yes or 2026-11-23 is not what was written.
            names = [name for name in entries if type(name) not in (str, int)]
            problems += [f"{section}: {name!r} is no text; allowed: a name in quotes" for name in names]
            documents.update({f"{section}/{name}": document for name, document in entries.items()})
    if problems:
        raise BadRule(tuple(problems))
    return documents


def check_file(path: Path) -> dict[str, Any]:
    """The documents of a file in which everything is good; raises `ConfigError` listing every problem."""
    try:
        documents = read_documents(path)
    except BadRule as bad:
        raise ConfigError(tuple(f"{path}: {problem}" for problem in bad.problems)) from None
    problems: list[str] = []
    for key, document in documents.items():
        section, _, name = key.partition("/")
        try:
            SECTIONS[section](name, document)
        except BadRule as bad:
            problems += [f"{path}: {key}: {problem}" for problem in bad.problems]
    if problems:
        raise ConfigError(tuple(problems))
    return documents


class RulesFile:
    """Keeps a rulebook in step with a file."""

    def __init__(self, path: Path, book: RuleBook, monotonic_ns: Callable[[], int]) -> None:
        self.revision = 0  # how often the file was applied
        self._path = path
        self._book = book
        self._monotonic_ns = monotonic_ns
        self._keys: set[str] = set()
        self._stamp = self._stat()

    def load(self) -> None:
        """First reading; raises `ConfigError` listing every problem."""
        self._apply(check_file(self._path))

    async def watch(self) -> None:
        """Apply every change of the file, until cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            stamp = self._stat()
            if stamp != self._stamp:
                self._stamp = stamp
                self.reload()

    def reload(self) -> None:
        """Read the file again; what is bad in it changes nothing."""
        try:
            documents = read_documents(self._path)
        except BadRule as bad:
            self._book.reject(str(self._path), str(bad))
            return
        self._book.problems.pop(str(self._path), None)
        self._apply(documents)
        log.info("rules file read", path=str(self._path), problems=len(self._book.problems))

    def _apply(self, documents: dict[str, Any]) -> None:
        now_ns = self._monotonic_ns()
        for key in self._keys - documents.keys():
            self._book.put(key, None, now_ns, is_deleted=True)
        for key, document in documents.items():
            try:
                self._book.put(key, document, now_ns)
            except BadRule as bad:
                self._book.reject(key, str(bad))
        self._keys = set(documents)
        self.revision += 1

    def _stat(self) -> tuple[int, int, int] | None:
        """What changes whenever the file does; follows symbolic links, as mounted configuration maps use them."""
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino
