"""Figures of the report as text that a page can hold: curves as SVG, pictures and clips as data URIs.

Nothing here asks for a font, a script or a file: colours come from CSS variables `--c0` .. `--c5`, the page's or the
chart's own.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import math
import struct
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pv_vae_jax.data.video_writing import write_video

WIDTH, HEIGHT = 420, 230  # of the drawing, in its own units
LEFT, RIGHT, TOP, BOTTOM = 52, 22, 10, 38
MOST_POINTS = 400  # a curve is no wider than that on screen
COLOURS = 6
GAP = 4  # pixels between pictures
# Of a chart that stands alone: the colours and lines of the report's page. Notebooks put it into their own page, whose
# drawings it must leave alone.
SVG_STYLE = """
.pv{--page:#fff;--ink:#1b1f26;--soft:#5b6472;--line:#d9dee6;
--c0:#1f6fd6;--c1:#d9480f;--c2:#2b8a3e;--c3:#9c36b5;--c4:#b08900;--c5:#0b7285}
@media(prefers-color-scheme:dark){.pv{--page:#1c2128;--ink:#e6e9ee;--soft:#9aa4b2;--line:#333a45;
--c0:#6ea8fe;--c1:#ff922b;--c2:#69db7c;--c3:#da77f2;--c4:#ffd43b;--c5:#3bc9db}}
.pv text{font:13px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;fill:var(--soft)}
.pv .title{fill:var(--ink);font-weight:600}.pv path{fill:none;stroke-width:2}.pv .grid{stroke:var(--line)}
.pv .page{fill:var(--page)}
""".replace("\n", "")


@dataclasses.dataclass(frozen=True)
class Series:
    """One curve: `y` over `x`; values that are not finite leave a gap. `dashed` is for what is no model."""

    name: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    dashed: bool = False


def line_chart(
    title: str, series: Sequence[Series], *, x_label: str, log: bool = False, whole_x: bool = False, ends: bool = True
) -> str:
    """A chart with its title and legend as one HTML `<figure>`.

    Args:
      title: above it; it names the quantity.
      series: at most `COLOURS` curves; longer ones are averaged down to `MOST_POINTS` points.
      x_label: below the axis.
      log: logarithmic values, if all of them are positive and span more than a factor of 4.
      whole_x: every x is a tick (few whole numbers).
      ends: the legend of a time series tells where it stands; False for curves over anything else.
    """
    curves = _curves(series)
    if not curves:
        return f'<figure class="chart"><h4>{html.escape(title)}</h4><p class="none">No values.</p></figure>'
    drawing, told = _drawing(curves, x_label, log, whole_x)
    legend = []
    for i, (s, _, y) in enumerate(curves):
        last = "" if whole_x or not ends else f" <b>{_last(y)}</b>"  # of a time series: where it stands
        swatch = f'<i style="border-top-color:var(--c{i % COLOURS})"{" class=dashed" if s.dashed else ""}></i>'
        legend.append(f"<li>{swatch}{html.escape(s.name)}{last}</li>")
    return (
        f'<figure class="chart"><h4>{html.escape(title)}</h4><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{html.escape(title + told)}">{drawing}</svg><ul class="legend">{"".join(legend)}</ul></figure>'
    )


def svg_chart(title: str, series: Sequence[Series], *, x_label: str, log: bool = False) -> str:
    """The chart of `line_chart` as an SVG file that stands alone, title and legend within; for `<img>` and notebooks.

    Raises:
      ValueError: no series has a value.
    """
    curves = _curves(series)
    if not curves:
        raise ValueError(f"{title}: there are no values to draw")
    drawing, told = _drawing(curves, x_label, log, False)
    top, across = 30, 2  # above the drawing; columns of the legend
    height = top + HEIGHT + 20 * math.ceil(len(curves) / across) + 8
    legend = []
    for i, (s, _, y) in enumerate(curves):
        x, line = LEFT + (i % across) * (WIDTH - LEFT) / across, top + HEIGHT + 16 + 20 * (i // across)
        dash = ' stroke-dasharray="5 4"' if s.dashed else ""
        legend.append(
            f'<path d="M{x:.0f} {line - 4}h18" stroke="var(--c{i % COLOURS})" style="stroke-width:3"{dash}/>'
            f'<text x="{x + 24:.0f}" y="{line}">{html.escape(s.name)} {_last(y)}</text>'
        )
    return (
        f'<svg class="pv" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" role="img" aria-label="{html.escape(title + told)}"><style>{SVG_STYLE}</style>'
        f'<rect class="page" width="{WIDTH}" height="{height}" rx="8"/>'
        f'<text class="title" x="10" y="20">{html.escape(title)}</text>'
        f'<g transform="translate(0 {top})">{drawing}</g>{"".join(legend)}</svg>\n'
    )


Curve = tuple[Series, np.ndarray, np.ndarray]


def _curves(series: Sequence[Series]) -> list[Curve]:
    """What of the series can be drawn, with its points."""
    curves = [(s, *_thin(np.asarray(s.x, float), np.asarray(s.y, float))) for s in series]
    return [(s, x, y) for s, x, y in curves if np.isfinite(y).any()]


def _last(y: np.ndarray) -> str:
    return number(y[np.isfinite(y)][-1])


def _drawing(curves: Sequence[Curve], x_label: str, log: bool, whole_x: bool) -> tuple[str, str]:
    """Axes and curves as SVG elements, and the same in words for screen readers, to follow the title."""
    xs, ys = np.concatenate([c[1] for c in curves]), np.concatenate([c[2] for c in curves])
    ys = ys[np.isfinite(ys)]
    low, high = float(ys.min()), float(ys.max())
    log = log and low > 0 and high > 4 * low  # a narrow range reads better on a plain axis
    if not log and 0 < 2 * low < high:
        low = 0.0
    x_ticks = np.unique(xs) if whole_x else linear_ticks(0.0, float(xs.max()), 5)
    x_axis = (float(min(xs.min(), x_ticks[0])), float(xs.max()))
    if x_axis[0] == x_axis[1]:
        x_axis = (x_axis[0] - 0.5, x_axis[1] + 0.5)
    y_ticks = log_ticks(low, high) if log else linear_ticks(low, high, 5)
    bend = np.log10 if log else lambda v: np.asarray(v, float)
    y_axis = (float(min(bend(low), bend(y_ticks[0]))), float(max(bend(high), bend(y_ticks[-1]))))
    across = lambda v: LEFT + (np.asarray(v) - x_axis[0]) / (x_axis[1] - x_axis[0]) * (WIDTH - LEFT - RIGHT)  # noqa: E731
    down = lambda v: TOP + (y_axis[1] - bend(v)) / (y_axis[1] - y_axis[0]) * (HEIGHT - TOP - BOTTOM)  # noqa: E731

    drawing = []
    for tick in y_ticks:
        y = float(down(tick))
        drawing.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        drawing.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(tick)}</text>')
    for tick in x_ticks[x_ticks <= x_axis[1]]:
        x = float(across(tick))
        drawing.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{number(tick)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    drawing.append(f'<text x="{middle}" y="{HEIGHT - 5}" text-anchor="middle">{html.escape(x_label)}</text>')
    for i, (s, x, y) in enumerate(curves):
        drawing.append(_curve(i, len(curves) - 1 - i, s, across(x), down(np.where(y > 0, y, np.nan) if log else y), y))
    scale = ", logarithmic" if log else ""
    told = "; ".join(f"{s.name} ends at {_last(y)}" for s, _, y in curves)
    return "".join(drawing), f"{scale}, over {x_label}: {told}"


def _curve(i: int, above: int, series: Series, x: np.ndarray, y: np.ndarray, values: np.ndarray) -> str:
    colour = f"var(--c{i % COLOURS})"
    parts, pen = [], "M"
    for px, py in zip(x, y, strict=True):
        if math.isfinite(py):
            parts.append(f"{pen}{px:.1f} {py:.1f}")
        pen = "L" if math.isfinite(py) else "M"
    dash = ' stroke-dasharray="5 4"' if series.dashed else ""
    # Earlier curves are wider, so that one that lies under another still shows on both sides.
    path = f'<path d="{"".join(parts)}" stroke="{colour}" style="stroke-width:{2 + 1.3 * above:.1f}"{dash}/>'
    if len(x) > 40:
        return path
    name, radius = html.escape(series.name), 5 if len(x) == 1 else 2.6
    dots = "".join(
        f'<circle cx="{px:.1f}" cy="{py:.1f}" r="{radius}" fill="{colour}"><title>{name} {number(v)}</title></circle>'
        for px, py, v in zip(x, y, values, strict=True)
        if math.isfinite(py)
    )
    return path + dots


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over neighbouring points, so that at most `MOST_POINTS` are left."""
    if len(x) <= MOST_POINTS:
        return x, y
    parts = np.array_split(np.arange(len(x)), MOST_POINTS)
    return np.array([x[p].mean() for p in parts]), np.array([y[p].mean() for p in parts])


def linear_ticks(low: float, high: float, most: int) -> np.ndarray:
    """About `most` round numbers whose first lies at or below `low` and whose last at or above `high`."""
    if not high > low:
        pad = abs(low) * 0.5 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    return np.arange(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1) * step


def log_ticks(low: float, high: float) -> np.ndarray:
    """Numbers 1, 2, 5 times powers of ten around `[low, high]`; only the powers where those are many."""
    powers = np.arange(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = np.sort(np.concatenate([m * 10.0**powers for m in (1, 2, 5)]))
    inside = fine[max(np.searchsorted(fine, low, "right") - 1, 0) : np.searchsorted(fine, high) + 1]
    if len(inside) <= 7:
        return inside
    return 10.0 ** powers[:: math.ceil(len(powers) / 7)]


def number(value: float) -> str:
    """At most four digits: 0.0742, 12.35, 1.2e-05, 25K."""
    if value != 0 and abs(value) >= 10_000:
        return f"{value / 1000:.4g}K" if abs(value) < 1e6 else f"{value / 1e6:.4g}M"
    return f"{value:.3g}" if abs(value) < 10 else f"{value:.4g}"


def png_uri(picture: np.ndarray) -> str:
    """`(h, w, 3 or 4)` uint8 as a PNG data URI."""
    return "data:image/png;base64," + base64.b64encode(png(picture[None])).decode()


def png(video: np.ndarray, fps: float = 8) -> bytes:
    """A PNG file of pictures `(t, h, w, 3 or 4)` uint8: they play in turn, for ever (APNG), or, if t is 1, stand still.

    Wherever a PNG is shown so is this; a viewer that knows no APNG shows the first picture.
    """
    frames, height, width, channels = video.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def packed(picture: np.ndarray) -> bytes:
        rows = picture.reshape(height, -1)
        # Filter "up": differences of rows (modulo 256), which are 0 where pixels were enlarged.
        change = np.diff(rows, axis=0, prepend=np.zeros_like(rows[:1]))
        return zlib.compress(np.concatenate([np.full((height, 1), 2, np.uint8), change], axis=1).tobytes(), 9)

    header = struct.pack(">IIBBBBB", width, height, 8, {3: 2, 4: 6}[channels], 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header)]
    if frames > 1:
        parts.append(chunk(b"acTL", struct.pack(">II", frames, 0)))
    number = 0  # of animation chunks, which are counted
    for i, picture in enumerate(video):
        if frames > 1:
            timing = struct.pack(">IIIIIHHBB", number, width, height, 0, 0, round(1000 / fps), 1000, 0, 0)
            parts.append(chunk(b"fcTL", timing))
            number += 1
        if i == 0:
            parts.append(chunk(b"IDAT", packed(picture)))
        else:
            parts.append(chunk(b"fdAT", struct.pack(">I", number) + packed(picture)))
            number += 1
    return b"".join([*parts, chunk(b"IEND", b"")])


def mp4_uri(video: np.ndarray, fps: float = 8) -> str:
    """`(t, h, w, 3)` uint8 as an H.264 data URI.

    Raises:
      ImportError: PyAV is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_video(path, video, fps=fps, crf=18)
        return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()


def fit(video: np.ndarray, side: int) -> np.ndarray:
    """Bring clips `(..., h, w, 3)` uint8 to a width of about `side` by a whole factor: squares up, area means down."""
    height, width = video.shape[-3:-1]
    if width <= side:
        factor = max(side // width, 1)
        return np.repeat(np.repeat(video, factor, -3), factor, -2)
    factor = math.ceil(width / side)
    height, width = height // factor, width // factor
    cut = video[..., : height * factor, : width * factor, :]
    blocks = cut.reshape(*cut.shape[:-3], height, factor, width, factor, 3)
    return np.rint(blocks.mean(axis=(-4, -2))).astype(np.uint8)


def frame(video: np.ndarray, colour: tuple[int, int, int] | np.ndarray, width: int = 4) -> np.ndarray:
    """Put a border around every picture of `(t, h, w, 3)`; `colour` is one for all or `(t, 3)`."""
    colour = np.broadcast_to(np.asarray(colour, np.uint8), (len(video), 3))[:, None, None]
    t, h, w, _ = video.shape
    framed = np.broadcast_to(colour, (t, h + 2 * width, w + 2 * width, 3)).copy()
    framed[:, width:-width, width:-width] = video
    return framed


def strip(pictures: np.ndarray) -> np.ndarray:
    """Pictures `(n, h, w, 3)` side by side, `(h, W, 4)`: the gaps are transparent."""
    padded = np.pad(pictures, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=255)
    padded = np.pad(padded, ((0, 0), (0, 0), (0, GAP), (0, 0)))
    return np.concatenate(list(padded), axis=1)[:, :-GAP]


class Media:
    """Clips and pictures as HTML elements, until they fill `budget` characters; later ones are left out and say so."""

    def __init__(self, budget: int):
        self.left = budget

    def video(self, clip: np.ndarray, label: str) -> str:
        """A `<video>` of `(t, h, w, 3)` uint8 that plays by itself; `label` is for screen readers."""
        try:
            uri = mp4_uri(clip)
        except ImportError as error:
            return f'<p class="none">{html.escape(str(error))}</p>'
        width = clip.shape[2]
        return self._element(
            f'<video src="{uri}" style="width:min(100%,{width}px)" autoplay loop muted playsinline controls '
            f'aria-label="{html.escape(label)}"></video>'
        )

    def picture(self, picture: np.ndarray, label: str) -> str:
        """An `<img>` of `(h, w, 3 or 4)` uint8."""
        return self._element(
            f'<img src="{png_uri(picture)}" style="width:min(100%,{picture.shape[1]}px)" alt="{html.escape(label)}">'
        )

    def _element(self, element: str) -> str:
        if len(element) > self.left:
            return '<p class="none">Left out to keep this page small.</p>'
        self.left -= len(element)
        return element
