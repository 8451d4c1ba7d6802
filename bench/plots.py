"""The bench's pictures: bars with what the runs spread over, and curves between two logarithmic axes."""

from __future__ import annotations

from math import ceil, floor, log10
from typing import TYPE_CHECKING

from bench.svg import COLOURS, LEFT, WIDTH, escaped, opened

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bench.stats import Spread

TOP, RIGHT = 28, 30
BAR_PX, NAMES_PX, FIGURES_PX = 18, 230, 70
PLOT_HEIGHT, LEGEND_PX, AXIS_PX = 260, 16, 32
OURS = "#0b6e4f"
OTHERS = "#3d5a98"


def bars(title: str, spreads: Mapping[str, Spread], *, ours: Sequence[str], digits: int = 0) -> str:
    """A bar as long as each median, a line from the least to the most, and the median in figures."""
    found = opened(WIDTH, TOP + BAR_PX * len(spreads) + 8, title)
    scale = (WIDTH - NAMES_PX - FIGURES_PX) / max(spread.high for spread in spreads.values())
    for number, (name, spread) in enumerate(spreads.items()):
        y = TOP + BAR_PX * number
        colour = OURS if name in ours else OTHERS
        low, middle, high = (round(NAMES_PX + value * scale, 1) for value in spread)
        found += [
            f'<text x="{NAMES_PX - 6}" y="{y + 11}" text-anchor="end">{escaped(name)}</text>',
            f'<rect x="{NAMES_PX}" y="{y}" width="{middle - NAMES_PX:.1f}" height="{BAR_PX - 5}" fill="{colour}"/>',
            f'<line x1="{low}" x2="{high}" y1="{y + 6.5}" y2="{y + 6.5}" stroke="black"/>',
            f'<text x="{high + 5:.1f}" y="{y + 11}">{spread.median:,.{digits}f}</text>',
        ]
    return "\n".join([*found, "</svg>", ""])


def curves(title: str, x_name: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """A line through the points of each series; both axes are logarithmic and labelled at each power of ten."""
    points = [point for each in series.values() for point in each]
    x_low, x_high = _decades(x for x, _ in points)
    y_low, y_high = _decades(y for _, y in points)
    bottom, right = TOP + PLOT_HEIGHT, WIDTH - RIGHT

    def x_px(value: float) -> float:
        return round(LEFT + (right - LEFT) * (log10(value) - x_low) / (x_high - x_low), 1)

    def y_px(value: float) -> float:
        return round(bottom - PLOT_HEIGHT * (log10(value) - y_low) / (y_high - y_low), 1)

    found = opened(WIDTH, bottom + AXIS_PX + LEGEND_PX * len(series), title)
    for power in range(y_low, y_high + 1):
        y = y_px(10.0**power)
        found.append(f'<line x1="{LEFT}" x2="{right}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        found.append(f'<text x="{LEFT - 5}" y="{y + 4}" text-anchor="end">{10.0**power:g}</text>')
    for power in range(x_low, x_high + 1):
        x = x_px(10.0**power)
        found.append(f'<line x1="{x}" x2="{x}" y1="{TOP}" y2="{bottom}" stroke="#eee"/>')
        found.append(f'<text x="{x}" y="{bottom + 14}" text-anchor="middle">{10**power:,}</text>')
    found.append(f'<text x="{right}" y="{bottom + 28}" text-anchor="end">{escaped(x_name)}</text>')
    for number, (name, line) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        dashes = "" if number < len(COLOURS) else ' stroke-dasharray="4 3"'
        legend = f"{name} (dashed)" if dashes else name
        drawn = " ".join(f"{x_px(x)},{y_px(y)}" for x, y in line)
        found.append(f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="1.6"{dashes}/>')
        found += [f'<circle cx="{x_px(x)}" cy="{y_px(y)}" r="2.4" fill="{colour}"/>' for x, y in line]
        found.append(
            f'<text x="{LEFT}" y="{bottom + AXIS_PX + LEGEND_PX * number + 8}" fill="{colour}">{escaped(legend)}</text>'
        )
    return "\n".join([*found, "</svg>", ""])


def _decades(values: Iterable[float]) -> tuple[int, int]:
    logs = [log10(value) for value in values]
    low, high = floor(min(logs)), ceil(max(logs))
    return low, max(high, low + 1)
