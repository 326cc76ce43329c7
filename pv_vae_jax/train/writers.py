"""Curves of a stage: one JSON object a line, and TensorBoard where `tensorboardX` is installed."""

from __future__ import annotations

import json
from pathlib import Path


class MetricWriter:
    """Appends scalars to `folder/metrics.jsonl` and to TensorBoard event files beside it.

    A resumed stage first forgets what was written after `start_step`, and takes up the steps that were not yet written
    at `start_step`, so that the curve of an interrupted run equals that of an uninterrupted one.

    Attributes:
      path: of the JSON lines.
      unwritten: `(step, terms)` of the steps up to `start_step` for which `save_pending` was called.
    """

    def __init__(self, folder: Path, start_step: int = 0):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        rows = [row for row in read_metrics(self.path) if row["step"] <= start_step]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
        temporary.replace(self.path)
        self._file = self.path.open("a")
        self._aside = folder / "metrics.aside.json"
        written = rows[-1]["step"] if rows else 0
        aside = _read_aside(self._aside)
        fits = aside and aside[-1][0] == start_step
        self.unwritten = [(step, terms) for step, terms in aside if step > written] if fits else []
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            self._board = None
        else:
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Record `scalars` at `step`."""
        self._file.write(json.dumps({"step": step, **scalars}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in scalars.items():
                self._board.add_scalar(name, value, step)

    def save_pending(self, rows: list[tuple[int, dict[str, float]]]) -> None:
        """Keep the terms of single steps for the process that resumes at the last of them."""
        temporary = self._aside.with_suffix(".tmp")
        temporary.write_text(json.dumps(rows))
        temporary.replace(self._aside)

    def close(self) -> None:
        """Flush and close the files."""
        self._file.close()
        if self._board:
            self._board.close()


class NoOpWriter:
    """A `MetricWriter` for the processes of a run that do not write."""

    unwritten: tuple = ()

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Nothing."""

    def save_pending(self, rows: list[tuple[int, dict[str, float]]]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def read_metrics(path: Path) -> list[dict]:
    """Rows of a metrics file up to the first damaged line, such as one cut off by a kill. No file gives no rows."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # UnicodeDecodeError and JSONDecodeError are both
            break
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            break
        rows.append(row)
    return rows


def _read_aside(path: Path) -> list[tuple[int, dict[str, float]]]:
    """What `save_pending` wrote; a damaged file counts as none, which costs a mean over one window and no training."""
    try:
        return [(int(step), dict(terms)) for step, terms in json.loads(path.read_bytes())]
    except (FileNotFoundError, ValueError, TypeError):
        return []
