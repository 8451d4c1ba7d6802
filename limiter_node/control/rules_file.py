"""The rules file of a standalone node: read at start, read again when it changes.

The file is a YAML or JSON object with `rules`, `keys` and `backends`, each {name: document as in etcd}. At start every
problem in it is an error; later a bad document leaves the last good one in force, as with etcd.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import structlog

from limiter_node.control.source import BadText, Source
from limiter_node.core.backends import parse_backend
from limiter_node.core.errors import BadRule, ConfigError
from limiter_node.core.hints import did_you_mean
from limiter_node.core.rules import parse_key_entry, parse_rule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from limiter_node.control.rulebook import RuleBook

log = structlog.get_logger()

POLL_S = 0.5
SECTIONS: dict[str, Callable[[str, Any], object]] = {
    "rules": parse_rule,
    "keys": parse_key_entry,
    "backends": parse_backend,
}


class Reading:
    """A rules file that could be read: its documents by their key in etcd, and where in it things are."""

    def __init__(self, path: Path) -> None:
        """Read the file; raises `ConfigError` when it is no file, neither YAML nor JSON, or no object."""
        self._path = path
        try:
            self._source = Source(path.read_bytes(), is_json=path.suffix == ".json")
        except OSError as error:
            raise ConfigError((f"{path}: cannot be read: {error.strerror}",)) from None
        except BadText as bad:
            raise ConfigError((_placed(path, bad.line, f"neither YAML nor JSON: {bad}"),)) from None
        if not isinstance(self._source.content, dict):
            raise ConfigError((f"{path}: must be an object with {', '.join(SECTIONS)}",))
        self.documents, problems = _documents(self._source.content)
        self._problems = [*self._source.lost, *problems]

    def check(self, *, each: bool = True) -> None:
        """Raise `ConfigError` with every problem of the file and, of `each`, of each document in it."""
        problems = self._problems + (self._document_problems() if each else [])
        if problems:
            lines = [(self._source.line_of(problem), problem) for problem in problems]
            lines.sort(key=lambda placed: placed[0] or 0)
            raise ConfigError(tuple(_placed(self._path, line, problem) for line, problem in lines))

    def _document_problems(self) -> list[str]:
        problems = []
        for key, document in self.documents.items():
            section, _, name = key.partition("/")
            try:
                SECTIONS[section](name, document)
            except BadRule as bad:
                problems += [f"{key}: {problem}" for problem in bad.problems]
        return problems


def check_file(path: Path) -> dict[str, Any]:
    """The documents of a file in which everything is good; raises `ConfigError` listing every problem."""
    reading = Reading(path)
    reading.check()
    return reading.documents


def check_files(paths: Iterable[Path]) -> dict[Path, dict[str, Any]]:
    """The documents of each file; raises `ConfigError` listing every problem of all of them."""
    checked: dict[Path, dict[str, Any]] = {}
    problems: list[str] = []
    for path in paths:
        try:
            checked[path] = check_file(path)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(tuple(problems))
    return checked


def merged(files: Mapping[Path, dict[str, Any]]) -> dict[str, Any]:
    """The documents of several files as of one; raises `ConfigError` for each that is in more than one of them."""
    documents: dict[str, Any] = {}
    homes: dict[str, Path] = {}
    problems: list[str] = []
    for path, found in files.items():
        problems += [f"{path}: {key}: is in {homes[key]} too; allowed: in one file" for key in found if key in homes]
        homes.update(dict.fromkeys(found, path))
        documents.update(found)
    if problems:
        raise ConfigError(tuple(problems))
    return documents


def _placed(path: Path, line: int | None, problem: str) -> str:
    return f"{path}: {problem}" if line is None else f"{path}:{line}: {problem}"


def _documents(content: dict[Any, Any]) -> tuple[dict[str, Any], list[str]]:
    """{`rules/<name>` and so on: document}, and what is wrong with the sections."""
    problems, documents = [], {}
    for section, entries in content.items():
        if section not in SECTIONS:
            allowed = f"allowed: {', '.join(SECTIONS)}{did_you_mean(section, SECTIONS)}"
            problems.append(f"{section}: unknown field; {allowed}")
        elif not isinstance(entries, dict):
            problems.append(f"{section}: must be an object of {{name: document}}")
        else:
            documents.update({f"{section}/{name}": document for name, document in entries.items()})
    return documents, problems


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
        """Read the file again; what is bad in it changes nothing, and neither does what is no file.

        To read what may have no end, or not come before somebody writes, would keep all checks waiting.
        """
        if self._path.exists() and not self._path.is_file():
            self._book.reject(str(self._path), "cannot be read again: it is no regular file any more")
            return
        try:
            reading = Reading(self._path)
            reading.check(each=False)
        except ConfigError as bad:
            self._book.reject(str(self._path), str(bad))
            return
        self._book.problems.pop(str(self._path), None)
        self._apply(reading.documents)
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
