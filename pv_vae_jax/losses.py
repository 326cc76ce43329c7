"""The objective of equation 1, `L = reconstruction (MSE + motion Diff) + perceptual LPIPS + gan GAN + kl KL`.

Every term is a scalar mean. To add one, write its function here, give it a weight in `Objective` and an entry in
`Objective.weights`, and compute it under that name in `pixel_terms`, `latent_terms` or `structure_terms`; logs and
charts use the name.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
from einops import reduce
from jaxtyping import Float, Shaped

from pv_vae_jax.models.vae import Posterior
from pv_vae_jax.typing import Array, Params, ShapeError, sum_of


@dataclasses.dataclass(frozen=True)
class Objective:
    """Weights of the terms.

    The paper publishes none; defaults follow related work, for terms that are means (SSVAE: KL about 1e-5 per value).

    Attributes:
      reconstruction: weight of the mean squared error and of the motion term, `l_rec`.
      motion: weight of the motion term relative to the mean squared error; 0 switches it off (a row of table 4).
      perceptual: weight of the perceptual term; if positive, the training step needs a perceptual function.
      kl: weight of the mean KL per observed latent value.
      gan: weight of the generator's hinge term; 0 trains no discriminator.
      gan_adaptive: scales the GAN term by the ratio of gradient norms at the decoder's last kernel.
      gan_start: first step (of the stage) with the GAN; the paper starts at 5 000.
      local_correlation: weight of SSVAE's local correlation regularisation, `relu(target - correlation)`; beyond the
        paper, and not computed if 0. SSVAE scales it by a gradient-norm ratio instead, so its 0.002 is no guide.
      local_correlation_target: correlation of neighbouring latents above which the regularisation is 0 (SSVAE: 0.75).
      scale_equivariance: weight of the error with which latents at half the size decode to the clip at half the size.
      time_equivariance: weight of the error with which every second latent frame decodes to every second frame.
      alignment: weight of the share of given features that latents do not tell, see `alignment_error`.
      latent_noise: no weight, but the standard deviation of Gaussian noise that is added to what the decoder draws the
        clip from, in training alone (arXiv 2507.15856 and 2510.11690 train decoders on noised latents); the two
        equivariance terms decode without it.
    """

    reconstruction: float = 1.0
    motion: float = 1.0
    perceptual: float = 0.0
    kl: float = 1e-5
    gan: float = 0.0
    gan_adaptive: bool = True
    gan_start: int = 5_000
    local_correlation: float = 0.0
    local_correlation_target: float = 0.75
    scale_equivariance: float = 0.0
    time_equivariance: float = 0.0
    alignment: float = 0.0
    latent_noise: float = 0.0

    def __post_init__(self):
        for name, value in vars(self).items():
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} must be finite and at least 0, got {value}")
        if not 0 < self.local_correlation_target <= 1:
            raise ValueError(f"local_correlation_target must be in (0, 1], got {self.local_correlation_target}")

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term of the functions `..._terms`, by name; the training step weights the GAN."""
        return {
            "mse": self.reconstruction,
            "motion": self.reconstruction * self.motion,
            "perceptual": self.perceptual,
            "kl": self.kl,
            "local_correlation": self.local_correlation,
            "scale_equivariance": self.scale_equivariance,
            "time_equivariance": self.time_equivariance,
            "alignment": self.alignment,
        }


class Perceptual(Protocol):
    """LPIPS or any other distance of frames `(n, H, W, 3)` in [-1, 1]; the result is `(n,)`."""

    def __call__(self, output: Array, target: Array) -> Array: ...


