"""Pages from the templates beside this file: the templates hold texts and layout, Python gathers what they show.

A page holds all it shows, so it opens without network. The templates escape all text.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pv_vae_jax.report.figures import Media, Series, borders, fit, frame, line_chart
from pv_vae_jax.storage import as_path, write_text
from pv_vae_jax.typing import ConfigError

if TYPE_CHECKING:
    import jinja2

BUDGET = 12 << 20  # characters of clips and pictures: the page stays below 15 MB with some room
PANEL = 128  # pixels a side at which a small clip is easy to see
DASH = "–"  # a number that does not exist
Cell = tuple[str, np.ndarray, int | None]  # of a row of clips: name, clip, frames that the encoder saw


def unavailable() -> str | None:
    """Why no page can be written here, and how to change that; None if one can."""
    needed = {"matplotlib": "matplotlib", "jinja2": "jinja2", "PIL": "pillow", "av": "av"}
    missing = [package for module, package in needed.items() if importlib.util.find_spec(module) is None]
    if not missing:
        return None
    return f"reports need {', '.join(missing)}: pip install {' '.join(missing)} (the extra [report] holds them)"


def environment() -> jinja2.Environment:
    """The templates, with the filters `cell` and `percent`.

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
    made.filters |= {"cell": cell, "percent": percent}
    return made


def write_page(path: Path, template: str, **content: object) -> None:
    """Write the page of `template`, which shows `content`, atomically."""
    write_text(path, environment().get_template(template).render(content))


def chart(title: str, series: Sequence[Series], **options: object) -> dict:
    """`figures.line_chart` for the macro `show`; a remark if no series has a value."""
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
    if len({as_path(path).resolve() for path in paths}) < len(paths):
        raise ConfigError(f"a {what} is named twice: {', '.join(paths)}")
    short = [as_path(path).resolve().name for path in paths]
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
