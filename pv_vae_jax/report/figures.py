"""Charts as SVG text, pictures and clips as files in memory.

A chart is one self-contained SVG: title, axes and legend are inside it, and its colours follow the reader's light or
dark scheme. The same text stands in a page, in a file behind an `<img>` and in a notebook.
"""

import base64
import contextlib
import dataclasses
import html
import io
import math
import re
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pv_vae_jax.data.video_writing import NoEncoderError, write_video
from pv_vae_jax.storage import write_text

WIDTH, PLOT_HEIGHT = 420, 182  # of a chart, and of its plotting area, in CSS pixels
LEFT, RIGHT, BELOW, LINE = 56, 20, 46, 19  # margins, and the height of a line of text
MAX_POINTS = 400  # per curve: a chart is hardly wider on screen
MARKER_POINTS = 40  # longer curves are drawn without markers
FEW = 8  # curves of which two that lie on each other can be told apart
DASH = 2.5  # line widths that a dash is long
NEAR = 0.02  # of the height of a chart: curves that are as near lie on each other
GAP = 4  # pixels between pictures
# Borders of frames: an original, one that the encoder saw, one that it had to predict.
PLAIN, SEEN, PREDICTED = (138, 138, 146), (38, 110, 214), (242, 125, 12)
# Colours as (light page, dark page). Curves take theirs in this order; the largest study has 13.
COLOURS = (
    *(("#1f6fd6", "#6ea8fe"), ("#d9480f", "#ff922b"), ("#2b8a3e", "#69db7c"), ("#9c36b5", "#da77f2")),
    *(("#b08900", "#ffd43b"), ("#0b7285", "#3bc9db"), ("#868e96", "#adb5bd"), ("#e64980", "#faa2c1")),
    *(("#5c940d", "#c0eb75"), ("#5f3dc4", "#b197fc"), ("#212529", "#f1f3f5"), ("#c77dff", "#e8a2ff")),
    ("#c92a2a", "#ff8787"),
)
PAGE, INK, SOFT, GRID = ("#ffffff", "#1c2128"), ("#1b1f26", "#e6e9ee"), ("#5b6472", "#9aa4b2"), ("#d9dee6", "#333a45")
THEME = {light: (f"--c{i}", dark) for i, (light, dark) in enumerate(COLOURS)}
THEME |= {light: (name, dark) for name, (light, dark) in (("--p", PAGE), ("--i", INK), ("--s", SOFT), ("--g", GRID))}
RC = {
    # Text stays text, names are never read as TeX, and equal charts are equal files.
    **{"svg.fonttype": "none", "svg.hashsalt": "pv-vae", "text.parse_math": False, "font.size": 12},
    "text.color": INK[0],
    **{"axes.facecolor": "none", "axes.labelcolor": SOFT[0], "axes.axisbelow": True, "axes.spines.bottom": False},
    **{"axes.spines.left": False, "axes.spines.right": False, "axes.spines.top": False},
    **{"axes.xmargin": 0, "axes.ymargin": 0.04, "grid.color": GRID[0], "grid.linewidth": 1},
    **{"xtick.bottom": False, "xtick.labelcolor": SOFT[0], "ytick.left": False, "ytick.labelcolor": SOFT[0]},
    **{"lines.solid_capstyle": "round", "lines.dashed_pattern": (3, 1.5)},
    **{"legend.frameon": False, "legend.labelcolor": SOFT[0], "legend.borderpad": 0, "legend.borderaxespad": 0},
}
STILL = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # no date or version in the file


