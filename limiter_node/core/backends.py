"""What is written about backends: their entries, their multipliers, what a monitor says of them; decoded and checked.

As in `rules`, a document becomes a frozen value or a `BadRule` that lists every problem with the field's path.
"""

from __future__ import annotations

import re
from math import exp, log
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec

from limiter_node.core.adaptive.evidence import PRIORITIES, Decision, Policy, Signal
from limiter_node.core.adaptive.sketch import LATENCY_MAX_MS
from limiter_node.core.algorithms.token_bucket import PPM
from limiter_node.core.errors import BadRule
from limiter_node.core.rules import FALLBACK_ALLOWED, NAME_ALLOWED, is_name, problems_of

if TYPE_CHECKING:
    from collections.abc import Iterator

Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
Milliseconds = Annotated[float, msgspec.Meta(ge=0, le=LATENCY_MAX_MS)]
Multiplier = Annotated[float, msgspec.Meta(gt=0, le=1)]
RATE_MAX = 1e12
PerSecond = Annotated[float, msgspec.Meta(ge=0, le=RATE_MAX)]

MULTIPLIER_MIN = 0.0001
"""What is published has four digits, and is never 0."""

Z_90 = 1.2816
Z_99 = 2.3263
"""Of the normal distribution: latencies are about log-normal, so quantiles lie on a line over these."""

SAMPLES_UNTOLD = 100
"""What quantiles are taken to be of where nobody says: a monitor knows what it says."""

ERROR_LABEL_ALLOWED = "LABEL=VALUE, LABEL!=VALUE, LABEL=~REGEX or LABEL!~REGEX, such as code=~5.."
URL_PATTERN = r"https?://[^\s/]+(/\S*)?"
_URL = re.compile(URL_PATTERN)
_ERROR_LABEL = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(=~|!~|!=|=)(.*)", re.DOTALL)


