"""Files that are there whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def partial(path: Path) -> Path:
    """The name under which `path` is written until its last byte is there."""
    return path.with_name(f".{path.name}.partial")


def write_json(path: Path, tree: Any) -> None:
    """Write `tree` to `path`, whole or not at all.

    Raises:
      ValueError: a number is NaN or infinite, which JSON has not.
    """
    temporary = partial(path)
    try:
        temporary.write_text(json.dumps(tree, indent=1, allow_nan=False) + "\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
