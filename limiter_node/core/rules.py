"""What people write: rules and entries for single keys; decoded, checked, defaults filled in.

The types are the schema (contract, section 4); a document either becomes a frozen value here or a `BadRule` that
lists every problem with the field's path, what is wrong and what is allowed. Nothing here knows buckets,
etcd or files.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import msgspec

from limiter_node.core.errors import UNDECODABLE, BadRule
from limiter_node.core.hints import did_you_mean, plain_rate
from limiter_node.core.model import DURATION_MAX_NS, Name

if TYPE_CHECKING:
    from collections.abc import Iterator

COUNT_MAX = 10**12
"""Largest count in a rate and largest burst, in tokens: exact in JSON everywhere, and below `model.COST_MAX`."""

PERIOD_MAX_S = 366 * 86_400
DEFAULT_SEGMENT = "default"
SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}

RATE_PATTERN = r"([0-9]{1,13})/([0-9]{0,9})([smhd])"
_RATE = re.compile(RATE_PATTERN, re.ASCII)
NAME_PATTERN = r"[A-Za-z0-9._-]{1,64}"
_NAME = re.compile(NAME_PATTERN, re.ASCII)

NAME_ALLOWED = "1 to 64 of A-Z a-z 0-9 . _ -"
RATE_ALLOWED = (
    f"COUNT/PERIOD such as 100/s, 10/30s or 1000/d: COUNT 1 to {COUNT_MAX}, "
    "PERIOD s, m, h, d or a whole number of them up to 366d"
)


def is_name(text: str) -> bool:
    """Whether the text may name a rule, segment, backend or node."""
    return _NAME.fullmatch(text) is not None


class LimitDoc(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Numbers of one limit as written."""

    rate: str
    burst: Annotated[int, msgspec.Meta(ge=1, le=COUNT_MAX)] | None = None
    algorithm: Literal["token_bucket"] = "token_bucket"


