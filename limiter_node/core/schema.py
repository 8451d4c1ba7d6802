"""The JSON schema of a rules file, for editors: made of the types that read it.

Types say which fields there are, of what type, in which range, with which default. Added here is what types cannot say:
what a field means, how rates and names are spelt, and which fields need which. A schema cannot say everything
(`max` below `min`); `limiter-node validate` does.

Draft 7, the newest that editors know well.
"""

from __future__ import annotations

from typing import Any

import msgspec

from limiter_node.core.backends import URL_PATTERN, BackendDoc
from limiter_node.core.limits import RATE_ALLOWED, RATE_PATTERN, WINDOWS
from limiter_node.core.rules import LIMITS_MAX, NAME_PATTERN, KeyDoc, RuleDoc


class FileDoc(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A rules file of limiter-node; the same documents are in etcd, one a key."""

    rules: dict[str, RuleDoc] = {}
    keys: dict[str, KeyDoc] = {}
    backends: dict[str, BackendDoc] = {}


DESCRIPTIONS = {
    "FileDoc.rules": "Rules by their name, which is what a check asks for.",
    "FileDoc.keys": "What is special about single client keys, by the key.",
    "FileDoc.backends": "What is protected, by the name that rules give as their backend.",
    "KeyDoc.segment": "The segment that this key belongs to in every rule; a check may name another.",
    "KeyDoc.rules": "This key's own numbers, by the rule; they come before those of any segment.",
    "rate": f"Tokens that come back in a period: {RATE_ALLOWED}.",
    "burst": "Tokens that a key can hold, 1 or more. Default: COUNT of the rate beside it.",
    "algorithm": "How is counted. Default: token_bucket.",
    "timezone": "Time zone whose days, weeks and months a fixed_window follows, such as Europe/Berlin. Default: UTC.",
    "limits": "Several limits, taken together or not at all, in place of rate, burst, algorithm and timezone.",
    "segments": "Other numbers for some keys, such as premium and free, by the name of the segment.",
    "backend": "What this rule protects: its numbers shrink while that backend suffers. Default: none.",
    "priority": "0 to 9: 9 is shed first when the backend suffers, 0 last. Default: 5, in a segment the rule's.",
    "on_unreachable": "When neither owner nor replica can be reached: local (this node's part), allow or deny.",
    "durability": "sync: a grant is told only once the replica has it, so that not even a crash grants it twice.",
    "shadow": "Decide and count, but always allow; would_allow in the verdict tells what it would have been.",
    "lease": "Whether a key's owner lends tokens to nodes that are often asked for it: true, false, or auto (if hot).",
    "adaptive": "on; observe: decide, publish and count what would have been done; off.",
    "slo_ms": "Latency that a good answer stays under, in milliseconds. Default: learned, twice the normal p90.",
    "error_rate_max": "Fraction of errors that is still good, 0 to 1.",
    "min": "Lowest multiplier: never less than this part of the numbers is granted.",
    "max": "Highest multiplier.",
    "fallback": "hold, or the multiplier to move to when all signals have been silent for stale_after_s.",
    "stale_after_s": "Seconds without any signal until fallback applies.",
    "poll": "A page that tells how the backend does, for a backend that nobody reports on.",
    "url": "The page, http or https.",
    "format": "What the page is: json (latency_ms, error_rate, throughput) or prometheus.",
    "every_s": "Seconds between two looks.",
    "latency": "prometheus: name of a histogram of seconds.",
    "requests": "prometheus: name of a counter of requests.",
    "error_label": "prometheus: which series of requests are errors, such as code=~5..",
}
"""Of `field` in all types, or of `Type.field` in one."""

_NAMES = {"pattern": f"^{NAME_PATTERN}$"}
_EXTRAS: dict[str, dict[str, Any]] = {
    "FileDoc.rules": {"propertyNames": _NAMES},
    "FileDoc.keys": {"propertyNames": {"minLength": 1, "maxLength": 512}},
    "FileDoc.backends": {"propertyNames": _NAMES},
    "KeyDoc.rules": {"propertyNames": _NAMES},
    "segments": {"propertyNames": _NAMES},
    "rate": {"type": "string", "pattern": f"^(?=0*[1-9]){RATE_PATTERN}$", "examples": ["100/s", "10/30s", "1000/d"]},
    "limits": {"minItems": 1, "maxItems": LIMITS_MAX},
    "fallback": {"anyOf": [{"const": "hold"}, {"type": "number", "exclusiveMinimum": 0, "maximum": 1}]},
    "url": {"pattern": f"^{URL_PATTERN}$"},
    "error_label": {"pattern": "^[A-Za-z_][A-Za-z0-9_]*(=~|!~|!=|=)"},
}
"""Keywords of a field that its type does not say, by the same names."""

_NO_NUMBERS = {"not": {"anyOf": [{"required": [field]} for field in ("rate", "burst", "algorithm", "timezone")]}}
_ONE_LIMIT = {"required": ["rate"], "not": {"required": ["limits"]}}
_WINDOWS_HAVE_NO_BURST = {
    "not": {"required": ["algorithm", "burst"], "properties": {"algorithm": {"enum": list(WINDOWS)}}}
}
_NUMBERS = {"anyOf": [_ONE_LIMIT, {"required": ["limits"], **_NO_NUMBERS}], **_WINDOWS_HAVE_NO_BURST}
_NEEDS: dict[str, dict[str, Any]] = {
    "LimitDoc": _WINDOWS_HAVE_NO_BURST,
    "NumbersDoc": _NUMBERS,
    "RuleDoc": _NUMBERS,
    "SegmentDoc": {"anyOf": [_ONE_LIMIT, _NO_NUMBERS], **_WINDOWS_HAVE_NO_BURST},
    "PollDoc": {
        "anyOf": [
            {"properties": {"format": {"const": "json"}}},
            {"required": ["latency"]},
            {"required": ["requests"]},
        ]
    },
}
"""Which fields of a type need which."""


def rules_file_schema() -> dict[str, Any]:
    """The schema, a new document each time."""
    _, types = msgspec.json.schema_components([FileDoc], ref_template="#/definitions/{name}")
    for name, shape in types.items():
        for field, schema in shape["properties"].items():
            for key in (field, f"{name}.{field}"):
                schema.update(_EXTRAS.get(key, {}))
                if key in DESCRIPTIONS:
                    schema["description"] = DESCRIPTIONS[key]
        shape.update(_NEEDS.get(name, {}))
    _respell(types)
    file = types.pop("FileDoc")
    file["title"] = "limiter-node rules file"
    return {"$schema": "http://json-schema.org/draft-07/schema#", **file, "definitions": types}


def _respell(schema: Any) -> None:
    """Write the patterns of types as editors do: they know ^ and $ only."""
    for value in schema.values() if isinstance(schema, dict) else schema:
        if isinstance(value, dict | list):
            _respell(value)
    if isinstance(schema, dict) and isinstance(schema.get("pattern"), str):
        schema["pattern"] = schema["pattern"].replace(r"\A", "^").replace(r"\Z", "$")
