"""Progress bars: every second on a terminal, and seldom enough for a log elsewhere."""

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(*iterable: Any, **options: Any) -> tqdm:
    """`tqdm` of these arguments, which moves every second on a terminal and every 20 s elsewhere."""
    return tqdm(*iterable, mininterval=1 if sys.stderr.isatty() else 20, **options)
