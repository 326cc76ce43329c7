"""Pages from the templates beside this file: the templates hold texts and layout, Python gathers what they show.

A page holds all it shows, so it opens without network. The templates escape all text.
"""

import functools
import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pv_vae_jax.hub import is_address
from pv_vae_jax.messages import counted
from pv_vae_jax.report.figures import PLAIN, Media, Series, borders, fit, frame, line_chart, strip
from pv_vae_jax.storage import as_path, write_text
from pv_vae_jax.typing import ConfigError

BUDGET = 12 << 20  # characters of clips and pictures: the page stays below 15 MB with some room
PANEL = 128  # pixels a side at which a small clip is easy to see
DASH = "–"  # a number that does not exist
GUESSES = ("copying", "extrapolation")  # of frames that were not seen, without a model
STRIP_FRAMES = 17  # of a clip shown frame by frame
Cell = tuple[str, np.ndarray, int | None]  # of a row of clips: name, clip, frames that the encoder saw


def unavailable() -> str | None:
    """Why no page can be written here, and how to change that; None if one can."""
    needed = {"matplotlib": "matplotlib", "jinja2": "jinja2", "PIL": "pillow", "av": "av"}
    missing = [package for module, package in needed.items() if importlib.util.find_spec(module) is None]
    if not missing:
        return None
    return f"reports need {', '.join(missing)}: pip install {' '.join(missing)} (the extra [report] holds them)"


def environment() -> Any:
    """Jinja2's environment of the templates, with the filters `cell`, `percent` and `counted`.

    Raises:
      ImportError: Jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise ImportError("reports need Jinja2: pip install jinja2 (the extra [report] holds it)") from error
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.do"],
    )
    made.filters |= {"cell": cell, "percent": percent, "counted": counted}
    return made


def write_page(path: Path, template: str, **content: object) -> None:
    """Write the page of `template`, which shows `content`, atomically.

    Templates call what charts and clips are made with, `figures` and the functions below, as far as `BUDGET` lasts.
    """
    made, media = environment(), Media(BUDGET)
    made.globals |= {
        "chart": chart,
        "series": Series,
        "fit": fit,
        "strip": strip,
        "np": np,
        "picture": media.picture,
        "PANEL": PANEL,
    }
    made.globals |= {
        make.__name__: functools.partial(make, media=media) for make in (stack, clip_row, film, reel, paint)
    }
    write_text(path, made.get_template(template).render(content))


def chart(title: str, curves: Sequence[Series | tuple], start: int = 0, **options: Any) -> dict:
    """`figures.line_chart` for the macro `show`; a remark if no curve has a value.

    Curves are `Series`, or (name, values) at `start`, `start + 1` and so on, of which guesses are dashed.
    """
    dash = lambda name: "dashed" if name in GUESSES else "line"  # noqa: E731
    places = lambda values: range(start, start + len(values))  # noqa: E731
    series = [
        c if isinstance(c, Series) else Series(c[0], places(c[1]), np.asarray(c[1], float), dash(c[0])) for c in curves
    ]
    if not any(np.isfinite(np.asarray(s.y, float)).any() for s in series):
        return {"missing": f"{title}: no values."}
    return {"svg": line_chart(title, series, **options)}


def stack(rows: Sequence[tuple[str, np.ndarray]], media: Media) -> dict:
    """Pictures `(h, w, 3 or 4)` for the macro `stack`, each with its name."""
    pictures = [(name, media.picture(picture, name)) for name, picture in rows]
    return {"least": min(rows[0][1].shape[1], 760), "pictures": pictures}


def clip_row(title: str, cells: Sequence[Cell], media: Media) -> dict:
    """Clips `(t, h, w, 3)` for the macro `clip_row`, in one video so that they play in step.

    The border shows which frames the encoder saw; that of an original, which has None of them, is grey.
    """
    side = min(PANEL, max(1056 // len(cells) - 8, 64))
    video = np.concatenate([frame(fit(clip, side), borders(len(clip), seen)) for _, clip, seen in cells], axis=2)
    names, label = [name for name, *_ in cells], f"{title}: {', '.join(name for name, *_ in cells)}"
    # At least 84 pixels a panel: a narrow screen scrolls.
    return {"names": names, "width": video.shape[2], "least": 84 * len(cells), "media": media.video(video, label)}


def film(cells: Sequence[Cell], media: Media) -> dict:
    """The frames of clips for the macro `stack`, one clip below the other."""
    frames = len(cells[0][1])
    index = np.unique(np.linspace(0, frames - 1, min(frames, STRIP_FRAMES)).round().astype(int))
    framed = [(name, frame(fit(clip[index], 64), borders(frames, seen)[index], 3)) for name, clip, seen in cells]
    return stack([(name, strip(pictures)) for name, pictures in framed], media)


def reel(title: str, clips: np.ndarray, media: Media) -> dict:
    """Clips `(n, t, h, w, 3)` side by side in one video, for the macro `show`."""
    row = [frame(clip, PLAIN, 2) for clip in (fit(clips, PANEL) if len(clips) else ())]
    if not row:
        return {"missing": "No clip of this class."}
    label = f"{title}, {len(row)} side by side" if len(row) > 1 else title
    return media.video(np.concatenate(row, axis=2), label)


def paint(frames: np.ndarray, colours: np.ndarray, media: Media) -> dict:
    """Frames `(g, h, w, 3)` above latents as colours `(g, h', w', 3)`, as large, for the macro `stack`."""
    small = fit(frames, 96)
    rows, columns = (np.arange(n) * m // n for n, m in zip(small.shape[1:3], colours.shape[1:3], strict=True))
    return stack([("Frames", strip(small)), ("Latents", strip(colours[:, rows][:, :, columns]))], media)


def cell(value: object, form: str = ".4g") -> str:
    """A number for a table; a dash for None and NaN."""
    if value is None or isinstance(value, float) and math.isnan(value):
        return DASH
    if isinstance(value, float):
        return format(value, form) if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def short_names(paths: Sequence[str], what: str) -> dict[str, str]:
    """Label -> path: the names of the folders, or the paths where names repeat.

    Raises:
      ConfigError: a path is given twice.
    """
    found = [Path(path) if is_address(path) else as_path(path).resolve() for path in paths]
    if len(set(found)) < len(paths):
        raise ConfigError(f"a {what} is named twice: {', '.join(paths)}")
    short = [path.name for path in found]
    return dict(zip(short if len(set(short)) == len(short) else paths, paths, strict=True))


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table for a terminal, its first column on the left and the others on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([first.ljust(widths[0]), *(text.rjust(w) for text, w in zip(rest, widths[1:], strict=True))]).rstrip()
        for first, *rest in rows
    ]


def percent(ratio: float | None) -> str:
    """A relative difference in words: `43% below`."""
    return DASH if ratio is None else f"{abs(ratio):.0%} {'below' if ratio < 0 else 'above'}"