class SegmentDoc(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A segment as written: its own numbers, or the rule's with another priority."""

    rate: str | None = None
    burst: Annotated[int, msgspec.Meta(ge=1, le=COUNT_MAX)] | None = None
    algorithm: Literal["token_bucket"] = "token_bucket"
    priority: Annotated[int, msgspec.Meta(ge=0, le=9)] | None = None


class RuleDoc(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A rule as written."""

    rate: str
    burst: Annotated[int, msgspec.Meta(ge=1, le=COUNT_MAX)] | None = None
    algorithm: Literal["token_bucket"] = "token_bucket"
    segments: dict[str, SegmentDoc] = {}
    backend: Name | None = None
    priority: Annotated[int, msgspec.Meta(ge=0, le=9)] = 5
    on_unreachable: Literal["local", "allow", "deny"] = "local"
    durability: Literal["async", "sync"] = "async"
    shadow: bool = False


class KeyDoc(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What is special about one client key, as written."""

    segment: Name | None = None
    rules: dict[str, LimitDoc] = {}


class Limit(msgspec.Struct, frozen=True):
    """A limit with its defaults filled in: `count` tokens per `period_s` seconds, at most `burst` at once."""

    rate: str
    count: int
    period_s: int
    burst: int

    @property
    def window_s(self) -> int:
        """Seconds in which an empty bucket is full again at multiplier 1, rounded up."""
        return min(-(-self.burst * self.period_s // self.count), DURATION_MAX_NS)

    def describe(self) -> dict[str, Any]:
        """As a document with every default spelled out."""
        return {"rate": self.rate, "burst": self.burst, "algorithm": "token_bucket"}


class Rule(msgspec.Struct, frozen=True):
    """A rule with its defaults filled in. `limits` always has the default segment."""

    name: str
    limits: dict[str, Limit]
    priorities: dict[str, int]
    backend: str | None
    on_unreachable: str
    durability: str
    shadow: bool

    def describe(self) -> dict[str, Any]:
        """As a document with every default spelled out."""
        segments = {
            segment: {**limit.describe(), "priority": self.priorities[segment]}
            for segment, limit in self.limits.items()
            if segment != DEFAULT_SEGMENT
        }
        return {
            **self.limits[DEFAULT_SEGMENT].describe(),
            "segments": segments,
            "backend": self.backend,
            "priority": self.priorities[DEFAULT_SEGMENT],
            "on_unreachable": self.on_unreachable,
            "durability": self.durability,
            "shadow": self.shadow,
        }


class KeyEntry(msgspec.Struct, frozen=True):
    """What is special about one client key: the segment it belongs to, its own numbers per rule."""

    segment: str | None
    limits: dict[str, Limit]


def decode_json(text: bytes) -> Any:
    """Any JSON value; raises `BadRule` for bytes that are none."""
    try:
        return msgspec.json.decode(text)
    except UNDECODABLE as error:
        raise BadRule((f"not JSON: {error}",)) from None


def parse_rule(name: str, document: Any) -> Rule:
    """Check a decoded document and fill in its defaults; raises `BadRule` with every problem."""
    problems = [*_name_problems("rule name", name), *problems_of(document, RuleDoc, "")]
    if problems:
        raise BadRule(tuple(problems))
    doc = msgspec.convert(document, RuleDoc)
    default = _limit(doc.rate, doc.burst)
    limits, priorities = {DEFAULT_SEGMENT: default}, {DEFAULT_SEGMENT: doc.priority}
    for segment, entry in doc.segments.items():
        limits[segment] = _limit(entry.rate, entry.burst) if entry.rate is not None else default
        priorities[segment] = doc.priority if entry.priority is None else entry.priority
    return Rule(
        name=name,
        limits=limits,
        priorities=priorities,
        backend=doc.backend,
        on_unreachable=doc.on_unreachable,
        durability=doc.durability,
        shadow=doc.shadow,
    )


def parse_key_entry(key: str, document: Any) -> KeyEntry:
    """Check a decoded document for a client key; raises `BadRule` with every problem."""
    wrong = key_problem(key)
    problems = [f"key: {wrong}"] if wrong else []
    problems += problems_of(document, KeyDoc, "")
    if problems:
        raise BadRule(tuple(problems))
    doc = msgspec.convert(document, KeyDoc)
    return KeyEntry(doc.segment, {rule: _limit(entry.rate, entry.burst) for rule, entry in doc.rules.items()})


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


def _limit(rate: str, burst: int | None) -> Limit:
    count, period_s = parse_rate(rate)
    return Limit(rate, count, period_s, count if burst is None else burst)


def parse_rate(text: str) -> tuple[int, int]:
    """(tokens, seconds) of a rate such as `100/s` or `10/30s`; raises ValueError that says what is allowed."""
    match = _RATE.fullmatch(text)
    if match:
        count, period_s = int(match[1]), int(match[2] or 1) * SECONDS[match[3]]
        if 1 <= count <= COUNT_MAX and 1 <= period_s <= PERIOD_MAX_S:
            return count, period_s
    raise ValueError(f"{text!r} is no rate; allowed: {RATE_ALLOWED}")


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
    for name, field in fields.items():
        if field.required and name not in document:
            yield f"{path}{name}: is required"
    if shape is SegmentDoc and document.get("burst") is not None and document.get("rate") is None:
        yield f"{path}burst: needs a rate in the same entry"


@cache
def _fields(shape: type[msgspec.Struct]) -> dict[str, msgspec.structs.FieldInfo]:
    # Asking msgspec takes 30 us each time, which 100,000 entries would feel.
    return {field.name: field for field in msgspec.structs.fields(shape)}


def _field_problems(value: Any, field: msgspec.structs.FieldInfo, path: str) -> Iterator[str]:
    args = get_args(field.type)
    shapes = [shape for shape in (field.type, *args) if isinstance(shape, type) and issubclass(shape, msgspec.Struct)]
    if shapes and isinstance(value, dict):
        if get_origin(field.type) is not dict:
            yield from problems_of(value, shapes[0], f"{path}.")
            return
        for name, entry in value.items():
            yield from _name_problems(path, name)
            yield from problems_of(entry, shapes[0], f"{path}.{name}.")
        return
    try:
        converted = msgspec.convert(value, field.type)
        if field.name == "rate" and isinstance(converted, str):
            parse_rate(converted)
    except msgspec.ValidationError as error:
        yield f"{path}: {_allowed(error, field, value)}"
    except ValueError as error:
        yield f"{path}: {error}{_rate_hint(value)}"


def _rate_hint(written: str) -> str:
    plain = plain_rate(written)
    return f'; did you mean "{plain}"?' if _RATE.fullmatch(plain) else ""


def _allowed(error: msgspec.ValidationError, field: msgspec.structs.FieldInfo, value: Any) -> str:
    text = str(error).replace("`", "")
    if field.name == "rate":
        return f"{text}; allowed: {RATE_ALLOWED}"
    parts = (field.type, *get_args(field.type))
    choices = [choice for part in parts if get_origin(part) is Literal for choice in get_args(part)]
    if choices:
        return f"{text}; allowed: {', '.join(map(str, choices))}{did_you_mean(value, choices)}"
    return f"{value!r} is not allowed; allowed: {NAME_ALLOWED}" if "regex" in text else text
