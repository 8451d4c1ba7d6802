"""From the bytes of a request to checks and reports: queries, JSON bodies, batches.

Pure. Whatever is wrong is a `Problem` whose detail begins with the field and ends with what is allowed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar
from urllib.parse import unquote_to_bytes

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from limiter_node.core.errors import UNDECODABLE
from limiter_node.core.json_text import fault, may_say_twice
from limiter_node.core.model import COST_MAX, Check, Op
from limiter_node.core.rules import NAME_ALLOWED, is_name, key_problem
from limiter_node.edge.answers import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from limiter_node.core.adaptive.guard import Kind

Body = TypeVar("Body")

BATCH_MAX = 1000
QUOTES_SURE = 10
"""A body that gives a field twice, and is good otherwise, has more: the least is a check of rule, key and two costs."""

DENY_STATUSES = {"401": 401, "403": 403, "503": 503}


class CheckBody(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A check as written in JSON."""

    rule: str
    key: str
    cost: Annotated[int, msgspec.Meta(ge=0)] | UnsetType = UNSET
    segment: str | UnsetType = UNSET

    def is_usual(self) -> bool:
        """Whether it asks for one token of a key that is easily seen to be well-formed, and names no segment."""
        key = self.key
        return (
            (self.cost is UNSET or self.cost == 1)
            and self.segment is UNSET
            and key.isascii()
            and key.isprintable()
            and 0 < len(key) <= 512
        )


class RefundBody(CheckBody, forbid_unknown_fields=True, gc=False):
    """A refund as written in JSON."""

    cost: Annotated[int, msgspec.Meta(ge=1)] | UnsetType = UNSET


class AskedBody(CheckBody, forbid_unknown_fields=True, gc=False):
    """A check alone in its request, as written in JSON."""

    explain: bool | UnsetType = UNSET

    def is_usual(self) -> bool:
        """As `CheckBody` has it; and it wants no explanation."""
        return not self.explain and super().is_usual()


class BatchBody(msgspec.Struct, forbid_unknown_fields=True):
    """A batch whose checks are all well-formed: the fast way."""

    checks: list[CheckBody]
    atomic: bool | UnsetType = UNSET


