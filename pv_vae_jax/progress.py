"""Progress bars: every second on a terminal, and seldom enough for a log elsewhere."""

import os
import sys
from typing import Any

from tqdm import tqdm


def progress_bar(*iterable: Any, **options: Any) -> tqdm:
    """`tqdm` of these arguments, which moves every second on a terminal and every 20 s elsewhere."""
    on_terminal = sys.stderr.isatty()
    if on_terminal and 0 in os.get_terminal_size(sys.stderr.fileno()):  # it does not say, and tqdm would show nothing
        options = dict(ncols=100, nrows=20) | options
    return tqdm(*iterable, mininterval=1 if on_terminal else 20, **options)
