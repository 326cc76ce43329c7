"""The negative control: a transformer that sees latents under a fixed random rotation over space and channels.

Rectified flow does not change under a rotation `R`: noise stays noise, and the loss of a network on `R z` is that of
`R^-1 net(R z)` on `z`. So the network is wrapped, and latents, statistics, sampling and decoding stay as they are.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import ortho_group

from pv_vae_jax.models.latte import Latte
from pv_vae_jax.train.configs import Experiment
from pv_vae_jax.train.dit_stage import DiffusionStage
from pv_vae_jax.train.latents_stage import Latents


@functools.cache
def rotation(size: int) -> np.ndarray:
    """A rotation `(size, size)`, the same for every seed and row."""
    return np.asarray(ortho_group.rvs(size, random_state=0), np.float32)


class RotatedLatte(Latte):
    """`Latte` on latents of which `rotation` mixes the `h w z` numbers of a frame. Its parameters are Latte's."""

    def __call__(self, latents: jax.Array, t: jax.Array, label: jax.Array | None = None) -> jax.Array:
        mix = jnp.asarray(rotation(int(np.prod(latents.shape[2:]))))

        def turn(x: jax.Array, by: jax.Array) -> jax.Array:
            return (x.reshape(*x.shape[:2], -1) @ by).reshape(x.shape)  # b g h w z

        return turn(super().__call__(turn(latents, mix), t, label), mix.T)


class RotatedStage(DiffusionStage):
    """Stage `diffusion` with `RotatedLatte`."""

    def __init__(self, experiment: Experiment, latents: Latents | None = None):
        super().__init__(experiment, latents)
        self.step = dataclasses.replace(self.step, model=RotatedLatte(self.step.model.config))
