"""One training step of the VAE: a pure function `(state, batch) -> (state, logs)`, for all three stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pv_vae_jax import losses
from pv_vae_jax.dropping import DropFrom, DropPattern
from pv_vae_jax.masking import sample_mask
from pv_vae_jax.models.discriminator import Discriminator
from pv_vae_jax.models.vae import VAE
from pv_vae_jax.pixels import to_float
from pv_vae_jax.predictive import Prediction, predict_filled, predict_masked, predict_truncated
from pv_vae_jax.train.optim import accumulate_grads, ema_update, split_frozen
from pv_vae_jax.train.state import ParamsAndOpt, TrainState, create_state
from pv_vae_jax.typing import Array, Params, PRNGKey

Logs = dict[str, Array]
Step = Callable[[TrainState, dict], tuple[TrainState, Logs]]


@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity: jit compiles once per instance
class VAEStep:
    """Everything that is fixed while a stage runs.

    One "step" updates the generator and, while the GAN is on, the discriminator, both from the same batch.

    Attributes:
      model, discriminator: the networks.
      objective: the weights of the terms (equation 1).
      optimizer, discriminator_optimizer: the gradient transformation of each network.
      frozen: top-level parts of the VAE that are not trained.
      ema_decay: decay of the VAE's moving average.
      seed: with the step number it determines all randomness.
      perceptual: the distance of the perceptual term, or None.
      grad_accum_steps: number of parts that the batch is split into, computed one after the other.
      drop_pattern: what the filled form withholds, see `masking`.
      drop_from: where patterns other than `future` withhold it, see `predict_masked`.
    """

    model: VAE
    objective: losses.Objective
    optimizer: optax.GradientTransformation
    discriminator: Discriminator | None = None
    discriminator_optimizer: optax.GradientTransformation | None = None
    frozen: tuple[str, ...] = ()
    ema_decay: float = 0.999
    seed: int = 0
    perceptual: losses.Perceptual | None = None
    grad_accum_steps: int = 1
    drop_pattern: DropPattern = "future"
    drop_from: DropFrom = "pixels"

    def create(self, params: Params, discriminator_params: Params | None = None) -> TrainState:
        """State at step 0 from given parameters.

        Raises:
          ValueError: the discriminator has no parameters or no optimizer.
        """
        trained, _ = split_frozen(params, self.frozen)
        networks = None
        if self.discriminator is not None:
            if discriminator_params is None or self.discriminator_optimizer is None:
                raise ValueError("this stage has a discriminator: give its parameters and its optimizer")
            networks = ParamsAndOpt(discriminator_params, self.discriminator_optimizer.init(discriminator_params))
        return create_state(params, self.optimizer.init(trained), networks)

    def __call__(
        self, state: TrainState, batch: dict, *, dropped: int | None = 0, gan: bool = False
    ) -> tuple[TrainState, Logs]:
        """Update once.

        Args:
          state: the stage's state.
          batch: `video (b, 1 + T, H, W, 3)` uint8, and `dropped` int32, scalar or `(b,)`, if the filled form is used.
          dropped: `k` of the truncated form (one program for each), or None for the filled form, which takes `k` from
            the batch.
          gan: whether the GAN is on. Static: the GAN starts late, and a program for each case stays small.

        Returns:
          The new state, and float32 scalars: every term unweighted, `loss`, and the gradient norm.

        Raises:
          ValueError: the truncated form is asked for a pattern other than `future`, or the GAN is on
            without a discriminator.
          TypeError: `video` is not uint8.
        """
        if gan and (self.discriminator is None or state.discriminator is None):
            raise ValueError("the GAN needs a discriminator: give one, its optimizer, and its parameters to `create`")
        key = jax.random.fold_in(jax.random.key(self.seed), state.step)
        trained, frozen = split_frozen(state.params, self.frozen)

        def gradients(part: dict, key: PRNGKey):
            return self._gradients(state, part, key, dropped, gan)

        grads, discriminator_grads, logs = accumulate_grads(gradients, batch, key, self.grad_accum_steps)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, trained)
        params = optax.apply_updates(trained, updates) | frozen
        logs["gradient_norm"] = optax.tree.norm(grads)
        networks = state.discriminator
        if gan:
            old = networks
            assert old is not None and self.discriminator_optimizer is not None  # checked by `create`
            updates, moments = self.discriminator_optimizer.update(discriminator_grads, old.opt_state, old.params)
            networks = ParamsAndOpt(optax.apply_updates(old.params, updates), moments)
        ema = ema_update(state.ema, params, state.step, self.ema_decay)
        ema |= {part: frozen[part] for part in frozen}  # averaging equal numbers would still move them by rounding
        return TrainState(state.step + 1, params, opt_state, ema, networks), logs

    def _gradients(self, state: TrainState, batch: dict, key: PRNGKey, dropped: int | None, gan: bool):
        """Gradients of VAE and discriminator (None while the GAN is off), and all terms."""
        video = to_float(batch["video"])  # (b, 1 + T, H, W, 3)
        trained, frozen = split_frozen(state.params, self.frozen)
        discriminator: Any = self.discriminator  # neither is None while the GAN is on
        networks: Any = state.discriminator

        def forward(trained: Params):
            params = trained | frozen
            prediction = self._predict(params, video, batch["dropped"] if dropped is None else dropped, key)
            total, terms = losses.latent_terms(self.objective, prediction.posterior, prediction.observed)
            features = self.model.apply({"params": params}, prediction.latents, method="decode_features")
            return (features, total), terms  # features: (b, 1 + T, H/patch, W/patch, c)

        def to_pixels(trained: Params, features: Array) -> Array:
            return self.model.apply({"params": trained | frozen}, features, method="to_pixels")

        # Equation 1. The backward pass is taken in three pieces (losses, last convolution, network): the adaptive GAN
        # weight needs gradients at the last kernel, and so costs one more kernel gradient, not one more backward pass.
        (features, latent_loss), pull_network, latent_logs = jax.vjp(forward, trained, has_aux=True)
        output, pull_pixels = jax.vjp(to_pixels, trained, features)  # (b, 1 + T, H, W, 3)
        (loss, logs), d_output = jax.value_and_grad(
            lambda y: losses.pixel_terms(self.objective, y, video, self.perceptual), has_aux=True
        )(output)
        logs |= latent_logs
        if gan:
            gan_loss, d_gan = jax.value_and_grad(
                lambda y: losses.generator_hinge(discriminator.apply({"params": networks.params}, y))
            )(output)
            weight = jnp.asarray(self.objective.gan, jnp.float32)
            if self.objective.gan_adaptive:
                last = lambda cotangent: pull_pixels(cotangent)[0]["decoder"]["head"]["kernel"]  # noqa: E731
                weight = weight * losses.adaptive_gan_weight(last(d_output), last(d_gan))
            loss, d_output = loss + weight * gan_loss, d_output + weight * d_gan
            logs |= {"gan": gan_loss, "gan_weight": weight}
        loss = loss + latent_loss
        d_head, d_features = pull_pixels(d_output)
        (d_trained,) = pull_network((d_features, jnp.ones_like(latent_loss)))
        grads = jax.tree.map(jnp.add, d_trained, d_head)

        logs["loss"] = loss
        if not gan:
            return grads, None, logs
        fake = jax.lax.stop_gradient(output)
        discriminator_grads, terms = _discriminator_gradients(discriminator, networks.params, video, fake)
        return grads, discriminator_grads, logs | terms

    def _predict(self, params: Params, video: Array, dropped: Array | int, key: PRNGKey) -> Prediction:
        """Predictive reconstruction (section 3.1): filled for `k` as an array, truncated for a Python int."""
        if isinstance(dropped, int):
            if dropped and self.drop_pattern != "future":
                raise ValueError(
                    f"the truncated form only drops the end of a clip; {self.drop_pattern!r} needs the filled form: "
                    "pass dropped=None and put k into the batch"
                )
            return predict_truncated(self.model, params, video, dropped, key)
        if self.drop_pattern == "future":
            return predict_filled(self.model, params, video, dropped, key)
        c, (b, frames, height, width, _) = self.model.config, video.shape
        grid = (c.latent_frames(frames), height // c.space_factor, width // c.space_factor)
        each = jnp.broadcast_to(dropped, (b,))
        observed = sample_mask(self.drop_pattern, jax.random.fold_in(key, 2), each, grid)  # (b, g, h, w)
        return predict_masked(self.model, params, video, observed, key, drop_from=self.drop_from)


def _discriminator_gradients(model: Any, params: Params, real: Array, fake: Array) -> tuple[Params, Logs]:
    """Gradient of the discriminator's hinge loss, and its terms."""

    def loss(params: Params):
        real_logits, fake_logits = (model.apply({"params": params}, video) for video in (real, fake))
        mean = lambda logits: sum(x.mean() for x in logits) / len(logits)  # noqa: E731
        return losses.discriminator_hinge(real_logits, fake_logits), (mean(real_logits), mean(fake_logits))

    (value, (real_mean, fake_mean)), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return grads, {"discriminator": value, "logits_real": real_mean, "logits_fake": fake_mean}