@dataclasses.dataclass(frozen=True)
class Series:
    """One curve: `y` over `x`; values that are not finite leave a gap.

    Attributes:
      name: label in the legend.
      x, y: the points.
      style: `line`, `dashed` (for references that are no model) or `points`.
      low, high: a band around the curve; empty for none.
    """

    name: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    style: str = "line"
    low: Sequence[float] | np.ndarray = ()
    high: Sequence[float] | np.ndarray = ()


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str = "",
    log: bool = False,
    ends: bool = False,
    width: int = WIDTH,
) -> str:
    """A chart with its title and legend as the text of an SVG file.

    Args:
      title: names the quantity.
      series: the curves; long ones are averaged down to `MAX_POINTS` points, those without a finite value are left out.
      x_label, y_label: names of the axes.
      log: logarithmic values, if all of them are positive and span more than a factor of 4.
      ends: the legend gives each curve's last value.
      width: of the drawing, in CSS pixels.

    Raises:
      ImportError: matplotlib is not installed.
      ValueError: no series has a finite value.
    """
    curves = [s for s in map(_thinned, series) if np.isfinite(s.y).any()]
    if not curves:
        raise ValueError(f"{title}: there are no values to draw")
    names = [f"{s.name} {_last(s)}" if ends else s.name for s in curves]
    columns = 2 if max(map(len, names)) <= (width - LEFT) // 14 - 4 else 1
    headline = textwrap.wrap(title, width // 8) or [""]
    top, plot_height = LINE * len(headline) + 19, PLOT_HEIGHT * width // WIDTH
    height = top + plot_height + BELOW + LINE * math.ceil(len(names) / columns) + 4
    label = f"{title}{{}}, over {x_label}: " + "; ".join(f"{s.name} ends at {_last(s)}" for s in curves)
    with _figure(width, height) as figure:
        style = {"color": INK[0], "size": 13, "weight": "bold", "va": "top"}
        figure.text(12 / width, 1 - 12 / height, "\n".join(headline), **style)
        box = (LEFT / width, 1 - (top + plot_height) / height, (width - LEFT - RIGHT) / width, plot_height / height)
        axes = figure.add_axes(box)
        lines, log = _draw(axes, curves, log)
        y_label = f"{y_label}{' (logarithmic)' if log else ''} over " if y_label else ""
        axes.set_xlabel(y_label + x_label)
        axes.legend(lines, names, loc="upper left", bbox_to_anchor=(0, -BELOW / plot_height), ncols=columns)
        return _svg(figure, label.format(", logarithmic" if log else ""))


@contextlib.contextmanager
def chart_file(path: Path, label: str, width: int, height: int) -> Iterator[Any]:
    """Matplotlib's axes for any other chart; what the block draws is written to `path` when it ends.

    Args:
      path: the SVG file.
      label: what the chart shows, for those who do not see it.
      width, height: in CSS pixels.

    Raises:
      ImportError: matplotlib is not installed.
    """
    with _figure(width, height, layout="constrained") as figure:
        yield figure.add_subplot()
        write_text(path, _svg(figure, label))


@contextlib.contextmanager
def _figure(width: int, height: int, **options: Any) -> Iterator[Any]:
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("charts need matplotlib: pip install matplotlib (the extra [report] holds it)") from error
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a notebook's own style does not reach the chart
        lights = matplotlib.cycler(color=[light for light, _ in COLOURS])  # pyright: ignore[reportAttributeAccessIssue]
        matplotlib.rcParams.update(RC | {"axes.prop_cycle": lights})  # pyright: ignore[reportCallIssue, reportArgumentType]
        yield Figure((width / 72, height / 72), dpi=72, facecolor=PAGE[0], **options)


def _svg(figure: Any, label: str) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata=STILL, facecolor=PAGE[0])
    width, height = (round(72 * inches) for inches in figure.get_size_inches())
    return _compact(file.getvalue(), label, width, height)


