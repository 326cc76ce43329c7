"""What a VAE stage needs for `objective.alignment`: where features come from, and the head that is trained along."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import reduce

from pv_vae_jax.losses import alignment_head
from pv_vae_jax.train.configs import Experiment
from pv_vae_jax.train.sizes import SizedBatch
from pv_vae_jax.typing import Array, ConfigError, Params

Features = Callable[[Array], Array]  # (b, t, H, W, 3) in [-1, 1] -> (b, g, f) or (b, g, h, w, f)


class Alignment:
    """The alignment of a stage, which may be none.

    Args:
      experiment: the whole configuration.
      name: name of the stage.
      function: what latents are aligned to, as a function of the clip; None takes `data.features` of the clips.

    Attributes:
      width: numbers of a frame in the `features` of the stage's batches; 0 if they have none.

    Raises:
      ConfigError: the stage aligns latents, and has features of both kinds or of none.
    """

    def __init__(self, experiment: Experiment, name: str, function: Features | None):
        self._vae, self._function, width = experiment.vae, function, experiment.data.features
        self._aligns = getattr(experiment, name).objective.alignment > 0
        if self._aligns and (width > 0) == (function is not None):
            raise ConfigError(
                f"config.{name}.objective.alignment needs features of one kind, got {'both' if width else 'none'}: set "
                "config.data.features to their number, or pass a function to pv_vae_jax.train.train(features=...)"
            )
        self.width = width if self._aligns else 0

    def _grid(self, size: SizedBatch) -> tuple[int, ...]:
        """`(b, g, h, w)` of a batch's latents."""
        (b, frames, *sides, _), vae = size.shape, self._vae
        return b, vae.latent_frames(frames), *(side // vae.space_factor for side in sides)

    def head(self, sizes: Sequence[SizedBatch]) -> Params | None:
        """A new head, for batches of all `sizes`; None if the stage aligns nothing. It is no part of the model.

        Raises:
          ShapeError: the function gives another shape.
          ConfigError: sizes would need different heads.
        """
        heads = {}
        for size in sizes if self._aligns else ():
            latents = (*self._grid(size), self._vae.latent_channels)
            head = alignment_head(latents, self.example(size)["features"].shape)
            heads[head["kernel"].shape] = head
        if len(heads) > 1:
            raise ConfigError("objective.alignment to features (b, g, f) needs sizes that differ in their frames only")
        return next(iter(heads.values()), None)

    def example(self, size: SizedBatch) -> dict[str, jax.ShapeDtypeStruct]:
        """The features of a batch of latent frames, as shapes."""
        if self._function is None:
            return {"features": jax.ShapeDtypeStruct((*self._grid(size)[:2], self.width), np.float32)}
        return {"features": jax.eval_shape(self._function, jax.ShapeDtypeStruct(size.shape, np.float32))}

    def prepare(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Features of frames `(b, 1 + T, f)` become those of latent frames `(b, g, f)`: means over their frames."""
        if not self.width:
            return batch
        first, later = jnp.split(batch["features"], [1], axis=1)
        later = reduce(later, "b (g p) f -> b g f", "mean", p=self._vae.time_factor)
        return batch | {"features": jnp.concatenate([first, later], axis=1)}
