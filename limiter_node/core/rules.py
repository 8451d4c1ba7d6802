"""What people write: rules and entries for single keys; decoded, checked, defaults filled in.

The types are the schema (contract, section 4); a document either becomes a frozen value here or a `BadRule` that
lists every problem with the field's path, what is wrong and what is allowed. Nothing here knows buckets,
etcd or files.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import msgspec

from limiter_node.core.allowed import in_words
from limiter_node.core.errors import UNDECODABLE, BadRule
from limiter_node.core.hints import did_you_mean, plain_rate
from limiter_node.core.json_text import fault, may_say_twice
from limiter_node.core.limits import (
    BUCKETS,
    CALENDAR,
    COUNT_MAX,
    LOG_COUNT_MAX,
    RATE_ALLOWED,
    TIMEZONE_ALLOWED,
    WINDOWS,
    Limit,
    Limits,
    check_timezone,
    describe_limits,
    match_rate,
    parse_rate,
    under,
)
from limiter_node.core.model import Name
from limiter_node.core.patterns import is_pattern, network_problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAME_PATTERN = r"[A-Za-z0-9._-]{1,64}"
_NAME = re.compile(NAME_PATTERN, re.ASCII)

NAME_ALLOWED = "1 to 64 of A-Z a-z 0-9 . _ -"
DEFAULT_SEGMENT = "default"
LIMITS_MAX = 8
"""Limits in one rule: each costs every check of it the time of one."""

AlgorithmName = Literal["token_bucket", "leaky_bucket", "fixed_window", "sliding_window", "sliding_log"]
TimezoneName = Annotated[str, msgspec.Meta(max_length=64)]
Burst = Annotated[int, msgspec.Meta(ge=1, le=COUNT_MAX)]
Priority = Annotated[int, msgspec.Meta(ge=0, le=9)]


def is_name(text: str) -> bool:
    """Whether the text may name a rule, segment, backend or node."""
    return _NAME.fullmatch(text) is not None


class LimitDoc(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Numbers of one limit as written."""

    rate: str
    burst: Burst | None = None
    algorithm: AlgorithmName | None = None
    timezone: TimezoneName | None = None


