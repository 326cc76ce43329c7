"""One training step of the VAE: a pure function `(state, batch) -> (state, logs)`, for all three stages."""

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
from pv_vae_jax.train.alignment import Features
from pv_vae_jax.train.optim import accumulate_grads, ema_update, split_frozen
from pv_vae_jax.train.state import ParamsAndOpt, TrainState, create_state
from pv_vae_jax.typing import Array, Params, PRNGKey

Logs = dict[str, Array]
Step = Callable[[TrainState, dict], tuple[TrainState, Logs]]
HEAD = "alignment"  # its gradient beside those of the VAE's parts


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
      features: what latents are aligned to, as a function of the clip; None takes the batch's own.
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
    features: Features | None = None

    def create(
        self, params: Params, discriminator_params: Params | None = None, head: Params | None = None
    ) -> TrainState:
        """State at step 0 from given parameters; those of the alignment's `head` are `losses.alignment_head`.

        Raises:
          ValueError: the discriminator has no parameters or no optimizer, or the alignment has no head.
        """
        trained, _ = split_frozen(params, self.frozen)
        if self.objective.alignment and head is None:
            raise ValueError("objective.alignment trains a head: give `create` that of losses.alignment_head")
        networks = None
        if self.discriminator is not None:
            if discriminator_params is None or self.discriminator_optimizer is None:
                raise ValueError("this stage has a discriminator: give its parameters and its optimizer")
            networks = ParamsAndOpt(discriminator_params, self.discriminator_optimizer.init(discriminator_params))
        state = create_state(params, self.optimizer.init(trained), networks)
        return state if head is None else dataclasses.replace(state, head=ParamsAndOpt(head, self.optimizer.init(head)))

    def __call__(
        self, state: TrainState, batch: dict, *, dropped: int | None = 0, gan: bool = False
    ) -> tuple[TrainState, Logs]:
        """Update once.

        Args:
          state: the stage's state.
          batch: `video (b, 1 + T, H, W, 3)` uint8; `dropped` int32, scalar or `(b,)`, if the filled form is used; and
            `features (b, g, f)` or `(b, g, h, w, f)`, if latents are aligned to given features.
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
        head_grads = grads.pop(HEAD, None)
        with jax.named_scope("optimizer"):
            updates, opt_state = self.optimizer.update(grads, state.opt_state, trained)
            params = optax.apply_updates(trained, updates) | frozen
            logs["gradient_norm"] = optax.tree.norm(grads)
            networks = state.discriminator
            if gan:
                networks = _update(self.discriminator_optimizer, networks, discriminator_grads)
            head = None if head_grads is None else _update(self.optimizer, state.head, head_grads)
            ema = ema_update(state.ema, params, state.step, self.ema_decay)
            ema |= {part: frozen[part] for part in frozen}  # averaging equal numbers would still move them by rounding
        return TrainState(state.step + 1, params, opt_state, ema, networks, head), logs

    def _gradients(self, state: TrainState, batch: dict, key: PRNGKey, dropped: int | None, gan: bool):
        """Gradients of VAE (and head) and discriminator (None while the GAN is off), and all terms."""
        video = to_float(batch["video"])  # (b, 1 + T, H, W, 3)
        trained, frozen = split_frozen(state.params, self.frozen)
        trained |= {} if state.head is None else {HEAD: state.head.params}
        discriminator: Any = self.discriminator  # neither is None while the GAN is on
        networks: Any = state.discriminator

        def forward(trained: Params):
            params = trained | frozen
            latents, total, terms = _latents(self, params, video, batch, dropped, key)
            features = self.model.apply({"params": params}, latents, method="decode_features")
            return (features, total), terms  # features: (b, 1 + T, H/patch, W/patch, c)

        def to_pixels(trained: Params, features: Array) -> Array:
            return self.model.apply({"params": trained | frozen}, features, method="to_pixels")

        # Equation 1. The backward pass is taken in three pieces (losses, last convolution, network): the adaptive GAN
        # weight needs gradients at the last kernel, and so costs one more kernel gradient, not one more backward pass.
        (features, latent_loss), pull_network, latent_logs = jax.vjp(forward, trained, has_aux=True)
        output, pull_pixels = jax.vjp(to_pixels, trained, features)  # (b, 1 + T, H, W, 3)
        with jax.named_scope("losses"):
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


def _latents(
    step: VAEStep, params: Params, video: Array, batch: dict, dropped: int | None, key: PRNGKey
) -> tuple[Array, Array, Logs]:
    """The decoder's input, and the terms of latents: their weighted total, and each one unweighted."""
    objective = step.objective
    prediction = _predict(step, params, video, batch["dropped"] if dropped is None else dropped, key)
    latents, observed = prediction.latents, prediction.observed
    with jax.named_scope("losses"):
        total, terms = losses.latent_terms(objective, prediction.posterior, observed)
    aligned = ()
    if objective.alignment:
        if step.features is None and "features" not in batch:
            raise ValueError("objective.alignment needs features: put them into the batch, or give the step a function")
        aligned = step.features(video) if step.features else batch["features"], params[HEAD]["kernel"]
    decode = lambda z: step.model.apply({"params": params}, z, method="decode")  # noqa: E731
    more, more_terms = losses.structure_terms(objective, latents, video, decode, observed, *aligned)
    if objective.latent_noise:
        noise = jax.random.normal(jax.random.fold_in(key, 3), latents.shape, latents.dtype)
        latents = latents + objective.latent_noise * noise
    return latents, total + more, terms | more_terms


def _predict(step: VAEStep, params: Params, video: Array, dropped: Array | int, key: PRNGKey) -> Prediction:
    """Predictive reconstruction (section 3.1): filled for `k` as an array, truncated for a Python int."""
    model, pattern = step.model, step.drop_pattern
    if isinstance(dropped, int):
        if dropped and pattern != "future":
            raise ValueError(
                f"the truncated form only drops the end of a clip; {pattern!r} needs the filled form: "
                "pass dropped=None and put k into the batch"
            )
        return predict_truncated(model, params, video, dropped, key)
    if pattern == "future":
        return predict_filled(model, params, video, dropped, key)
    c, (b, frames, height, width, _) = model.config, video.shape
    grid = (c.latent_frames(frames), height // c.space_factor, width // c.space_factor)
    each = jnp.broadcast_to(dropped, (b,))
    observed = sample_mask(pattern, jax.random.fold_in(key, 2), each, grid)  # (b, g, h, w)
    return predict_masked(model, params, video, observed, key, drop_from=step.drop_from)


def _update(optimizer: Any, network: Any, grads: Params) -> ParamsAndOpt:
    """A network that is trained along, one step further; `create` has checked that there is one."""
    updates, opt_state = optimizer.update(grads, network.opt_state, network.params)
    return ParamsAndOpt(optax.apply_updates(network.params, updates), opt_state)


def _discriminator_gradients(model: Any, params: Params, real: Array, fake: Array) -> tuple[Params, Logs]:
    """Gradient of the discriminator's hinge loss, and its terms."""

    def loss(params: Params):
        real_logits, fake_logits = (model.apply({"params": params}, video) for video in (real, fake))
        mean = lambda logits: sum(x.mean() for x in logits) / len(logits)  # noqa: E731
        return losses.discriminator_hinge(real_logits, fake_logits), (mean(real_logits), mean(fake_logits))

    (value, (real_mean, fake_mean)), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return grads, {"discriminator": value, "logits_real": real_mean, "logits_fake": fake_mean}
