"""One page frame for every report: sections of blocks, rendered by `templates/page.html`.

A block is a dict with a `kind` that the template knows; the functions here make them. The page holds all it shows, so
it opens without network. Texts are escaped by the template.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pv_vae_jax.report.figures import Media, Series, borders, fit, frame, line_chart
from pv_vae_jax.storage import write_text

BUDGET = 12 << 20  # characters of clips and pictures: the page stays below 15 MB with some room
PANEL = 128  # pixels a side at which a small clip is easy to see
DASH = "–"  # a number that does not exist


def unavailable() -> str | None:
    """Why no page can be written here, and how to change that; None if one can."""
    needed = {"matplotlib": "matplotlib", "jinja2": "jinja2", "PIL": "pillow"}
    missing = [package for module, package in needed.items() if importlib.util.find_spec(module) is None]
    if not missing:
        return None
    return f"reports need {', '.join(missing)}: pip install {' '.join(missing)} (the extra [report] holds them)"


class Section(NamedTuple):
    """A part of a page.

    Attributes:
      anchor: name of its link.
      title: its heading.
      blocks: what it shows, in order.
    """

    anchor: str
    title: str
    blocks: Sequence[dict]


def render_page(
    title: str, sections: Sequence[Section], *, heading: str = "", headline: str = "", notes: Sequence[str] = ()
) -> str:
    """The text of a self-contained HTML page.

    Args:
      title: of the browser's tab, and of the page unless `heading` differs.
      sections: parts of the page, each with a link at the top.
      heading, headline: the title on the page and the line below it.
      notes: warnings, shown above everything else.

    Raises:
      ImportError: Jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise ImportError("reports need Jinja2: pip install jinja2 (the extra [report] holds it)") from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html")
    return page.render(title=title, heading=heading or title, headline=headline, notes=notes, sections=sections)


def write_page(path: Path, title: str, sections: Sequence[Section], **header: object) -> None:
    """Write the page of `render_page` atomically; `header` is its heading, headline and notes."""
    write_text(path, render_page(title, sections, **header))


def text(content: str) -> dict:
    """A paragraph."""
    return {"kind": "text", "text": content}


def missing(content: str) -> dict:
    """A remark in place of something that does not exist."""
    return {"kind": "missing", "text": content}


def heading(content: str, level: int = 3) -> dict:
    """A heading of level 3 or 4."""
    return {"kind": "heading", "text": content, "level": level}


def table(head: Sequence[str], rows: Sequence[Sequence[object]], reference: int = 0) -> dict:
    """A table whose first column names the row; the last `reference` rows are set back."""
    return {"kind": "table", "head": head, "body": rows, "reference": reference}


def facts(summary: str, values: Mapping[str, object]) -> dict:
    """Names and values that can be folded away."""
    return {"kind": "facts", "summary": summary, "facts": values}


def chart(title: str, series: Sequence[Series], **options: object) -> dict:
    """`figures.line_chart` as a block; a remark if no series has a value."""
    if not any(np.isfinite(np.asarray(s.y, float)).any() for s in series):
        return missing(f"{title}: no values.")
    return {"kind": "chart", "svg": line_chart(title, series, **options)}


def grid(style: str, cells: Sequence[dict | Sequence[dict]]) -> dict:
    """Blocks beside each other as far as the screen is wide; `style` is `charts`, `halves` or `latents`."""
    return {"kind": "grid", "style": style, "cells": [[cell] if isinstance(cell, dict) else cell for cell in cells]}


def stack(rows: Sequence[tuple[str, np.ndarray]], media: Media) -> dict:
    """Pictures of equal width below each other, each under its name."""
    pictures = [(name, media.picture(picture, name)) for name, picture in rows]
    return {"kind": "stack", "least": min(rows[0][1].shape[1], 760), "pictures": pictures}


def clip_row(cells: Sequence[tuple[str, np.ndarray, int | None]], media: Media, label: str) -> dict:
    """Clips `(t, h, w, 3)` side by side in one video, so that they play in step, each under its name.

    The last of a cell is the number of frames that the encoder saw, which the border shows; None for an original.
    """
    side = min(PANEL, max(1056 // len(cells) - 8, 64))
    video = np.concatenate([frame(fit(clip, side), borders(len(clip), seen)) for _, clip, seen in cells], axis=2)
    names = [name for name, *_ in cells]
    # At least 84 pixels a panel: a narrow screen scrolls.
    return {"kind": "clips", "names": names, "width": video.shape[2], "least": 84 * len(cells),
            "media": media.video(video, label)}  # fmt: skip


def border_key(content: str) -> dict:
    """A paragraph that ends with the key to the borders of `clip_row`."""
    return {"kind": "borders", "text": content}


def cell(value: object, form: str = ".4g") -> str:
    """A number for a table; a dash for None."""
    if value is None:
        return DASH
    if isinstance(value, float):
        return format(value, form) if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def percent(ratio: float | None) -> str:
    """A relative difference in words: `43% below`."""
    return DASH if ratio is None else f"{abs(ratio):.0%} {'below' if ratio < 0 else 'above'}"
