"""Which batches a VAE stage trains on: of one size, or of several sizes that cost the same."""

from __future__ import annotations

import dataclasses

from pv_vae_jax.data.mixture import balanced_batch_sizes
from pv_vae_jax.train.configs import Experiment, VAEStageConfig
from pv_vae_jax.typing import ConfigError


@dataclasses.dataclass(frozen=True)
class SizedBatch:
    """One kind of batch.

    Attributes:
      batch_size: clips of the global batch.
      frames, side: of a clip, `(frames, side, side)` pixels.
      share: its batches in every round of the stage.
      images: single frames of clips, rather than clips.
    """

    batch_size: int
    frames: int
    side: int
    share: int = 1
    images: bool = False

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Of the videos of a global batch, `(b, t, h, w, 3)`."""
        return (self.batch_size, self.frames, self.side, self.side, 3)


def sized_batches(experiment: Experiment, name: str) -> tuple[SizedBatch, ...]:
    """The kinds of batches of VAE stage `name`, in the order of its `sizes`.

    The size with the most pixels a clip takes `batch_size`; the others take as many clips as come to the same number of
    pixels, rounded down to a multiple of `batch_multiple` (paper: "compute per step is balanced"). Nothing depends on
    the devices, so that a run may go on with another number of them.

    Raises:
      ConfigError: `batch_size` is no multiple.
    """
    stage: VAEStageConfig = getattr(experiment, name)
    if not stage.sizes:
        frames = 1 if stage.images else experiment.data.frames
        return (SizedBatch(stage.batch_size, frames, experiment.data.size, images=stage.images),)
    shapes = [(frames, side, side) for frames, side, *_ in stage.sizes]
    try:
        batches = balanced_batch_sizes(shapes, stage.batch_size, multiple=stage.batch_multiple)
    except ValueError as error:
        raise ConfigError(f"{name}.batch_size: {error}") from error
    return tuple(
        SizedBatch(batch, frames, side, *share, images=frames == 1)
        for batch, (frames, side, *share) in zip(batches, stage.sizes, strict=True)
    )


def size_name(shape: tuple[int, ...]) -> str:
    """`17x256` of videos `(b, 17, 256, 256, 3)`: how curves call a size."""
    return f"{shape[1]}x{shape[2]}"