def pixel_terms(
    objective: Objective,
    output: Float[Array, "b t H W c"],
    target: Float[Array, "b t H W c"],
    perceptual: Perceptual | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The terms that depend on pixels alone, without the GAN: their weighted total, and each one unweighted.

    Raises:
      ValueError: `objective.perceptual` is positive and no `perceptual` function is given.
    """
    terms = {"mse": squared_error(output, target), "motion": motion_error(output, target)}
    if objective.perceptual:
        if perceptual is None:
            raise ValueError("perceptual must be given to the training step if objective.perceptual > 0, got None")
        terms["perceptual"] = perceptual_error(perceptual, output, target)
    return _weighted_sum(objective, terms), terms


def latent_terms(
    objective: Objective, posterior: Posterior, observed: Shaped[Array, "b g *hw"]
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The terms that depend on the posterior alone: their weighted total, and each one unweighted.

    `observed` is as for `kl_divergence`. The returned term `local_correlation` is the correlation itself; the total
    includes its shortfall from the target instead.
    """
    terms = {"kl": kl_divergence(posterior, observed)}
    counted = dict(terms)
    if objective.local_correlation:
        terms["local_correlation"] = local_correlation(posterior, observed)
        shortfall = objective.local_correlation_target - terms["local_correlation"]
        counted["local_correlation"] = jax.nn.relu(shortfall)
    return _weighted_sum(objective, counted), terms


def _weighted_sum(objective: Objective, terms: Mapping[str, Array]) -> Array:
    return sum_of(objective.weights[name] * term for name, term in terms.items())


def squared_error(output: Float[Array, "b t H W c"], target: Float[Array, "b t H W c"]) -> Float[Array, ""]:
    """Mean squared error of two clips, float32.

    Raises:
      ValueError: the shapes differ.
    """
    if output.shape != target.shape:
        raise ValueError(f"expected clips of one shape, got {output.shape} and {target.shape}")
    return jnp.mean(jnp.square(output.astype(jnp.float32) - target.astype(jnp.float32)))


def motion_error(output: Float[Array, "b t H W c"], target: Float[Array, "b t H W c"]) -> Float[Array, ""]:
    """`Diff` of equation 1: squared error of the differences of adjacent frames; 0 for an image.

    A static background cancels, so copying it earns nothing.
    """
    if output.shape[1] == 1:
        return jnp.zeros((), jnp.float32)
    return squared_error(jnp.diff(output, axis=1), jnp.diff(target, axis=1))


def perceptual_error(
    distance: Perceptual, output: Float[Array, "b t H W c"], target: Float[Array, "b t H W c"]
) -> Float[Array, ""]:
    """Mean of `distance` over all frames of two clips."""
    frames = (-1,) + output.shape[2:]  # (b t, H, W, c)
    return distance(output.reshape(frames), target.reshape(frames)).mean()


def kl_divergence(posterior: Posterior, observed: Shaped[Array, "b g *hw"]) -> Float[Array, ""]:
    """Mean KL to N(0, I) per latent value, over observed latents only (section 3.1).

    Args:
      posterior: over `(b, g, h, w, z)`.
      observed: `(b, g)` or `(b, g, h, w)`, 1 where the latent was observed. A dropped latent holds the pad and has no
        posterior.
    """
    kl = 0.5 * (jnp.square(posterior.mean) + jnp.exp(posterior.logvar) - 1.0 - posterior.logvar)  # (b, g, h, w, z)
    kl = kl.mean(axis=tuple(range(observed.ndim, kl.ndim)))  # the shape of observed
    return jnp.sum(kl * observed) / jnp.sum(observed)


WINDOW = 2  # latent positions along time, height and width, as in SSVAE


def local_correlation(posterior: Posterior, observed: Shaped[Array, "b g *hw"]) -> Float[Array, ""]:
    """Mean Pearson correlation of latents in the same small window, in [-1, 1] (SSVAE, arXiv 2512.05394).

    The means are standardised channel by channel over all observed positions (statistics without gradient), which gives
    one vector `v` of `z` channels for each position; it is centred and scaled to length 1. In windows of 2 x 2
    positions of frame 0, and of 2 x 2 x 2 of the frames after it,

        correlation = mean over windows and pairs i < j of  v_i . v_j

    and the result is the average of the two. A pair counts if both are observed. Scale and offset of a channel do not
    matter.

    Args:
      posterior: over `(b, g, h, w, z)`; more than one position in a frame, and more than one channel.
      observed: `(b, g)` or `(b, g, h, w)`, 1 where the latent was observed.
    """
    mean = posterior.mean
    seen = observed.reshape(observed.shape + (1,) * (mean.ndim - observed.ndim))
    seen = jnp.broadcast_to(seen, (*mean.shape[:-1], 1)).astype(mean.dtype)  # (b, g, h, w, 1)

    def average(x: Array) -> Array:  # over observed positions: (1, 1, 1, 1, z)
        return jax.lax.stop_gradient((x * seen).sum((0, 1, 2, 3), keepdims=True) / seen.sum())

    centre = average(mean)
    std = jnp.sqrt(average(jnp.square(mean - centre)))
    v = (mean - centre) / (std + 1e-6)
    v = v - v.mean(-1, keepdims=True)
    v = v * jax.lax.rsqrt(jnp.square(v).sum(-1, keepdims=True) + 1e-8) * seen
    parts = [_sum_over_pairs(v[:, :1], seen[:, :1]), _sum_over_pairs(v[:, 1:], seen[:, 1:])]
    nonempty = sum((count > 0).astype(mean.dtype) for _, count in parts)
    return sum(total / jnp.maximum(count, 1) for total, count in parts) / jnp.maximum(nonempty, 1)


def _sum_over_pairs(v: Array, seen: Array) -> tuple[Array, Array]:
    """Sum of `v_i . v_j` over the pairs of all windows, and their number; unobserved positions are zero in both."""
    # Windows that extend beyond the latents, and those of frame 0 in time, are padded with unobserved positions.
    missing = [(0, 0), *((0, -size % WINDOW) for size in v.shape[1:4]), (0, 0)]

    def add(x: Array) -> Array:
        window = "b (g p) (h q) (w r) z -> b g h w z"
        return reduce(jnp.pad(x, missing), window, "sum", p=WINDOW, q=WINDOW, r=WINDOW)

    total = jnp.square(add(v)).sum() - jnp.square(v).sum()  # |sum of v|^2 counts every pair twice, and each v alone
    count = jnp.square(add(seen)).sum() - seen.sum()
    return total / 2, count / 2


Decoder = Callable[[Array], Array]  # latents (b, g, h, w, z) -> pixels (b, t, H, W, 3)


def structure_terms(
    objective: Objective, latents: Array, video: Array, decode: Decoder, observed: Array, *aligned: Array
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The terms that ask what can be done with latents: their weighted total, and each one unweighted. All are off by
    default, and then this gives 0 and no term.

    Args:
      objective: the weights.
      latents: the decoder's input `(b, g, h, w, z)`, encoded or padded.
      video: what it should decode to, `(b, t, H, W, c)`.
      decode: latents of any size and length -> pixels.
      observed: as for `kl_divergence`, of the latent frames that were encoded.
      aligned: features and kernel, see `alignment_error`, if `objective.alignment` is positive.

    Raises:
      ShapeError: the features are not those of these latent frames or positions.
    """
    terms = {}
    if objective.scale_equivariance:
        terms["scale_equivariance"] = squared_error(decode(halved(latents)), halved(video))
    if objective.time_equivariance:
        terms["time_equivariance"] = time_equivariance_error(decode, latents, video)
    if objective.alignment:
        (features, kernel), n = aligned, observed.shape[1]  # the truncated form has encoded n < g
        _check_features(latents.shape, features.shape)
        terms["alignment"] = alignment_error(latents[:, :n], features[:, :n], kernel, observed)
    return _weighted_sum(objective, terms) if terms else jnp.zeros((), jnp.float32), terms


def halved(x: Float[Array, "b t H W c"]) -> Float[Array, "b t h w c"]:
    """Pixels or latents at half the height and width: means of 2 x 2 positions.

    Scale equivariance asks that this may be done before decoding or after it: `decode(halved(latents))` should be
    `halved(video)` (arXiv 2502.14831; EQ-VAE, arXiv 2502.09509, draws the factor). Both sides must be even.
    """
    return reduce(x, "b t (h p) (w q) c -> b t h w c", "mean", p=2, q=2)


def time_equivariance_error(
    decode: Decoder, latents: Float[Array, "b g h w z"], video: Float[Array, "b t H W c"]
) -> Float[Array, ""]:
    """Squared error of the clip that every second latent frame decodes to, against every second frame (ours).

    Frame 0 is a latent frame of its own and stays. Latent frame `2 i` ends with frame `2 i p_t`, which is frame `i p_t`
    of the clip at double speed: the last of its latent frame `i`. If the number of later latent frames is odd, frames
    at the end are left out. 0 for clips of fewer than three latent frames, which have none to skip.
    """
    if latents.shape[1] < 3:
        return jnp.zeros((), jnp.float32)
    output = decode(latents[:, ::2])
    return squared_error(output, video[:, ::2][:, : output.shape[1]])


def alignment_head(latents: Sequence[int], features: Sequence[int]) -> dict[str, Float[Array, "d f"]]:
    """The `kernel` of `alignment_error` before training, zeros, for the shapes of latents and features.

    Raises:
      ShapeError: as `structure_terms`.
    """
    _check_features(latents, features)
    inputs = math.prod(latents[2:]) if len(features) == 3 else latents[-1]
    return {"kernel": jnp.zeros((inputs, features[-1]), jnp.float32)}


def _check_features(latents: Sequence[int], features: Sequence[int]) -> None:
    if tuple(features[:-1]) not in (tuple(latents[:2]), tuple(latents[:-1])):
        raise ShapeError(f"expected features {(*latents[:2], 'f')} or {(*latents[:-1], 'f')}, got {tuple(features)}")


def alignment_error(latents: Array, features: Array, kernel: Array, observed: Array) -> Float[Array, ""]:
    """The share of the features' variance that a linear map of the latents leaves unexplained: 1 tells nothing of them.

    A linear projection that is trained along, as in VA-VAE (arXiv 2501.01423), for features that need not be pictures:

        error = mean over f of  var(features_f - latents @ kernel_f) / var(features_f)

    with variances over the observed positions of the batch, so that scale and offset of a feature do not matter. A
    feature that is the same in the whole batch does not count. Without a trained kernel (the best one for each batch)
    the error is 0 for any latents as soon as `d` is as large as the batch has positions, which it nearly always is.

    Args:
      latents: samples `(b, g, h, w, z)`, not means: what hides in the noise of the posterior does not help diffusion.
      features: `(b, g, f)`, for which `d = h w z` and a latent frame counts if all of it was observed; or
        `(b, g, h, w, f)`, for which `d = z`. No gradient flows into them.
      kernel: `(d, f)`, see `alignment_head`.
      observed: as for `kl_divergence`.
    """
    features = jax.lax.stop_gradient(features.astype(jnp.float32))
    if features.ndim == 3:
        latents = latents.reshape(*latents.shape[:2], -1)  # (b, g, h w z)
        observed = observed.reshape(*observed.shape[:2], -1).min(-1)  # (b, g)
    places = tuple(range(features.ndim - 1))
    seen = jnp.broadcast_to(observed.reshape(observed.shape + (1,) * (features.ndim - observed.ndim)), features.shape)

    def variance(x: Array) -> Array:  # over observed positions: (f,)
        centred = x - (x * seen).sum(places) / seen.sum(places)
        return (jnp.square(centred) * seen).sum(places) / seen.sum(places)

    total = variance(features)
    varies = ~(total <= 1e-10 * jnp.square(features).max(places))  # above what float32 rounds off, or NaN
    share = jnp.where(varies, variance(features - latents @ kernel) / jnp.where(varies, total, 1.0), 0.0)
    return share.sum() / jnp.maximum(varies.sum(), 1)


def generator_hinge(fake: Sequence[Array]) -> Float[Array, ""]:
    """`-mean D(output)`, averaged over discriminators; `fake` holds the logits of each."""
    return -sum_of(logits.mean() for logits in fake) / len(fake)


def discriminator_hinge(real: Sequence[Array], fake: Sequence[Array]) -> Float[Array, ""]:
    """`0.5 (mean relu(1 - D(x)) + mean relu(1 + D(output)))`, averaged over discriminators."""
    losses = [0.5 * (jax.nn.relu(1 - r).mean() + jax.nn.relu(1 + f).mean()) for r, f in zip(real, fake, strict=True)]
    return sum_of(losses) / len(losses)


def adaptive_gan_weight(reconstruction_grad: Params, gan_grad: Params, limit: float = 1e4) -> Float[Array, ""]:
    """Ratio of the gradient norms at the decoder's last kernel, clamped to `[0, limit]` (VQGAN lineage; our choice)."""
    norm = lambda tree: jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(tree)))  # noqa: E731
    return jnp.clip(norm(reconstruction_grad) / (norm(gan_grad) + 1e-4), 0.0, limit)
