"""What a training stage carries from step to step: everything that a resumed run needs, and nothing else."""

from __future__ import annotations

import flax.struct
import jax.numpy as jnp
import optax

from pv_vae_jax.typing import Array, Params


@flax.struct.dataclass
class ParamsAndOpt:
    """Parameters of one network (or pair) with their optimiser state."""

    params: Params
    opt_state: optax.OptState


@flax.struct.dataclass
class TrainState:
    """State of a stage.

    Attributes:
      step: steps done, int32. Randomness and data position follow from it and the seed.
      params: all parameters of the generator (VAE or diffusion transformer), frozen ones included.
      opt_state: of the trained part.
      ema: moving average of `params`.
      discriminator: its parameters and optimiser, or None where the stage has no GAN.
    """

    step: Array
    params: Params
    opt_state: optax.OptState
    ema: Params
    discriminator: ParamsAndOpt | None = None


def create_state(params: Params, opt_state: optax.OptState, discriminator: ParamsAndOpt | None = None) -> TrainState:
    """State before the first step; EMA begins as a copy of the parameters."""
    ema = {k: v for k, v in params.items()}
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state, _copy(ema), discriminator)


def _copy(tree: Params) -> Params:
    import jax

    # A separate buffer: the step donates both trees, and one buffer cannot be donated twice.
    return jax.tree.map(jnp.copy, tree)
