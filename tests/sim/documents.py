"""What one node has been told about rules, read by the contract (section 4) and by none of the product's code.

Answers two questions: under which numbers is this check to be decided, and what are they. A document that the
scenario calls bad changes nothing.
"""

from __future__ import annotations

import json
from typing import Any

from tests.sim.meter import Numbers, numbers

DEFAULT = "default"
OWN = "\0own"
"""The place of a key with numbers of its own; no segment can be called so."""

LONG_S = 3_600
PERIODS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


class Documents:
    """Rules, key entries and multipliers as they stand on one node."""

    def __init__(self) -> None:
        self.rules: dict[str, dict[str, Any]] = {}
        self.keys: dict[str, dict[str, Any]] = {}
        self.multipliers: dict[str, dict[str, Any]] = {}

    def take(self, key: str, value: bytes | None) -> None:
        """Take a good value, or a deletion."""
        kind, _, name = key.partition("/")
        documents: dict[str, dict[str, Any]] = getattr(self, kind)
        if value is None:
            documents.pop(name, None)
        else:
            documents[name] = json.loads(value)

    def place(self, rule: str, key: str, segment: str | None) -> str:
        """Whose numbers a check gets: the key's own, the request's segment, the key's segment, the default."""
        entry = self.keys.get(key, {})
        if rule in entry.get("rules", {}):
            return OWN
        return self.listed(rule, segment or entry.get("segment") or DEFAULT)

    def place_without_own(self, rule: str, key: str) -> str:
        """Where a key's bucket goes when it loses the numbers of its own."""
        return self.listed(rule, self.keys.get(key, {}).get("segment") or DEFAULT)

    def listed(self, rule: str, segment: str) -> str:
        """The segment, or the default for one that the rule does not list."""
        return segment if segment in self.rules[rule].get("segments", {}) else DEFAULT

    def places(self, rule: str, key: str) -> list[str]:
        """Everywhere that a key's bucket may be."""
        own = [OWN] if self.has_own(rule, key) else []
        return [DEFAULT, *self.rules[rule].get("segments", {}), *own]

    def has_own(self, rule: str, key: str) -> bool:
        return rule in self.keys.get(key, {}).get("rules", {})

    def numbers(self, rule: str, key: str, place: str, parts: int = 1) -> Numbers:
        """The numbers of a place, the default's for a segment that is no longer listed."""
        document = self.rules[rule]
        limit = document
        if place == OWN:
            limit = self.keys[key]["rules"][rule]
        elif "rate" in document.get("segments", {}).get(place, {}):
            limit = document["segments"][place]
        count, _, period = limit["rate"].partition("/")
        period_s = int(period[:-1] or 1) * PERIODS_S[period[-1]]
        now = numbers(int(count), period_s, limit.get("burst") or int(count), self.ppm(document), parts)
        if not document.get("algorithm", "token_bucket").endswith("bucket"):
            assert period_s >= LONG_S, "a window that may end within a run is not counted here"
            return now._replace(slope=0)
        return now

    def ppm(self, document: dict[str, Any]) -> int:
        """The multiplier of the rule's backend, in millionths."""
        multiplier = self.multipliers.get(document.get("backend") or "")
        return 1_000_000 if multiplier is None else max(1, round(multiplier["multiplier"] * 1_000_000))
