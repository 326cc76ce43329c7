"""One training step of the latent diffusion transformer on cached posteriors."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from pv_vae_jax.flow import TimeDistribution, flow_matching_loss, label_dropout, normalize_latents, sample_timesteps
from pv_vae_jax.models.latte import Latte
from pv_vae_jax.train.optim import accumulate_grads, ema_update
from pv_vae_jax.train.state import TrainState, create_state
from pv_vae_jax.train.vae_step import Logs
from pv_vae_jax.typing import Array, Params, PRNGKey


@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity: jit compiles once per instance
class DiTStep:
    """Everything that is fixed while the transformer trains.

    Attributes:
      model: the transformer.
      optimizer: its gradient transformation.
      mean, std: `(z,)` channel statistics of the latents.
      label_dropout: fraction of the examples that train without their class (Latte: 0.1).
      time_distribution, time_shift: distribution of the flow's time, see `flow.sample_timesteps`.
      ema_decay: decay of the moving average used for sampling.
      seed: with the step number it determines all randomness.
      grad_accum_steps: number of parts that the batch is split into, computed one after the other.
    """

    model: Latte
    optimizer: optax.GradientTransformation
    mean: ArrayLike
    std: ArrayLike
    label_dropout: float = 0.1
    time_distribution: TimeDistribution = "uniform"
    time_shift: float = 1.0
    ema_decay: float = 0.9999
    seed: int = 0
    grad_accum_steps: int = 1

    def create(self, params: Params) -> TrainState:
        """State at step 0."""
        return create_state(params, self.optimizer.init(params))

    def __call__(self, state: TrainState, batch: dict) -> tuple[TrainState, Logs]:
        """Update once from `mean, logvar (b, g, h, w, z)` and `label (b,)`, with a new posterior sample each step."""
        key = jax.random.fold_in(jax.random.key(self.seed), state.step)
        loss, grads = accumulate_grads(
            lambda part, key: self._gradients(state.params, part, key), batch, key, self.grad_accum_steps
        )
        with jax.named_scope("optimizer"):
            updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            ema = ema_update(state.ema, params, state.step, self.ema_decay)
            logs = {"loss": loss, "gradient_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, opt_state, ema), logs

    def _gradients(self, params: Params, batch: dict, key: PRNGKey) -> tuple[Array, Params]:
        """Loss of rectified flow, and its gradient."""
        k_sample, k_noise, k_time, k_label = jax.random.split(key, 4)
        std = jnp.exp(0.5 * batch["logvar"])
        latents = batch["mean"] + std * jax.random.normal(k_sample, batch["mean"].shape, jnp.float32)
        data = normalize_latents(latents, self.mean, self.std)  # (b, g, h, w, z)
        noise = jax.random.normal(k_noise, data.shape, jnp.float32)
        t = sample_timesteps(k_time, data.shape[0], self.time_distribution, self.time_shift)  # (b,)
        label = label_dropout(k_label, batch["label"], self.model.config.classes, self.label_dropout)

        def loss_fn(params: Params) -> Array:
            velocity = lambda x, t: self.model.apply({"params": params}, x, t, label)  # noqa: E731
            with jax.named_scope("losses"):
                return flow_matching_loss(velocity, data, noise, t)

        return jax.value_and_grad(loss_fn)(params)
