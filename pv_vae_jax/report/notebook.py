"""Clips, pictures and curves where a notebook can see them: the last expression of a cell shows itself.

Clips are animated PNGs and curves SVGs: nothing is loaded, no player and no plotting package is needed, and they stay
in the saved notebook.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pv_vae_jax.report.figures import Series, fit, frame, png, strip, svg_chart
from pv_vae_jax.report.run_page import DRAWN, PLAIN, SEEN


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure that Jupyter and Colab show; `save` writes it to a file.

    Attributes:
      data: of the file, PNG or SVG.
      kind: `image/png` or `image/svg+xml`.
    """

    data: bytes
    kind: str

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict:
        svg = self.kind == "image/svg+xml"
        return {self.kind: self.data.decode() if svg else self.data, "text/plain": repr(self)}

    def __repr__(self) -> str:
        return f"<{self.kind}, {len(self.data):,} bytes>"

    def save(self, path: str | Path) -> None:
        """Write the file, whole or not at all."""
        path = Path(path)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_bytes(self.data)
        temporary.replace(path)


def show_clips(*columns: np.ndarray, seen: Sequence[int | None] = (), side: int = 96, fps: float = 8) -> Figure:
    """Clips that play in step: a column for each argument, a row for each clip.

    Args:
      columns: `(n, t, h, w, 3)` uint8 each, or `(t, h, w, 3)`; all alike.
      seen: for each column the frames that the encoder saw, which get a blue border, the later ones an orange one; None
        or no entry gives a grey border.
      side: about the width of a clip on screen, in pixels; small clips grow by a whole factor.
      fps: frames per second.

    Raises:
      ValueError: the columns have different shapes, or are no clips.
    """
    clips = [np.asarray(column) for column in columns]
    clips = [clip[None] if clip.ndim == 4 else clip for clip in clips]
    _check(clips, 5, "(n, t, h, w, 3)")
    frames = clips[0].shape[1]

    def border(column: int) -> np.ndarray:
        count = seen[column] if column < len(seen) else None
        if count is None:
            return np.array([PLAIN] * frames)
        return np.array([SEEN if t < count else DRAWN for t in range(frames)])

    framed = [[frame(fit(clip, side), border(i), 3) for clip in column] for i, column in enumerate(clips)]
    rows = [np.concatenate(row, axis=2) for row in zip(*framed, strict=True)]
    return Figure(png(np.concatenate(rows, axis=1), fps), "image/png")


def show_pictures(*rows: np.ndarray, side: int = 64) -> Figure:
    """Still pictures, a row for each argument: `(n, h, w, 3)` uint8, brought to about `side` pixels.

    Rows may differ in `h` and `w`, so that latents stand below their frames.

    Raises:
      ValueError: the rows have different lengths, or are no pictures.
    """
    pictures = [np.asarray(row) for row in rows]
    for row in pictures:
        _check([row], 4, "(n, h, w, 3)")
    if len({len(row) for row in pictures}) != 1:
        raise ValueError(f"rows of one figure have as many pictures each, got {[len(row) for row in pictures]}")
    strips = [strip(fit(row, side)) for row in pictures]
    width = max(row.shape[1] for row in strips)
    gap = 4
    padded = [np.pad(row, ((0, gap), (0, width - row.shape[1]), (0, 0))) for row in strips]
    return Figure(png(np.concatenate(padded)[None, :-gap]), "image/png")


def show_curves(title: str, rows: Sequence[dict] | dict[str, Sequence[dict]], *terms: str, log: bool = False) -> Figure:
    """Curves over training steps.

    Args:
      title: names the quantity.
      rows: of a `metrics.jsonl` (`train.metrics.read_metrics`): `step` and terms; or several runs by name.
      terms: to draw; a run draws those that it has.
      log: logarithmic, where values are positive and far apart.

    Raises:
      ValueError: no run has any of the terms.
    """
    runs = rows if isinstance(rows, dict) else {"": rows}
    series = []
    for name, run in runs.items():
        for term in terms:
            have = [row for row in run if row.get(term) is not None]
            label = " ".join(part for part in (name, "" if name and len(terms) == 1 else term) if part)
            series.append(Series(label, [row["step"] for row in have], [row[term] for row in have]))
    return Figure(svg_chart(title, series, x_label="step", log=log).encode(), "image/svg+xml")


def _check(clips: Sequence[np.ndarray], axes: int, form: str) -> None:
    shapes = [clip.shape for clip in clips]
    if not clips or len(set(shapes)) != 1 or len(shapes[0]) != axes or shapes[0][-1] != 3:
        raise ValueError(f"clips and pictures are {form} and alike, got {', '.join(map(str, shapes)) or 'none'}")
    if clips[0].dtype != np.uint8:
        raise ValueError(f"pixels are uint8 here, got {clips[0].dtype}: pv_vae_jax.to_uint8 makes them of [-1, 1]")
