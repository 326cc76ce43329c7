"""The state that a training stage carries from step to step, and the seeds of its random draws."""

import flax.struct
import jax
import jax.numpy as jnp
import optax

from pv_vae_jax.typing import Array, Params, PRNGKey


@flax.struct.dataclass
class ParamsAndOpt:
    """Parameters of one network (or pair) with their optimiser state."""

    params: Params
    opt_state: optax.OptState


@flax.struct.dataclass
class TrainState:
    """State of a stage: all that a resumed run needs.

    Attributes:
      step: number of steps done, int32. Randomness and the position in the data follow from it and the seed.
      params: all parameters of the generator (VAE or diffusion transformer), frozen ones included.
      opt_state: optimiser state of the trained part.
      ema: moving average of `params`.
      discriminator: its parameters and optimiser, or None where the stage has no GAN.
      head: the projection that aligns latents to features, or None where the objective does not.
    """

    step: Array
    params: Params
    opt_state: optax.OptState
    ema: Params
    discriminator: ParamsAndOpt | None = None
    head: ParamsAndOpt | None = None

    @property
    def all_params(self) -> Params:
        """The parameters by part, those of the networks that train along included."""
        along = {"discriminator": self.discriminator, "head": self.head}
        return {**self.params, **{name: network.params for name, network in along.items() if network}}


def create_state(params: Params, opt_state: optax.OptState, discriminator: ParamsAndOpt | None = None) -> TrainState:
    """State before the first step; the moving average begins as a copy of the parameters."""
    # A separate buffer: the step donates both trees, and one buffer cannot be donated twice.
    ema = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state, ema, discriminator)


def stage_key(seed: int, name: str) -> PRNGKey:
    """Key for drawing the initial parameters of the network `name`."""
    return jax.random.fold_in(jax.random.key(seed), sum(name.encode()))


def stage_seed(seed: int, name: str) -> int:
    """Seed of a stage's batches, so that two stages do not walk the clips alike."""
    return seed * 1_000 + sum(name.encode()) % 1_000
