"""Charts of a study as SVG files that stand alone: curves with bands, and points, on a plain or logarithmic axis."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Sequence

import numpy as np

from pv_vae_jax.report.figures import linear_ticks, log_ticks, number

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 34, 44
LINE = 18  # of the legend
COLOURS = (
    *("#1f6fd6", "#d9480f", "#2b8a3e", "#9c36b5", "#b08900", "#0b7285", "#868e96", "#e64980", "#5c940d", "#5f3dc4"),
    *("#212529", "#e8a2ff", "#c92a2a"),  # as many as the curves of the largest study
)


@dataclasses.dataclass(frozen=True)
class Curve:
    """What one row draws.

    Attributes:
      name: in the legend.
      x, y: its points.
      low, high: a band around them; empty for none.
      style: `line`, `dashed` or `points`.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    style: str = "line"


def chart(title: str, curves: Sequence[Curve], *, x_label: str, y_label: str, log: bool = False) -> str:
    """The text of an SVG file; `log` is for positive values over a wide range.

    Raises:
      ValueError: no curve, or values that are not finite.
    """
    values = np.concatenate([np.asarray([*c.y, *c.low, *c.high], float) for c in curves])
    xs = np.concatenate([np.asarray(c.x, float) for c in curves])
    if not (np.isfinite(values).all() and np.isfinite(xs).all()):
        raise ValueError(f"chart {title!r} has values that are not finite")
    log = log and bool(values.min() > 0)
    bend = np.log10 if log else lambda v: np.asarray(v, float)
    floor = float(values.min()) if log else min(0.0, float(values.min()))
    y_ticks = log_ticks(floor, float(values.max())) if log else linear_ticks(floor, float(values.max()), 5)
    x_ticks = linear_ticks(min(0.0, float(xs.min())), float(xs.max()), 6)
    bottom, top = float(bend(min(floor, y_ticks[0]))), float(bend(max(values.max(), y_ticks[-1])))
    height = HEIGHT + LINE * len(curves)

    def across(v):
        return LEFT + (np.asarray(v, float) - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (WIDTH - LEFT - RIGHT)

    def down(v):
        return TOP + (top - bend(v)) / (top - bottom) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        'font-size="13">',
        f"<title>{html.escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="{LEFT}" y="20" font-size="15" font-weight="bold">{html.escape(title)}</text>',
    ]
    for tick in y_ticks:
        y = float(down(tick))
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#444">{number(tick)}</text>')
    for tick in x_ticks:
        place = f'x="{float(across(tick)):.1f}" y="{HEIGHT - BOTTOM + 18}"'
        parts.append(f'<text {place} text-anchor="middle" fill="#444">{number(tick)}</text>')
    middle = (LEFT + WIDTH - RIGHT) // 2
    scale = f"{y_label}{', logarithmic' if log else ''}, over {x_label}"
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{html.escape(scale)}</text>')
    for i, curve in enumerate(curves):
        parts += _draw(curve, COLOURS[i % len(COLOURS)], across, down)
        y = HEIGHT + LINE * i + 6
        parts.append(f'<rect x="{LEFT}" y="{y - 4}" width="22" height="4" fill="{COLOURS[i % len(COLOURS)]}"/>')
        parts.append(f'<text x="{LEFT + 30}" y="{y + 3}">{html.escape(curve.name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _draw(curve: Curve, colour: str, across, down) -> list[str]:
    x, y = across(curve.x), down(curve.y)
    parts = []
    if len(curve.low):
        there = [f"{a:.1f},{b:.1f}" for a, b in zip(x, down(curve.high), strict=True)]
        back = [f"{a:.1f},{b:.1f}" for a, b in zip(x, down(curve.low), strict=True)][::-1]
        parts.append(f'<polygon points="{" ".join(there + back)}" fill="{colour}" opacity="0.15"/>')
    if curve.style != "points":
        dash = ' stroke-dasharray="6 4"' if curve.style == "dashed" else ""
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
    if curve.style != "dashed":
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" fill="{colour}"/>' for a, b in zip(x, y, strict=True)]
    return parts
