"""Small SVG pictures, written by hand: lines over time, and bars. The same figures make the same bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.svg import COLOURS, LEFT, WIDTH, escaped, opened

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HEIGHT = 240
RIGHT, TOP, BOTTOM = 10, 28, 36
BAR_PX = 16


def lines(
    title: str, series: Mapping[str, Sequence[float]], *, shaded: tuple[float, float], y_max: float | None = None
) -> str:
    """Lines by second, with the time of the cause shaded."""
    seconds = max(len(values) for values in series.values())
    top = y_max or max(max(values) for values in series.values()) * 1.05 or 1.0
    plot_width, plot_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(second: float) -> float:
        return round(LEFT + plot_width * second / seconds, 1)

    def y(value: float) -> float:
        return round(TOP + plot_height * (1 - min(value, top) / top), 1)

    found = opened(WIDTH, HEIGHT, title)
    since_x, until_x = x(shaded[0]), x(shaded[1])
    found.append(
        f'<rect x="{since_x}" y="{TOP}" width="{until_x - since_x:.1f}" height="{plot_height}" fill="#f3efe6"/>'
    )
    for part in range(5):
        value = top * part / 4
        found.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value)}" y2="{y(value)}" stroke="#ddd"/>')
        found.append(f'<text x="{LEFT - 5}" y="{y(value) + 4}" text-anchor="end">{value:.0f}</text>')
    for second in range(0, seconds, 10):
        found.append(f'<text x="{x(second)}" y="{HEIGHT - BOTTOM + 13}" text-anchor="middle">{second} s</text>')
    for number, (name, values) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        points = " ".join(f"{x(second + 0.5)},{y(value)}" for second, value in enumerate(values))
        found.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.4"/>')
        left = LEFT + number * plot_width / len(series)
        found.append(f'<text x="{left:.0f}" y="{HEIGHT - 6}" fill="{colour}">{escaped(name)}</text>')
    return "\n".join([*found, "</svg>", ""])


def bars(title: str, values: Mapping[str, tuple[float, float, float]]) -> str:
    """Bars with intervals: name to mean, low and high."""
    left, height = 190, TOP + BAR_PX * len(values) + 12
    scale = (WIDTH - left - 60) / max(high for _, _, high in values.values())
    found = opened(WIDTH, height, title)
    for number, (name, (mean, low, high)) in enumerate(values.items()):
        y = TOP + BAR_PX * number
        colour = COLOURS[0] if name.startswith("ours") else COLOURS[2]
        middle = y + BAR_PX / 2 - 2
        found.append(f'<text x="{left - 6}" y="{y + 10}" text-anchor="end">{escaped(name)}</text>')
        found.append(f'<rect x="{left}" y="{y}" width="{mean * scale:.1f}" height="{BAR_PX - 5}" fill="{colour}"/>')
        found.append(
            f'<line x1="{left + low * scale:.1f}" x2="{left + high * scale:.1f}" y1="{middle}" y2="{middle}"'
            ' stroke="black"/>'
        )
        found.append(f'<text x="{left + high * scale + 5:.1f}" y="{y + 10}">{mean:.3f}</text>')
    return "\n".join([*found, "</svg>", ""])
