"""Predictive reconstruction (paper section 3.1): withhold future frames from the encoder, draw the whole clip.

A clip of `1 + T` frames has `g = 1 + T / p_t` groups; `k` of them, from the end, are dropped. Group 0 is always kept.
Two forms give the same numbers, because the encoder is causal:

* truncated: encode only the observed frames. `k` is shared by the batch and known when compiling (one program each).
* filled: encode all frames, then overwrite the last `k` latent frames. `k` may differ per example; one program.

Ours, beyond the paper: `predict_masked` withholds any latent positions (`masking` draws them). Overwriting latents then
is not enough, because observed latents have seen withheld frames before them and, through the kernels' width, withheld
places beside them. So the pixels are withheld first, unless `drop_from="latents"` asks for latent masking by its name.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.core
import jax.numpy as jnp

from pv_vae_jax.dropping import DropFrom
from pv_vae_jax.models.vae import VAE, Posterior
from pv_vae_jax.typing import Array, Params, PRNGKey, ShapeError, check_clip_shape


@flax.struct.dataclass
class Prediction:
    """What one predictive pass yields.

    Attributes:
      features: `(b, 1 + T, H/patch, W/patch, c)` decoder features; `VAE.to_pixels` turns them into the clip.
      posterior: over the encoded latent frames: `g - k` of them (truncated) or all `g` (filled).
      observed: `(b, frames of posterior)` float, 1 where a latent frame was seen; `(b, g, h, w)` if `predict_masked`
        withheld parts of frames. KL counts these only.
    """

    features: Array
    posterior: Posterior
    observed: Array


def observed_frames(frames: int, dropped: int, time_factor: int) -> int:
    """Pixel frames the encoder sees when `dropped` groups are withheld."""
    if isinstance(dropped, jax.core.Tracer):
        raise TypeError("`dropped` shapes the program, so it is a Python int: name it in static_argnames of jax.jit")
    kept = frames - dropped * time_factor
    if dropped < 0 or kept < 1:
        raise ValueError(f"cannot drop {dropped} of {1 + (frames - 1) // time_factor} groups: group 0 is always kept")
    return kept


def predict_truncated(model: VAE, params: Params, video: Array, dropped: int, key: PRNGKey | None) -> Prediction:
    """Encode the observed frames alone, append `dropped` pad frames, decode to all frames.

    Args:
      model: the VAE.
      params: its parameters.
      video: `(b, 1 + T, H, W, 3)` in [-1, 1]; frames after the observed ones are not read.
      dropped: `k`, a Python int.
      key: draws the posterior sample (and gaussian padding); None decodes the mean.
    """
    variables = {"params": params}
    kept = observed_frames(video.shape[1], dropped, model.config.time_factor)
    posterior = model.apply(variables, video[:, :kept], method="encode")
    latents = _sample(posterior, key, model.config.latent_frames(video.shape[1]))
    if dropped:
        shape = (latents.shape[0], dropped) + latents.shape[2:]
        pad = model.apply(variables, shape, _pad_key(key), method="pad_latents")
        latents = jnp.concatenate([latents, pad.astype(latents.dtype)], axis=1)
    features = model.apply(variables, latents, method="decode_features")
    return Prediction(features, posterior, jnp.ones(posterior.mean.shape[:2]))


def predict_filled(model: VAE, params: Params, video: Array, dropped: Array, key: PRNGKey | None) -> Prediction:
    """Encode every frame, overwrite the last `dropped` latent frames with pads, decode to all frames.

    `dropped` is an int array: scalar, or `(b,)` for a `k` per example; what is more than `g - 1` is taken as that, for
    group 0 is always kept. Gaussian pads are drawn for all `g` frames, so their values differ from the truncated
    form's; with a learnable token the two forms agree to rounding.
    """
    groups = model.config.latent_frames(video.shape[1])
    dropped = jnp.broadcast_to(jnp.clip(jnp.asarray(dropped), 0, groups - 1), (video.shape[0],))
    observed = jnp.arange(groups)[None, :] < (groups - dropped)[:, None]
    # A causal encoder has kept the last frames out of the observed latents; their pixels need not be touched.
    return predict_masked(model, params, video, observed, key, drop_from="latents")


def predict_masked(
    model: VAE, params: Params, video: Array, observed: Array, key: PRNGKey | None, *, drop_from: DropFrom = "pixels"
) -> Prediction:
    """Overwrite the latent positions that are not `observed` with pads, decode to all frames.

    Args:
      model: the VAE.
      params: its parameters.
      video: `(b, 1 + T, H, W, 3)` in [-1, 1].
      observed: bool, `(b, g)` for whole latent frames or `(b, g, h, w)`; see `masking.sample_mask`.
      key: draws the posterior sample (and gaussian padding); None decodes the mean.
      drop_from: `pixels` blanks the pixels of withheld positions before encoding as well, so that nothing of them
        reaches the output. `latents` lets the encoder see all frames (SSVAE's latent masked reconstruction): observed
        latents then hold something of what is withheld.

    The decoder is causal: what is observed after a gap does not help to draw the gap.
    """
    variables = {"params": params}
    if drop_from == "pixels":
        video = mask_pixels(video, observed, model.config.time_factor, model.config.space_factor)
    posterior = model.apply(variables, video, method="encode")
    latents = _sample(posterior, key, posterior.mean.shape[1])
    pad = model.apply(variables, latents.shape, _pad_key(key), method="pad_latents")
    kept = observed.reshape(observed.shape + (1,) * (latents.ndim - observed.ndim))
    latents = jnp.where(kept, latents, pad.astype(latents.dtype))
    features = model.apply(variables, latents, method="decode_features")
    return Prediction(features, posterior, observed.astype(jnp.float32))


def mask_pixels(video: Array, observed: Array, time_factor: int, space_factor: int) -> Array:
    """`video (b, 1 + T, H, W, 3)` with mid-grey (0) for the pixels of latent positions that are not `observed`.

    A position `(i, y, x)` stands for a square of `space_factor` pixels in the frames of group `i`.
    """
    if observed.ndim == 2:
        observed = observed[:, :, None, None]
    else:
        observed = jnp.repeat(jnp.repeat(observed, space_factor, axis=2), space_factor, axis=3)
    frames = jnp.concatenate([observed[:, :1], jnp.repeat(observed[:, 1:], time_factor, axis=1)], axis=1)
    return jnp.where(frames[..., None], video, 0.0)


def predict_clip(model: VAE, params: Params, video: Array, observed: int, key: PRNGKey | None = None) -> Array:
    """See the first `observed` frames and draw the whole clip: `(b, 1 + T, H, W, 3)`, clamped to [-1, 1].

    Raises:
      ShapeError: the clip's frames or `observed` are not `1 + n p_t`, or more are observed than there are.
    """
    p_t = model.config.time_factor
    for frames in (video.shape[1], observed):
        check_clip_shape(frames, video.shape[2], video.shape[3], p_t, model.config.space_factor)
    if observed > video.shape[1]:
        raise ShapeError(f"{observed} frames cannot be observed of a clip of {video.shape[1]}")
    dropped = (video.shape[1] - observed) // p_t
    if model.config.pad == "gaussian" and key is None:
        raise ValueError("gaussian padding needs a random key")
    prediction = predict_truncated(model, params, video, dropped, key if model.config.pad == "gaussian" else None)
    return jnp.clip(model.apply({"params": params}, prediction.features, method="to_pixels"), -1.0, 1.0)


def _sample(posterior: Posterior, key: PRNGKey | None, groups: int) -> Array:
    """Posterior sample whose noise for latent frame `i` does not depend on how many frames were encoded."""
    if key is None:
        return posterior.mode
    b, n, h, w, z = posterior.mean.shape
    noise = jax.random.normal(jax.random.fold_in(key, 0), (b, groups, h, w, z))[:, :n]
    return posterior.mean + jnp.exp(0.5 * posterior.logvar) * noise


def _pad_key(key: PRNGKey | None) -> PRNGKey | None:
    return None if key is None else jax.random.fold_in(key, 1)
