"""How an admitted rate is divided among priorities: the highest first, and a floor for each.

A pure function. Fractions are of each priority's own wanted checks, so that a node applies them to whatever mix it has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

FLOOR_TOTAL = 0.1
"""Of the rate: what all floors together take from the priorities above them."""

FRACTION_MIN = 0.01
"""Nobody is shut out: a client that tries again for long enough gets through, and shows that it is there."""


def fractions(rate: float, wanted_s: Sequence[float]) -> dict[str, float]:
    """The fraction of each priority's wanted checks to admit, 0 shed last; priorities without demand are left out."""
    present = [priority for priority, wanted in enumerate(wanted_s) if wanted > 0]
    if not present:
        return {}
    floor = FLOOR_TOTAL * rate / max(len(present) - 1, 1)
    floors = {priority: min(floor, wanted_s[priority]) for priority in present}
    left = rate - sum(floors.values())
    found: dict[str, float] = {}
    for priority in present:
        wanted = wanted_s[priority]
        given = min(max(left, 0.0), wanted - floors[priority])
        left -= given
        fraction = (floors[priority] + given) / wanted
        found[str(priority)] = round(min(max(fraction, FRACTION_MIN), 1.0), 4)
    return found
