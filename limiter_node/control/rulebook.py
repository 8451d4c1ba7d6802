"""The rulebook: every document people write, in its last good version.

It takes documents by their key below the prefix (`rules/api`, `keys/user:42`, `multipliers/orders`), from etcd or
from a rules file alike, and puts the good ones in force in the engine. A bad one changes nothing: the version before it
stays, and the problem stands under its key until the key is mended or deleted.

It knows neither etcd nor files nor time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from limiter_node.core.algorithms.token_bucket import PPM
from limiter_node.core.backends import parse_backend, parse_health, parse_record
from limiter_node.core.errors import BadRule
from limiter_node.core.rules import decode_json, decode_key_entry, parse_key_entry, parse_rule

if TYPE_CHECKING:
    from limiter_node.core.adaptive.evidence import Signal
    from limiter_node.core.engine import Engine

log = structlog.get_logger()

PROBLEM_CHARS_MAX = 4_000
"""It is in the log and in every status until it is mended."""

KINDS = ("rules", "keys", "backends", "multipliers", "health")


class RuleBook:
    """Puts documents in force; `problems` is {key: what is wrong with its present value}."""

    def __init__(self, engine: Engine) -> None:
        self.problems: dict[str, str] = {}
        self.rejected = 0  # bad values seen so far
        self._engine = engine

    def changed(self, key: str, value: bytes | None, now_ns: int, *, is_live: bool = True) -> None:
        """Take the JSON value of a key, or None for a deleted key; keys of other kinds are not the rulebook's.

        What is not `live` was written at nobody knows what time: a monitor's word is then none.
        """
        kind, _, name = key.partition("/")
        if kind not in KINDS:
            return
        try:
            if kind == "keys" and value is not None:
                self._engine.set_entry(name, decode_key_entry(name, value), now_ns)
                self.note_good(key)
            else:
                document = None if value is None else decode_json(value)
                self.put(key, document, now_ns, is_deleted=value is None, is_live=is_live)
        except BadRule as bad:
            self.reject(key, str(bad))

    def put(self, key: str, document: Any, now_ns: int, *, is_deleted: bool = False, is_live: bool = True) -> None:
        """Take a decoded document; raises `BadRule`, and changes nothing, when it is no good."""
        kind, _, name = key.partition("/")
        before = self._in_force(kind, name)
        if kind == "rules":
            self._engine.set_rule(name, None if is_deleted else parse_rule(name, document), now_ns)
        elif kind == "keys":
            self._engine.set_entry(name, None if is_deleted else parse_key_entry(name, document), now_ns)
        elif kind == "health":
            self._put_health(name, None if is_deleted else parse_health(name, document, kind), now_ns, is_live=is_live)
        else:
            self._put_backend(kind, name, document, now_ns, is_deleted=is_deleted)
        self.note_good(key)
        _log_change(key, before, self._in_force(kind, name))

    def note_good(self, key: str) -> None:
        """Whatever was wrong with the value of a key, it is no more."""
        if self.problems and self.problems.pop(_legible(key), ""):
            log.info("configuration mended", key=_legible(key))

    def _in_force(self, kind: str, name: str) -> dict[str, Any]:
        """The fields of what is told in the log when it changes; none while there is nothing under the name."""
        if kind == "rules" and name in self._engine.rules:
            return self._engine.rules[name].rule.describe()
        entries = self._engine.backends.entries
        if kind == "backends" and name in entries:
            fields: dict[str, Any] = msgspec.to_builtins(entries[name])
            return fields
        return {}

    def _put_backend(self, kind: str, name: str, document: Any, now_ns: int, *, is_deleted: bool) -> None:
        backends = self._engine.backends
        before = backends.state(name)
        if kind == "backends":
            backends.set_entry(name, None if is_deleted else parse_backend(name, document), now_ns)
        else:
            backends.set_record(name, None if is_deleted else parse_record(name, document), now_ns)
        self._engine.rescale(name, now_ns)
        if backends.state(name) != before:
            record = backends.records.get(name)
            log.info(
                "backend state changed",
                backend=name,
                before=before,
                state=backends.state(name),
                multiplier=backends.ppm(name) / PPM,
                reason=record.decision.reason if record else "",
            )

    def _put_health(self, name: str, signal: Signal | None, now_ns: int, *, is_live: bool) -> None:
        health = self._engine.backends.health
        if signal is None or not is_live:
            health.pop(name, None)
        else:
            health[name] = signal, now_ns

    def reject(self, key: str, problem: str) -> None:
        """Keep what is in force, and say why."""
        key, problem = _legible(key), _in_short(problem)
        self.rejected += 1
        kind, _, name = key.partition("/")
        if kind == "health":
            self._engine.backends.reject(name, "health", problem)
        if self.problems.get(key) != problem:
            log.error("configuration rejected, the last good value stays", key=key, problem=problem)
        self.problems[key] = problem


def _legible(key: str) -> str:
    """The key, bytes of it that are no UTF-8 spelt out."""
    return key.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _in_short(problem: str) -> str:
    """A problem quotes what is wrong, which may be a megabyte, and ends with what is allowed."""
    half = PROBLEM_CHARS_MAX // 2
    return problem if len(problem) <= PROBLEM_CHARS_MAX else f"{problem[:half]} ... {problem[-half:]}"


def _log_change(key: str, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Say what is in force now that was not, field by field."""
    if before == after:
        return
    if not before:
        log.info("configuration added", key=key, value=after)
    elif not after:
        log.info("configuration removed", key=key, value=before)
    else:
        changes = {name: [before.get(name), after.get(name)] for name in after if before.get(name) != after.get(name)}
        log.info("configuration changed", key=key, changes=changes)