class PlainBody(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A check of one token, no segment, and a key that is well-formed if all of it can be printed."""

    rule: str
    key: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    cost: Literal[1] | UnsetType = UNSET


class PlainBatchBody(msgspec.Struct, forbid_unknown_fields=True):
    """A batch of such, as nearly all are: decoded so, none of its checks needs a second look."""

    checks: Annotated[list[PlainBody], msgspec.Meta(min_length=1, max_length=BATCH_MAX)]
    atomic: bool | UnsetType = UNSET


class RawBatchBody(msgspec.Struct, forbid_unknown_fields=True):
    """A batch whose checks are looked at one by one."""

    checks: list[msgspec.Raw]
    atomic: bool | UnsetType = UNSET


OUTCOMES_MAX = 10_000
WORDS: dict[str, Kind] = {"error": "refused", "timeout": "timeout"}


class OutcomeBody(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """What came of requests to a backend, as written in JSON."""

    status: int | str
    latency_ms: Annotated[float, msgspec.Meta(ge=0)] | UnsetType | None = UNSET
    count: Annotated[int, msgspec.Meta(ge=1, le=10**9)] | UnsetType = UNSET


class ReportBody(msgspec.Struct, forbid_unknown_fields=True):
    """A report as written in JSON."""

    backend: str
    outcomes: list[OutcomeBody]


class NamedBody(msgspec.Struct):
    """Whatever names a backend."""

    backend: str


ALLOWED = {
    "backend": NAME_ALLOWED,
    "outcomes": f"an array of 1 to {OUTCOMES_MAX} outcomes",
    "status": 'an HTTP status of 100 to 599, "error" or "timeout"',
    "latency_ms": "milliseconds, a number of 0 or more",
    "count": "an integer of 1 to 1000000000",
    "rule": NAME_ALLOWED,
    "key": "a string of 1 to 512 bytes of UTF-8 without control characters",
    "cost": "an integer of 0 or more",
    "segment": NAME_ALLOWED,
    "checks": f"an array of 1 to {BATCH_MAX} checks",
    "atomic": "true or false",
    "deny_status": "401, 403 or 503",
    "explain": "true or false",
}
ALLOWED_IN_REFUND = {**ALLOWED, "cost": "an integer of 1 or more"}

_decode_refund: Callable[[bytes], RefundBody] = msgspec.json.Decoder(RefundBody).decode
decode_check: Callable[[bytes], AskedBody] = msgspec.json.Decoder(AskedBody).decode
_decode_item: Callable[[bytes], CheckBody] = msgspec.json.Decoder(CheckBody).decode
_decode_named: Callable[[bytes], NamedBody] = msgspec.json.Decoder(NamedBody).decode
_decode_report: Callable[[bytes], ReportBody] = msgspec.json.Decoder(ReportBody).decode
_decode_batch: Callable[[bytes], BatchBody] = msgspec.json.Decoder(BatchBody).decode
_decode_plain_batch: Callable[[bytes], PlainBatchBody] = msgspec.json.Decoder(PlainBatchBody).decode
_decode_raw_batch: Callable[[bytes], RawBatchBody] = msgspec.json.Decoder(RawBatchBody).decode

# The usual request line: these fields in this order, and nothing that needs decoding. One match does the work of
# splitting and checking each field, which takes three times as long. A key may hold what RFC 3986 lets a query hold.
_PLAIN = "A-Za-z0-9._~:@!$'()*,;=/?-"
PLAIN_GET = "GET /v1/check?rule="
match_plain_get = re.compile(
    rf"{re.escape(PLAIN_GET)}([A-Za-z0-9._-]{{1,64}})&key=([{_PLAIN}]{{1,512}})"
    r"(?:&cost=([0-9]{1,15}))?(?:&segment=([A-Za-z0-9._-]{1,64}))?",
    re.ASCII,
).fullmatch
find_unplain = re.compile(f"[^{_PLAIN}]").search
CHECK_FIELDS = "rule, key, cost, segment"
ASKED_FIELDS = f"{CHECK_FIELDS}, explain"
_QUERY_FIELDS = frozenset({"rule", "key", "cost", "segment", "deny_status", "explain"})
BOOLS = {"true": True, "false": False}
_BAD_PERCENT = re.compile("%(?![0-9A-Fa-f]{2})")
_FIELD_IN_ERROR = re.compile(r"(?:field `(.*?)`|`\$\S*\.(\w+)\S*`)(?: - at `.*`)?$", re.DOTALL)


def is_plain_text(body: bytes) -> bool:
    """Whether a JSON body has only ASCII and no escapes, so that all its strings can be printed.

    JSON has no control characters in strings but DEL, and those that are escaped.
    """
    return body.isascii() and b"\\" not in body and b"\x7f" not in body


def bad_field(field: str, what: str) -> Problem:
    """The problem of one field."""
    return Problem(400, f"{field}: {what}; allowed: {ALLOWED[field]}")


def require_json(content_type: bytes | None, query: bytes) -> None:
    """A POST carries JSON, says nothing else, and has no query."""
    if content_type is not None:
        media_type = content_type.partition(b";")[0].strip().lower()
        if media_type != b"application/json":
            raise Problem(415, f"Content-Type: {media_type.decode('latin-1')!r}; allowed: application/json")
    if query:
        raise Problem(400, "query: a POST takes its fields in the body; allowed: no query")


def to_check(body: CheckBody) -> Check:
    """A check of a decoded body. Rule and segment are the router's to know; an unknown one is judged there."""
    key, cost, segment = body.key, body.cost, body.segment
    if not (key.isascii() and key.isprintable() and 0 < len(key) <= 512):
        wrong = key_problem(key)
        if wrong:
            raise Problem(400, f"key: {wrong}")
    return Check(
        body.rule,
        key,
        1 if cost is UNSET else min(cost, COST_MAX),
        None if segment is UNSET else segment,
    )


def decoded(
    body: bytes,
    decode: Callable[[bytes], Body],
    fields: str = CHECK_FIELDS,
    allowed: Mapping[str, str] = ALLOWED,
) -> Body:
    """Decode a JSON body that may have the `fields`; raises `Problem` naming the one that is wrong."""
    try:
        made = decode(body)
    except msgspec.ValidationError as error:
        raise Problem(400, _explain(str(error), fields, allowed)) from None
    except UNDECODABLE as error:
        detail = f"not JSON: {error}" if body else "is empty"
        raise Problem(400, fault(body) or f"body: {detail}; allowed: a JSON object") from None
    if body.count(b'"') > QUOTES_SURE and may_say_twice(body, made) and (found := fault(body)):
        raise Problem(400, found)
    return made


def decode_report(body: bytes) -> tuple[str, list[tuple[float | None, Kind, int]]]:
    """The backend, and its outcomes as (latency in ms, kind, count); raises `Problem` at the first that is no good."""
    report = decoded(body, _decode_report, "backend, outcomes; in an outcome latency_ms, status, count")
    if not is_name(report.backend):
        raise bad_field("backend", f"{report.backend!r} is not allowed")
    if not 1 <= len(report.outcomes) <= OUTCOMES_MAX:
        raise bad_field("outcomes", f"{len(report.outcomes)} outcomes")
    return report.backend, [_outcome(index, outcome) for index, outcome in enumerate(report.outcomes)]


def named_in_report(body: bytes) -> str:
    """The backend that a report which is no good names, or nothing if it does not even do that."""
    try:
        return _decode_named(body).backend
    except UNDECODABLE:
        return ""


def _outcome(index: int, outcome: OutcomeBody) -> tuple[float | None, Kind, int]:
    status = outcome.status
    kind: Kind | None
    if isinstance(status, str):
        kind = WORDS.get(status)
    elif not 100 <= status <= 599:
        kind = None
    elif status in (429, 503):
        kind = "refused"
    else:
        kind = "failed" if status >= 500 else "ok"
    if kind is None:
        raise bad_field("status", f"{status!r} in outcome {index} is not allowed")
    latency_ms = None if outcome.latency_ms is UNSET else outcome.latency_ms
    if latency_ms is None and isinstance(status, int):
        raise bad_field("latency_ms", f"is required in outcome {index}")
    # An "error" came from no backend: how long it took says nothing of one.
    return (None if status == "error" else latency_ms), kind, 1 if outcome.count is UNSET else outcome.count


def decode_refund(body: bytes) -> Check:
    """The refund in a body."""
    return replace(to_check(decoded(body, _decode_refund, allowed=ALLOWED_IN_REFUND)), op=Op.REFUND)


def decode_plain_batch(body: bytes) -> list[PlainBody] | None:
    """The checks of a batch that is not atomic, if all are plain; None for any other."""
    if not is_plain_text(body):
        return None
    try:
        batch = _decode_plain_batch(body)
    except UNDECODABLE:
        return None
    checks = batch.checks
    # As `may_say_twice`, in a third of its time: two quotes for each name, and for each value of rule and key.
    more = body.count(b'"') - 2 - 8 * len(checks)
    if more and more != 2 * (sum([check.cost is not UNSET for check in checks]) + (batch.atomic is not UNSET)):
        return None
    return None if batch.atomic else checks


def decode_batch(body: bytes) -> tuple[list[CheckBody | Problem], bool]:
    """The checks of a batch, one that is badly formed as a `Problem` in its place, and whether it is atomic."""
    batch = _batch_of_good(body)
    checks: list[CheckBody | Problem]
    if batch is not None:
        checks, is_atomic = [*batch.checks], batch.atomic
    else:
        raw = decoded(body, _decode_raw_batch, "checks, atomic")
        checks, is_atomic = [_raw_check(item) for item in raw.checks], raw.atomic
    if not 1 <= len(checks) <= BATCH_MAX:
        raise bad_field("checks", f"{len(checks)} checks")
    return checks, bool(is_atomic)


def _batch_of_good(body: bytes) -> BatchBody | None:
    try:
        batch = _decode_batch(body)
    except UNDECODABLE:
        return None
    return None if may_say_twice(body, batch) else batch


def check_or_problem(body: CheckBody | Problem) -> Check | Problem:
    """A check of a batch."""
    try:
        return body if isinstance(body, Problem) else to_check(body)
    except Problem as problem:
        return problem


def _raw_check(raw: msgspec.Raw) -> CheckBody | Problem:
    try:
        return decoded(bytes(raw), _decode_item)
    except Problem as problem:
        return problem


def parse_query(query: bytes) -> tuple[Check, int, bool]:
    """(check, status of a denial, whether it is to be explained) of `GET /v1/check?...`, form-decoded."""
    fields = _fields(query)
    for name in ("rule", "key"):
        if name not in fields:
            raise bad_field(name, "is required")
    check = to_check(
        CheckBody(
            fields["rule"],
            fields["key"],
            _cost(fields.get("cost", "1")),
            fields.get("segment", UNSET),
        )
    )
    deny_status = fields.get("deny_status")
    if deny_status is not None and deny_status not in DENY_STATUSES:
        raise bad_field("deny_status", f"{deny_status!r} is not allowed")
    explain = fields.get("explain", "false")
    if explain not in BOOLS:
        raise bad_field("explain", f"{explain!r} is not allowed")
    return check, 429 if deny_status is None else DENY_STATUSES[deny_status], BOOLS[explain]


def _fields(query: bytes) -> dict[str, str]:
    fields: dict[str, str] = {}
    text = query.decode("latin-1")
    is_plain = "%" not in text and "+" not in text and text.isascii()
    for pair in text.split("&"):
        name, _, value = pair.partition("=")
        if not is_plain:
            name, value = _form_decoded(name, "parameter"), _form_decoded(value, name)
        if name in fields:
            raise Problem(400, f"{name}: given twice; allowed: once")
        if name not in _QUERY_FIELDS:
            if not pair:
                continue
            raise Problem(400, f"{name}: unknown parameter; allowed: {', '.join(sorted(_QUERY_FIELDS))}")
        fields[name] = value
    return fields


def _cost(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise bad_field("cost", f"{text!r} is not allowed")
    # 18 digits are past COST_MAX already; Python refuses to read thousands of them.
    return int(text[-18:]) if len(text.lstrip("0")) <= 18 else COST_MAX


def _form_decoded(text: str, field: str) -> str:
    if _BAD_PERCENT.search(text):
        raise Problem(400, f"{field}: a percent sign without two hex digits; allowed: form encoding")
    try:
        return unquote_to_bytes(text.replace("+", " ").encode("latin-1")).decode()
    except UnicodeDecodeError:
        raise Problem(400, f"{field}: is not UTF-8; allowed: percent-encoded UTF-8") from None


def _explain(message: str, fields: str, allowed: Mapping[str, str]) -> str:
    """msgspec's message, turned round: the field first, what is allowed last."""
    match = _FIELD_IN_ERROR.search(message)
    field = (match[1] or match[2]) if match else "body"
    what = re.sub(r" - at `.*`$", "", message).replace("`", "")
    if what.startswith("Object contains unknown field"):
        return f"{field}: unknown field; allowed: {fields}"
    if what.startswith("Object missing required field"):
        what = "is required"
    return f"{field}: {what[0].lower()}{what[1:]}; allowed: {allowed.get(field, 'a JSON object')}"
