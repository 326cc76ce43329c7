"""Clips, pictures and curves in a notebook, shown as the last expression of a cell.

Clips are animated PNGs and curves SVGs, so they stay in the saved notebook and need no player.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pv_vae_jax.report.figures import GAP, Series, borders, fit, frame, line_chart, png, strip
from pv_vae_jax.storage import as_path, atomic


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure that Jupyter and Colab show; `save` writes it to a file.

    Attributes:
      data: content of the file.
      kind: its type, `image/png` or `image/svg+xml`.
    """

    data: bytes
    kind: str

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict:
        svg = self.kind == "image/svg+xml"
        return {self.kind: self.data.decode() if svg else self.data, "text/plain": repr(self)}

    def __repr__(self) -> str:
        return f"<{self.kind}, {len(self.data):,} bytes>"

    def save(self, path: str | Path) -> None:
        """Write the file atomically."""
        with atomic(as_path(path)) as temporary:
            temporary.write_bytes(self.data)


def show_clips(*columns: np.ndarray, seen: Sequence[int | None] = (), side: int = 96, fps: float = 8) -> Figure:
    """Clips that play in step: a column for each argument, a row for each clip.

    Args:
      columns: `(n, t, h, w, 3)` uint8 each, or `(t, h, w, 3)`, all of one shape.
      seen: for each column the number of frames that the encoder saw: those get a blue border, the later ones an orange
        one. None or no entry gives a grey border.
      side: approximate width of a clip on screen, in pixels; small clips grow by a whole factor.
      fps: frames per second.

    Raises:
      ImportError: Pillow is not installed.
      ValueError: the columns have different shapes, or are not clips.
    """
    clips = [np.asarray(column) for column in columns]
    clips = [clip[None] if clip.ndim == 4 else clip for clip in clips]
    _check(clips, 5, "(n, t, h, w, 3)")
    observed = [*seen, *[None] * len(clips)]
    framed = [
        [frame(fit(clip, side), borders(len(clip), observed[i]), 3) for clip in column]
        for i, column in enumerate(clips)
    ]
    rows = [np.concatenate(row, axis=2) for row in zip(*framed, strict=True)]
    return Figure(png(np.concatenate(rows, axis=1), fps), "image/png")


def show_pictures(*rows: np.ndarray, side: int = 64) -> Figure:
    """Still pictures, a row for each argument: `(n, h, w, 3)` uint8, scaled to about `side` pixels.

    Rows may differ in `h` and `w`, so that latents can be shown below their frames.

    Raises:
      ImportError: Pillow is not installed.
      ValueError: the rows have different lengths, or are not pictures.
    """
    pictures = [np.asarray(row) for row in rows]
    for row in pictures:
        _check([row], 4, "(n, h, w, 3)")
    if len({len(row) for row in pictures}) != 1:
        raise ValueError(f"expected as many pictures in every row, got {[len(row) for row in pictures]}")
    strips = [strip(fit(row, side)) for row in pictures]
    width = max(row.shape[1] for row in strips)
    padded = [np.pad(row, ((0, GAP), (0, width - row.shape[1]), (0, 0))) for row in strips]
    return Figure(png(np.concatenate(padded)[None, :-GAP]), "image/png")


def show_curves(title: str, rows: Sequence[dict] | dict[str, Sequence[dict]], *terms: str, log: bool = False) -> Figure:
    """Curves over training steps.

    Args:
      title: names the quantity.
      rows: rows of a `metrics.jsonl` (`train.writers.read_metrics`), or those of several runs by name.
      terms: names of the curves; each run shows those that it has.
      log: whether the axis is logarithmic, where values are positive and far apart.

    Raises:
      ImportError: matplotlib is not installed.
      ValueError: no run has any of the terms.
    """
    runs = rows if isinstance(rows, dict) else {"": rows}
    series = []
    for name, run in runs.items():
        for term in terms:
            have = [row for row in run if row.get(term) is not None]
            label = " ".join(part for part in (name, "" if name and len(terms) == 1 else term) if part)
            series.append(Series(label, [row["step"] for row in have], [row[term] for row in have]))
    return Figure(line_chart(title, series, x_label="step", log=log, ends=True).encode(), "image/svg+xml")


def _check(clips: Sequence[np.ndarray], axes: int, form: str) -> None:
    shapes = [clip.shape for clip in clips]
    if not clips or len(set(shapes)) != 1 or len(shapes[0]) != axes or shapes[0][-1] != 3:
        raise ValueError(f"expected arrays {form} of one shape, got {', '.join(map(str, shapes)) or 'none'}")
    if clips[0].dtype != np.uint8:
        raise ValueError(f"expected uint8 pixels, got {clips[0].dtype}; convert them with pv_vae_jax.to_uint8")
