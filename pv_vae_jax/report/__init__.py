"""Pages, charts and pictures of what was measured, on disk and in notebooks."""

from __future__ import annotations

import functools
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING

from pv_vae_jax._lazy import lazy_imports

if TYPE_CHECKING:  # imported on first use
    from pv_vae_jax.report.notebook import show_clips, show_curves, show_pictures
    from pv_vae_jax.report.run_page import write_report

__all__ = [
    "paper_table", "show_clips", "show_curves", "show_pictures", "unavailable", "write_report",
]  # fmt: skip

__getattr__, __dir__ = lazy_imports(__name__)


def unavailable() -> str | None:
    """Why no page can be written here, and how to change that; None if one can."""
    needed = {"matplotlib": "matplotlib", "jinja2": "jinja2", "PIL": "pillow"}
    missing = [package for module, package in needed.items() if importlib.util.find_spec(module) is None]
    if not missing:
        return None
    return f"reports need {', '.join(missing)}: pip install {' '.join(missing)} (the extra [report] holds them)"


@functools.cache
def paper_table() -> dict:
    """Numbers of the paper (arXiv 2605.02134), for rows that are marked as such.

    Keys are `source`, the tables 1 and 2 by VAE (`generation`, `reconstruction`, `cost`) with their `protocol`, and
    `ablations`: `source` and `tables`, the tables 4 to 6 as `title`, `columns` and `rows`.
    """
    return json.loads(Path(__file__).with_name("paper.json").read_text(encoding="utf-8"))
