"""Curves of a stage: JSON lines, and TensorBoard event files if `tensorboardX` is installed."""

from __future__ import annotations

import json
from pathlib import Path

from pv_vae_jax.storage import write_text


class MetricWriter:
    """Appends scalars to `folder/metrics.jsonl` and to TensorBoard event files beside it.

    A resumed stage first removes the rows after `start_step`, and takes over the steps that were pending at
    `start_step`, so that the curve of an interrupted run equals that of an uninterrupted one.

    Attributes:
      path: path of the JSON lines.
      unwritten: `(step, terms)` of the steps up to `start_step` for which `save_pending` was called.
    """

    def __init__(self, folder: Path, start_step: int = 0):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        rows = [row for row in read_metrics(self.path) if row["step"] <= start_step]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))
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
        write_text(self._aside, json.dumps(rows))

    def close(self) -> None:
        """Flush and close the files."""
        self._file.close()
        if self._board:
            self._board.close()


class NoOpWriter:
    """A `MetricWriter` that writes nothing, for all processes of a run but the first."""

    unwritten: tuple = ()

    def write(self, step: int, scalars: dict[str, float]) -> None: ...

    def save_pending(self, rows: list[tuple[int, dict[str, float]]]) -> None: ...

    def close(self) -> None: ...


def read_metrics(path: Path) -> list[dict]:
    """Rows of a metrics file up to the first damaged line, such as one that a kill cut off; [] if there is no file."""
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
    """The rows of `save_pending`; [] if the file is damaged, which changes the mean of one window and no training."""
    try:
        return [(int(step), dict(terms)) for step, terms in json.loads(path.read_bytes())]
    except (FileNotFoundError, ValueError, TypeError):
        return []