class PollDoc(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Where and how a backend is polled, as written."""

    url: str
    format: Literal["json", "prometheus"] = "json"
    every_s: Annotated[float, msgspec.Meta(ge=0.1, le=3600)] = 1.0
    latency: str | None = None  # of a histogram, in seconds
    requests: str | None = None  # of a counter
    error_label: str | None = None  # which of its series are errors


class BackendDoc(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A backend as written."""

    adaptive: Literal["off", "observe", "on"] = "on"
    slo_ms: Annotated[float, msgspec.Meta(gt=0, le=86_400_000)] | None = None
    error_rate_max: Fraction = 0.05
    min: Multiplier = 0.05
    max: Multiplier = 1.0
    fallback: float | str = "hold"
    stale_after_s: Annotated[float, msgspec.Meta(ge=1, le=86_400)] = 10.0
    poll: PollDoc | None = None


class MultiplierDoc(msgspec.Struct):
    """What applies to a backend now, as published by the controller or written by a person.

    Fields beyond these are carried, not judged, so that an older node reads a newer controller's record.
    """

    multiplier: float
    state: str = "unknown"
    reason: str = ""
    rate: PerSecond | None = None
    priorities: dict[str, Fraction] = {}
    hold_rate: PerSecond | None = None
    expires_ms: Annotated[int, msgspec.Meta(ge=0)] | None = None
    pinned: bool = False
    would: MultiplierDoc | None = None
    term: int | None = None


class LatencyDoc(msgspec.Struct, forbid_unknown_fields=True):
    """Quantiles as a monitor or a backend tells them."""

    p50: Milliseconds | None = None
    p90: Milliseconds | None = None
    p99: Milliseconds | None = None


class HealthDoc(msgspec.Struct, forbid_unknown_fields=True):
    """How a backend does, as a monitor or the backend itself tells it."""

    latency_ms: LatencyDoc
    error_rate: Fraction = 0.0
    throughput: PerSecond = 0.0


class Poll(msgspec.Struct, frozen=True):
    """Where and how a backend is polled, defaults filled in. `error_label`: (label, operator, value)."""

    url: str
    format: str
    every_s: float
    latency: str | None
    requests: str | None
    error_label: tuple[str, str, str] | None


class Backend(msgspec.Struct, frozen=True):
    """A backend's entry, defaults filled in. `max` caps the multiplier."""

    policy: Policy = Policy()
    max: float = 1.0
    poll: Poll | None = None


class Record(msgspec.Struct, frozen=True):
    """What is under `multipliers/<backend>`. `would` is what applies only in the counters (`adaptive: observe`)."""

    decision: Decision
    pinned: bool = False
    would: Decision | None = None

    @property
    def decided(self) -> Decision:
        """What was decided, whether it acts or is only observed."""
        return self.would or self.decision

    @property
    def ppm(self) -> int:
        """The multiplier in millionths, at least 1."""
        return to_ppm(self.decision.multiplier)


def to_ppm(multiplier: float) -> int:
    """Millionths, at least 1."""
    return max(1, round(multiplier * PPM))


def parse_backend(name: str, document: Any) -> Backend:
    """Check a decoded document under `backends/`; raises `BadRule` with every problem."""
    problems = [*_name_problems(name), *problems_of(document, BackendDoc)]
    if isinstance(document, dict):
        problems += _value_problems(document, {problem.partition(":")[0].partition(".")[0] for problem in problems})
    if problems:
        raise BadRule(tuple(problems))
    doc = msgspec.convert(document, BackendDoc)
    policy = Policy(
        mode=doc.adaptive,
        slo_ms=doc.slo_ms,
        error_rate_max=doc.error_rate_max,
        min=doc.min,
        fallback=None if isinstance(doc.fallback, str) else doc.fallback,
        stale_after_s=doc.stale_after_s,
    )
    return Backend(policy, doc.max, None if doc.poll is None else _poll(doc.poll))


def parse_record(name: str, document: Any) -> Record:
    """Check a decoded document under `multipliers/`; raises `BadRule` with every problem."""
    problems = [*_name_problems(name), *problems_of(document, MultiplierDoc)]
    if not problems and not 0 < document["multiplier"] <= 1:
        problems = [f"multiplier: {document['multiplier']} is out of range; allowed: above 0, up to 1"]
    if not problems:
        allowed = {str(priority) for priority in range(PRIORITIES)}
        problems += [
            f"priorities: {priority!r} is no priority; allowed: 0 to {PRIORITIES - 1}"
            for priority in document.get("priorities", {})
            if priority not in allowed
        ]
    if problems:
        raise BadRule(tuple(problems))
    doc = msgspec.convert(document, MultiplierDoc)
    return Record(_decision(doc), doc.pinned, None if doc.would is None else _decision(doc.would))


def record_json(decision: Decision, term: int, *, observed: bool) -> bytes:
    """The value of `multipliers/<backend>` for a decision; with `observed`, one that acts on nothing."""
    multiplier = max(round(decision.multiplier, 4), MULTIPLIER_MIN)
    document: dict[str, Any] = {"multiplier": multiplier, "state": decision.state}
    document["reason"] = decision.reason
    if decision.rate is not None:
        document["rate"] = min(round(decision.rate, 2), RATE_MAX)
    if decision.priorities:
        document["priorities"] = {name: round(part, 4) for name, part in decision.priorities.items()}
    if decision.hold_rate is not None:
        document["hold_rate"] = min(round(decision.hold_rate, 2), RATE_MAX)
        document["expires_ms"] = decision.expires_ms
    if observed:
        document = {"multiplier": 1.0, "state": "observe", "reason": decision.reason, "would": document}
    return msgspec.json.encode({**document, "term": term})


def parse_health(name: str, document: Any, source: str) -> Signal:
    """Check what a monitor (`health/<backend>`) or a polled backend says; raises `BadRule` with every problem."""
    problems = [*_name_problems(name), *problems_of(document, HealthDoc)]
    if problems:
        raise BadRule(tuple(problems))
    doc = msgspec.convert(document, HealthDoc)
    p50, p90, p99 = quantiles(doc.latency_ms.p50, doc.latency_ms.p90, doc.latency_ms.p99)
    return signal(source, p50, p90, p99, throughput=doc.throughput, error_rate=doc.error_rate)


def signal(source: str, p50: float, p90: float, p99: float, *, throughput: float, error_rate: float) -> Signal:
    """A signal of a source that tells quantiles (milliseconds) and no more: the mean of a log-normal with them.

    What a page's counters amount to may be absurd: a latency of more than a day counts as a day, as anywhere.
    """
    p50, p90, p99 = (min(quantile, LATENCY_MAX_MS) for quantile in (p50, p90, p99))
    throughput = min(throughput, RATE_MAX)
    sigma = log(p90 / p50) / Z_90 if 0 < p50 < p90 else 0.0
    return Signal(
        source,
        p50,
        p90,
        p99,
        mean_ms=p50 * exp(sigma * sigma / 2) if sigma < 3 else p90,
        throughput=throughput,
        error_rate=error_rate,
        refused_rate=0.0,
        timeout_rate=0.0,
        samples=round(throughput) or SAMPLES_UNTOLD,
    )


def quantiles(p50: float | None, p90: float | None, p99: float | None) -> tuple[float, float, float]:
    """All three of them (milliseconds, ascending), where some are not told; zeros when none is."""
    told = [(z, told) for z, told in ((0.0, p50), (Z_90, p90), (Z_99, p99)) if told is not None]
    if not told:
        return 0.0, 0.0, 0.0
    filled = [_on_line(told, z) for z in (0.0, Z_90, Z_99)]
    return filled[0], max(filled[:2]), max(filled)


def _on_line(told: list[tuple[float, float]], z: float) -> float:
    """By log-linear interpolation, or the nearest one told outside of them."""
    below = [point for point in told if point[0] <= z]
    above = [point for point in told if point[0] >= z]
    if not below or not above:
        return (below or above)[-1 if below else 0][1]
    (z0, low), (z1, high) = below[-1], above[0]
    if z1 == z0 or low <= 0 or high <= 0:
        return low
    return low * exp(log(high / low) * (z - z0) / (z1 - z0))


def _decision(doc: MultiplierDoc) -> Decision:
    return Decision(doc.multiplier, doc.state, doc.reason, doc.rate, doc.priorities, doc.hold_rate, doc.expires_ms)


def _poll(doc: PollDoc) -> Poll:
    match = _ERROR_LABEL.fullmatch(doc.error_label) if doc.error_label else None
    label = None if match is None else (match[1], match[2], match[3])
    return Poll(doc.url, doc.format, doc.every_s, doc.latency, doc.requests, label)


def _name_problems(name: Any) -> Iterator[str]:
    if not isinstance(name, str) or not is_name(name):
        yield f"backend name: {name!r} is not allowed; allowed: {NAME_ALLOWED}"


def _value_problems(document: dict[str, Any], bad: set[str]) -> Iterator[str]:
    """What is wrong with values that are of the right type; `bad`: the fields that are not."""
    if "fallback" not in bad:
        yield from _fallback_problems(document.get("fallback", "hold"))
    if "poll" not in bad:
        yield from _poll_problems(document.get("poll"))
    low, high = document.get("min", 0.05), document.get("max", 1.0)
    if not bad & {"min", "max"} and low > high:
        yield f"max: {high} is below min; allowed: {low} to 1"


def _fallback_problems(fallback: float | str) -> Iterator[str]:
    is_good = fallback == "hold" if isinstance(fallback, str) else 0 < fallback <= 1
    if not is_good:
        yield f"fallback: {fallback!r} is not allowed; allowed: {FALLBACK_ALLOWED}"


def _is_page(url: str) -> bool:
    try:
        place = urlsplit(url)
        return _URL.fullmatch(url) is not None and bool(place.hostname) and place.port != 0
    except ValueError:  # a bracket left open, a port that is none
        return False


def _poll_problems(poll: dict[str, Any] | None) -> Iterator[str]:
    if poll is None:
        return
    if not _is_page(poll["url"]):
        yield f"poll.url: {poll['url']!r} is not allowed; allowed: http://HOST[:PORT]/PATH or https://..."
    label = poll.get("error_label")
    match = None if label is None else _ERROR_LABEL.fullmatch(label)
    if label is not None and match is None:
        yield f"poll.error_label: {label!r} is not allowed; allowed: {ERROR_LABEL_ALLOWED}"
    elif match is not None and match[2] in ("=~", "!~"):
        try:
            re.compile(match[3])
        except re.error as error:
            yield f"poll.error_label: {match[3]!r} is no regular expression: {error}"
    if poll.get("format") == "prometheus" and not (poll.get("latency") or poll.get("requests")):
        yield "poll: prometheus needs latency (a histogram's name), requests (a counter's), or both"