class NumbersDoc(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A key's own numbers under a rule, as written: one limit, or a list of them."""

    rate: str | None = None
    burst: Burst | None = None
    algorithm: AlgorithmName | None = None
    timezone: TimezoneName | None = None
    limits: list[LimitDoc] | None = None


class SegmentDoc(NumbersDoc, forbid_unknown_fields=True, omit_defaults=True):
    """A segment as written: its own numbers, or the rule's with another priority."""

    priority: Priority | None = None


class RuleDoc(NumbersDoc, forbid_unknown_fields=True, omit_defaults=True):
    """A rule as written."""

    segments: dict[str, SegmentDoc] = {}
    backend: Name | None = None
    priority: Priority = 5
    on_unreachable: Literal["local", "allow", "deny"] = "local"
    durability: Literal["async", "sync"] = "async"
    shadow: bool = False
    lease: bool | Literal["auto"] = "auto"


class KeyDoc(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What is special about one client key, as written."""

    segment: Name | None = None
    rules: dict[str, NumbersDoc] = {}


class Rule(msgspec.Struct, frozen=True):
    """A rule with its defaults filled in. `limits` always has the default segment."""

    name: str
    limits: dict[str, Limits]
    priorities: dict[str, int]
    backend: str | None
    on_unreachable: str
    durability: str
    shadow: bool
    lease: bool | str = "auto"

    @property
    def why_not_lent(self) -> str:
        """What keeps tokens of the rule's keys from being lent to other nodes; empty if nothing does."""
        lone = [limits for limits in self.limits.values() if len(limits) == 1]
        if len(lone) < len(self.limits) or any(limit.algorithm != "token_bucket" for (limit,) in lone):
            return "only of a single token_bucket"
        if self.backend is not None:
            return "not where a backend's gate is asked"
        if self.durability == "sync":
            return "not with durability sync, for a grant under a lease has no copy"
        return "not in shadow mode" if self.shadow else ""

    def describe(self) -> dict[str, Any]:
        """As a document with every default spelled out."""
        segments = {
            segment: {**describe_limits(limits), "priority": self.priorities[segment]}
            for segment, limits in self.limits.items()
            if segment != DEFAULT_SEGMENT
        }
        return {
            **describe_limits(self.limits[DEFAULT_SEGMENT]),
            "segments": segments,
            "backend": self.backend,
            "priority": self.priorities[DEFAULT_SEGMENT],
            "on_unreachable": self.on_unreachable,
            "durability": self.durability,
            "shadow": self.shadow,
            "lease": self.lease,
        }


class KeyEntry(msgspec.Struct, frozen=True):
    """What is special about a client key, or about all that match a pattern: its segment, its own numbers per rule."""

    segment: str | None
    limits: dict[str, Limits]
    pattern: str | None = None


def decode_json(text: bytes) -> Any:
    """Any JSON value; raises `BadRule` for bytes that are none, or that say something twice."""
    try:
        value = msgspec.json.decode(text)
    except UNDECODABLE as error:
        raise BadRule((fault(text) or f"not JSON: {error}",)) from None
    if may_say_twice(text, value) and (found := fault(text)):
        raise BadRule((found,))
    return value


def parse_rule(name: str, document: Any) -> Rule:
    """Check a decoded document and fill in its defaults; raises `BadRule` with every problem."""
    problems = [*_name_problems("rule name", name), *problems_of(document, RuleDoc, "")]
    if problems:
        raise BadRule(tuple(problems))
    doc = msgspec.convert(document, RuleDoc)
    default = under(_limits(doc), ())
    limits, priorities = {DEFAULT_SEGMENT: default}, {DEFAULT_SEGMENT: doc.priority}
    for segment, entry in doc.segments.items():
        limits[segment] = under(_limits(entry), default) if entry.rate or entry.limits else default
        priorities[segment] = doc.priority if entry.priority is None else entry.priority
    rule = Rule(
        name=name,
        limits=limits,
        priorities=priorities,
        backend=doc.backend,
        on_unreachable=doc.on_unreachable,
        durability=doc.durability,
        shadow=doc.shadow,
        lease=doc.lease,
    )
    if rule.lease is True and rule.why_not_lent:
        raise BadRule((f"lease: tokens are lent {rule.why_not_lent}; allowed here: false, auto",))
    return rule


def parse_key_entry(key: str, document: Any) -> KeyEntry:
    """Check a decoded document for a client key or a pattern; raises `BadRule` with every problem."""
    wrong = key_problem(key) or network_problem(key)
    problems = [f"key: {wrong}"] if wrong else []
    problems += problems_of(document, KeyDoc, "")
    if problems:
        raise BadRule(tuple(problems))
    doc = msgspec.convert(document, KeyDoc)
    limits = {rule: _limits(entry) for rule, entry in doc.rules.items()}
    return KeyEntry(doc.segment, limits, key if is_pattern(key) else None)


def decode_key_entry(key: str, text: bytes) -> KeyEntry:
    """As `parse_key_entry`, from JSON; of the same text for other keys the same value, unless they are patterns."""
    if is_pattern(key) or key_problem(key):
        return parse_key_entry(key, decode_json(text))
    return _plain_entry(text)


@lru_cache(maxsize=4_096)
def _plain_entry(text: bytes) -> KeyEntry:
    # Many keys have few different entries: to look one up takes a tenth of the time, and half of the memory.
    return parse_key_entry("-", decode_json(text))


def key_problem(key: str) -> str | None:
    """What keeps the text from being a client key, or None: 1 to 512 bytes of UTF-8, no control characters."""
    if key.isascii() and key.isprintable() and 0 < len(key) <= 512:
        return None
    allowed = "; allowed: 1 to 512 bytes of UTF-8 without control characters"
    if not key:
        return "is empty" + allowed
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        return "is not UTF-8" + allowed
    if size > 512:
        return f"is {size} bytes long" + allowed
    if _CONTROL.search(key):
        return "has a control character" + allowed
    return None


_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


def _limits(doc: NumbersDoc) -> Limits:
    return tuple(map(_limit, doc.limits)) if doc.limits else (_limit(doc),)


def _limit(doc: LimitDoc | NumbersDoc) -> Limit:
    assert doc.rate is not None
    count, period_s = parse_rate(doc.rate)
    return Limit(doc.rate, count, period_s, doc.burst or count, doc.algorithm, doc.timezone)


def _name_problems(path: str, name: Any) -> Iterator[str]:
    # YAML reads an unquoted 10 or yes as something other than text.
    if not isinstance(name, str) or not is_name(name):
        yield f"{path}: {name!r} is not allowed; allowed: {NAME_ALLOWED}"


def problems_of(document: Any, shape: type[msgspec.Struct], path: str = "") -> Iterator[str]:
    """Every problem of a document against a struct type, each with the path of its field.

    msgspec stops at the first problem; people mending a file want all of them, so each field is tried alone.
    """
    if not isinstance(document, dict):
        yield f"{path.rstrip('.') or 'document'}: must be an object"
        return
    fields = _fields(shape)
    for name, value in document.items():
        if name in fields:
            yield from _field_problems(value, fields[name], f"{path}{name}")
        elif shape.__struct_config__.forbid_unknown_fields:
            yield f"{path}{name}: unknown field; allowed: {', '.join(fields)}{did_you_mean(name, fields)}"
    if issubclass(shape, NumbersDoc | LimitDoc):
        yield from _number_problems(document, path, needs_rate=shape is not SegmentDoc)
        return
    for name, field in fields.items():
        if field.required and name not in document:
            yield f"{path}{name}: is required"


def _number_problems(document: dict[str, Any], path: str, *, needs_rate: bool) -> Iterator[str]:
    """What is wrong with the numbers of one entry taken together; each alone has been looked at."""
    given = {field for field in ("rate", "burst", "algorithm", "timezone") if document.get(field) is not None}
    limits = document.get("limits")
    if limits is not None:
        if isinstance(limits, list) and not 1 <= len(limits) <= LIMITS_MAX:
            yield f"{path}limits: {len(limits)} limits; allowed: 1 to {LIMITS_MAX}"
        yield from (f"{path}{field}: cannot stand beside limits; allowed: in each of them" for field in sorted(given))
    elif "rate" in given:
        yield from _mismatches(document, path)
    elif needs_rate:
        yield f"{path}rate: is required"
    else:
        yield from (f"{path}{field}: needs a rate in the same entry" for field in sorted(given))


def _mismatches(document: dict[str, Any], path: str) -> Iterator[str]:
    """What the algorithm of one limit cannot have."""
    algorithm, rate = document.get("algorithm"), document["rate"]
    match = match_rate(rate) if isinstance(rate, str) else None
    period = match and rate.partition("/")[2]
    if algorithm in WINDOWS and document.get("burst") is not None:
        yield f"{path}burst: {algorithm} has none; allowed: with {' or '.join(BUCKETS)}"
    if algorithm not in (None, "fixed_window"):
        if period == "month":
            yield f"{path}rate: a month has no fixed length; allowed: with fixed_window"
        if document.get("timezone") is not None:
            yield f"{path}timezone: {algorithm} does not go by the calendar; allowed: with fixed_window"
    elif document.get("timezone") is not None and match and period not in CALENDAR:
        yield f"{path}timezone: {rate!r} does not go by the calendar; allowed: with a rate per d, week or month"
    if algorithm == "sliding_log" and match and int(match[1]) > LOG_COUNT_MAX:
        yield f"{path}rate: sliding_log keeps every grant; allowed: COUNT 1 to {LOG_COUNT_MAX}, or sliding_window"


@cache
def _fields(shape: type[msgspec.Struct]) -> dict[str, msgspec.structs.FieldInfo]:
    # To ask the type anew for every document takes ten times as long as to check it.
    return {field.name: field for field in msgspec.structs.fields(shape)}


def _field_problems(value: Any, field: msgspec.structs.FieldInfo, path: str) -> Iterator[str]:
    shape, container = _shape(field.type)
    if shape is not None and isinstance(value, dict) and container is not list:
        if container is None:
            yield from problems_of(value, shape, f"{path}.")
            return
        for name, entry in value.items():
            yield from _name_problems(path, name)
            yield from problems_of(entry, shape, f"{path}.{name}.")
        return
    if shape is not None and isinstance(value, list) and container is list:
        for index, entry in enumerate(value):
            yield from problems_of(entry, shape, f"{path}[{index}].")
        return
    try:
        converted = msgspec.convert(value, field.type)
        if isinstance(converted, str) and field.name in CHECKED:
            CHECKED[field.name](converted)
    except msgspec.ValidationError as error:
        yield f"{path}: {_told(error, field, value)}"
    except ValueError as error:
        yield f"{path}: {error}{_rate_hint(value) if field.name == 'rate' else ''}"


def _rate_hint(written: str) -> str:
    plain = plain_rate(written)
    try:
        parse_rate(plain)
    except ValueError:
        return ""
    return f'; did you mean "{plain}"?'


@cache
def _shape(type_: Any) -> tuple[type[msgspec.Struct] | None, type | None]:
    """The struct in a field's type, and what holds it there: a dict, a list or (None) nothing."""
    if isinstance(type_, type) and issubclass(type_, msgspec.Struct):
        return type_, None
    container = get_origin(type_)
    for arg in get_args(type_):
        shape, inner = _shape(arg)
        if shape is not None:
            return shape, inner or (container if container in (dict, list) else None)
    return None, None


FALLBACK_ALLOWED = '"hold", or a multiplier above 0, up to 1'
CHECKED: dict[str, Callable[[Any], Any]] = {"rate": parse_rate, "timezone": check_timezone}
"""Fields whose text has a meaning that the types do not know."""

SPELT = {
    "rate": RATE_ALLOWED,
    "timezone": TIMEZONE_ALLOWED,
    "fallback": FALLBACK_ALLOWED,
}
"""What is allowed as the text of a field, where that is more than any text."""


def _told(error: msgspec.ValidationError, field: msgspec.structs.FieldInfo, value: Any) -> str:
    """What is wrong with a value of the wrong type or out of range, and what is allowed."""
    parts = (field.type, *get_args(field.type))
    if Name in parts and isinstance(value, str):
        return f"{value!r} is not allowed; allowed: {NAME_ALLOWED}"
    choices = [choice for part in parts if get_origin(part) is Literal for choice in get_args(part)]
    allowed = NAME_ALLOWED if Name in parts else in_words(field.type)
    if allowed.endswith("text"):
        allowed = SPELT.get(field.name, allowed)
    what = str(error).partition(" - at ")[0].replace("`", "")
    return f"{what}; allowed: {allowed}{did_you_mean(value, choices)}"
