"""The numbers that the paper reports."""

import functools
import json
from pathlib import Path


@functools.cache
def paper_table() -> dict:
    """Numbers of the paper (arXiv 2605.02134), for rows that are marked as such.

    Keys are `source`, the tables 1 and 2 by VAE (`generation`, `reconstruction`, `cost`) with their `protocol`, and
    `ablations`: `source` and `tables`, the tables 4 to 6 as `title`, `columns` and `rows`.
    """
    return json.loads(Path(__file__).with_name("paper.json").read_text(encoding="utf-8"))