def _draw(axes: Any, curves: Sequence[Series], log: bool) -> tuple[list, bool]:
    """Draw curves and ticks; returns the curves' lines, and whether the values are logarithmic."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    ys = np.concatenate([np.concatenate([s.y, s.low, s.high]) for s in curves])
    low, high = float(np.nanmin(ys)), float(np.nanmax(ys))
    log = log and low > 0 and high > 4 * low  # a narrow range reads better on a plain axis
    lines, under = [], _covered(curves, low, high, log) if len(curves) <= FEW else [*range(len(curves))]
    solid = [s.style == "line" and under[i] == i for i, s in enumerate(curves)]
    for i, s in enumerate(curves):
        over = under[i] != i
        marker = "o" if len(s.x) <= MARKER_POINTS and s.style != "dashed" and not over else ""
        size = 7 if s.style == "points" or len(s.x) == 1 else 5
        # Earlier curves are wider, so that one that lies partly under another still shows on both sides.
        width = 2 + (1.2 * sum(solid[under[i] + 1 :]) if sum(solid) <= 6 and s.style == "line" else 0)
        line = {"points": "none", "dashed": "--", "line": "-"}[s.style]
        if over:  # curves on the same one take turns
            count, turn = under.count(under[i]) - 1, under[:i].count(under[i]) - 1
            line = DASH * (count + 1 - turn), (DASH, DASH * count)
        lines += axes.plot(s.x, s.y, ls=line, lw=width, marker=marker, markersize=size, clip_on=False)
        if len(s.low):
            axes.fill_between(s.x, s.low, s.high, color=lines[-1].get_color(), alpha=0.15, linewidth=0, clip_on=False)
    xs = np.unique(np.concatenate([s.x for s in curves]))
    if log:
        axes.set_yscale("log")
        fine = math.log10(high / low) < 2.5
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if fine else (1,), numticks=8))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 5, 10)))
        if 0 <= 2 * low <= high:
            axes.set_ylim(bottom=0)
    if len(xs) <= 12 and (xs == np.round(xs)).all():  # few whole numbers: each gets its tick
        axes.set_xticks(xs)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10)))
        axes.set_xlim(left=min(0.0, xs[0]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: number(value))
    axes.grid(axis="y", clip_on=False)
    return lines, log


def _covered(curves: Sequence[Series], low: float, high: float, log: bool) -> list[int]:
    """For each curve the first that its line would hide all along, or itself: its dashes let that one show."""
    values = [np.asarray(s.y) for s in curves]
    heights = [(np.log(y / low) / math.log(high / low) if log else (y - low) / ((high - low) or 1)) for y in values]

    def covers(i: int, j: int) -> bool:
        alike = curves[i].style == curves[j].style == "line" and np.array_equal(curves[i].x, curves[j].x)
        return i == j or alike and np.allclose(heights[i], heights[j], 0, NEAR, equal_nan=True)

    return [next(j for j in range(i + 1) if covers(i, j)) for i in range(len(curves))]


def _compact(svg: str, label: str, width: int, height: int) -> str:
    """Matplotlib's file without what no browser needs, numbers to 0.1 pixel, and light colours as variables.

    A viewer that knows no variables shows the light colours.
    """
    body = svg[svg.index("</defs>") + len("</defs>") : svg.rindex("</svg>")]
    body = re.sub(r"</?g\b[^>]*>| font-family: [^;\"]+;?| transform=\"rotate\(-0 [^\"]*\"", "", body)
    body = re.sub(r'(?<= [dxy]=")[^"]*', lambda match: re.sub(r"(\.\d)\d+", r"\1", match[0]), body)
    body = re.sub(r"\s*\n\s*", "\n", body.replace("xlink:href", "href")).strip()
    used = {light: THEME[light] for light in sorted(set(re.findall(r"#[0-9a-f]{6}(?=[;\"])", body)) & set(THEME))}
    for light, (name, _) in used.items():
        body = body.replace(light, f"var({name},{light})")
    dark = "".join(f"{name}:{colour};" for name, colour in used.values())
    style = f".pv text{{font-family:system-ui,sans-serif}}@media(prefers-color-scheme:dark){{.pv{{{dark}}}}}"
    return (
        f'<svg class="pv" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="{html.escape(label)}"><style>{style}</style>'
        f"\n{body}\n</svg>\n"
    )


def _thinned(series: Series) -> Series:
    """The series as arrays; means over neighbouring points, so that at most `MAX_POINTS` remain."""
    parts = np.array_split(np.arange(len(series.x)), min(len(series.x), MAX_POINTS) or 1)
    names = ("x", "y", "low", "high")
    values = {name: np.asarray(getattr(series, name), float) for name in names}
    if len(series.x) > MAX_POINTS:
        values = {name: np.array([v[p].mean() for p in parts]) if len(v) else v for name, v in values.items()}
    return dataclasses.replace(series, **values)


def _last(series: Series) -> str:
    y = np.asarray(series.y)
    return number(y[np.isfinite(y)][-1])


def number(value: float) -> str:
    """At most four digits: 0.0742, 12.35, 1.2e-05, 25K."""
    if value != 0 and abs(value) >= 10_000:
        return f"{value / 1000:.4g}K" if abs(value) < 1e6 else f"{value / 1e6:.4g}M"
    return f"{value:.3g}" if abs(value) < 10 else f"{value:.4g}"


def png(video: np.ndarray, fps: float = 8) -> bytes:
    """A PNG file of pictures `(t, h, w, 3 or 4)` uint8; several play in a loop (APNG).

    A viewer that does not know APNG shows the first picture.

    Raises:
      ImportError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("pictures need Pillow: pip install pillow (the extra [report] holds it)") from error
    first, *rest = [Image.fromarray(picture) for picture in video]
    moving = {"save_all": True, "append_images": rest, "duration": 1000 / fps, "loop": 0} if rest else {}
    file = io.BytesIO()
    first.save(file, "PNG", compress_level=9, **moving)
    return file.getvalue()


def png_uri(picture: np.ndarray) -> str:
    """`(h, w, 3 or 4)` uint8 as a PNG data URI."""
    return "data:image/png;base64," + base64.b64encode(png(picture[None])).decode()


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
    factor = min(math.ceil(width / side), height)
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


def borders(frames: int, observed: int | None) -> np.ndarray:
    """`(frames, 3)` colours of the border: seen by the encoder, then predicted; grey if `observed` is None."""
    later = PLAIN if observed is None else PREDICTED
    return np.array([SEEN if t < (observed or 0) else later for t in range(frames)])


def strip(pictures: np.ndarray) -> np.ndarray:
    """Pictures `(n, h, w, 3)` side by side, `(h, W, 4)`: the gaps are transparent."""
    padded = np.pad(pictures, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=255)
    padded = np.pad(padded, ((0, 0), (0, 0), (0, GAP), (0, 0)))
    return np.concatenate(list(padded), axis=1)[:, :-GAP]


class Media:
    """Clips and pictures for a page, until they fill `budget` characters; the page says what was left out."""

    def __init__(self, budget: int):
        self.left = budget

    def video(self, clip: np.ndarray, label: str) -> dict:
        """`(t, h, w, 3)` uint8 as a clip that plays by itself; `label` is for screen readers."""
        try:
            return self._within_budget(mp4_uri(clip), clip.shape[2], label)
        except (ImportError, NoEncoderError) as error:
            return {"missing": str(error)}

    def picture(self, picture: np.ndarray, label: str) -> dict:
        """`(h, w, 3 or 4)` uint8 as a still picture."""
        return self._within_budget(png_uri(picture), picture.shape[1], label)

    def _within_budget(self, uri: str, width: int, label: str) -> dict:
        if len(uri) > self.left:
            return {"missing": "Left out to keep this page small."}
        self.left -= len(uri)
        return {"uri": uri, "width": width, "label": label}
