"""Predictive reconstruction (paper section 3.1): withhold future frames from the encoder, not from the decoder.

A clip of `1 + T` frames has `g = 1 + T / p_t` groups; the last `k` of them are dropped. Group 0 is always kept. These
functions give the latents of all `g` groups, encoded or padded; `model.apply(variables, latents, method="decode")`
draws the clip from them. Two forms give the same latents, because the encoder is causal:

* truncated: encode only the observed frames. `k` is shared by the batch and known when compiling (one program each).
* filled: encode all frames, then overwrite the last `k` latent frames. Examples may differ in `k`; one program in all.

Beyond the paper, `predict_masked` withholds any latent positions (`masking` draws them). Overwriting latents is then
not enough, because observed latents have seen withheld frames that came before them and, as kernels are wide, withheld
places beside them. So the pixels are blanked first, unless `drop_from="latents"` explicitly asks for latent masking.

All three take a `key`. With one, latents are a sample of the posterior; with `None` they are its mean, and nothing is
random. Gaussian padding is always drawn, so it needs a key.
"""

import flax.struct
import jax
import jax.core
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from pv_vae_jax.dropping import DropFrom
from pv_vae_jax.models.vae import VAE, Posterior
from pv_vae_jax.typing import Array, Params, PRNGKey


@flax.struct.dataclass
class Prediction:
    """The result of one predictive pass.

    Attributes:
      latents: the decoder's input for all frames: encoded where observed, pads elsewhere.
      posterior: the posterior over the encoded latent frames: `g - k` of them (truncated) or all `g` (filled).
      observed: 1 where a latent frame was seen, `(b, frames of posterior)`; `(b, g, h, w)` if `predict_masked` withheld
        parts of frames. The KL term counts these only.
    """

    latents: Float[Array, "b g h w z"]
    posterior: Posterior
    observed: Float[Array, "b n *place"]


def observed_frames(frames: int, dropped: int, time_factor: int) -> int:
    """Number of pixel frames that the encoder sees when `dropped` groups are withheld.

    Raises:
      TypeError: `dropped` is traced.
      ValueError: no frame would be left to see, or `dropped` is negative.
    """
    if isinstance(dropped, jax.core.Tracer):
        raise TypeError(
            "`dropped` shapes the program, so it must be a Python int: name it in static_argnames of jax.jit"
        )
    kept = frames - dropped * time_factor
    if dropped < 0 or kept < 1:
        raise ValueError(f"cannot drop {dropped} of {1 + (frames - 1) // time_factor} groups: group 0 is always kept")
    return kept


def predict_truncated(
    model: VAE, params: Params, video: Float[Array, "b t H W 3"], dropped: int, key: PRNGKey | None
) -> Prediction:
    """Encode the observed frames alone and append `dropped` pad frames.

    Args:
      model: the VAE.
      params: its parameters.
      video: `(b, 1 + T, H, W, 3)` in [-1, 1]; frames after the observed ones are not read.
      dropped: `k`, a Python int.
      key: draws the posterior sample (and gaussian padding); None takes the mean.
    """
    variables = {"params": params}
    kept = observed_frames(video.shape[1], dropped, model.config.time_factor)
    posterior = model.apply(variables, video[:, :kept], method="encode")
    latents = _sample(posterior, key, model.config.latent_frames(video.shape[1]))  # (b, g - k, h, w, z)
    if dropped:
        shape = (latents.shape[0], dropped, *latents.shape[2:])
        pad = model.apply(variables, shape, _pad_key(key), method="pad_latents")
        latents = jnp.concatenate([latents, pad.astype(latents.dtype)], axis=1)  # (b, g, h, w, z)
    return Prediction(latents, posterior, jnp.ones(posterior.mean.shape[:2], jnp.float32))


def predict_filled(
    model: VAE, params: Params, video: Float[Array, "b t H W 3"], dropped: Int[Array, "*b"], key: PRNGKey | None
) -> Prediction:
    """Encode every frame and overwrite the last `dropped` latent frames with pads.

    `dropped` is an int array: scalar, or `(b,)` for one `k` per example; it is clipped to `0 .. g - 1`, because group 0
    is always kept. Gaussian pads are drawn for all `g` frames, so their values differ from the truncated form's; with a
    learnable token the two forms agree to rounding.
    """
    groups = model.config.latent_frames(video.shape[1])
    dropped = jnp.broadcast_to(jnp.clip(jnp.asarray(dropped), 0, groups - 1), (video.shape[0],))
    observed = jnp.arange(groups)[None, :] < (groups - dropped)[:, None]  # (b, g)
    # A causal encoder keeps dropped frames out of the observed latents, so their pixels need not be touched.
    return predict_masked(model, params, video, observed, key, drop_from="latents")


def predict_masked(
    model: VAE,
    params: Params,
    video: Float[Array, "b t H W 3"],
    observed: Bool[Array, "b g *place"],
    key: PRNGKey | None,
    *,
    drop_from: DropFrom = "pixels",
) -> Prediction:
    """Overwrite the latent positions that are not `observed` with pads.

    Args:
      model: the VAE.
      params: its parameters.
      video: `(b, 1 + T, H, W, 3)` in [-1, 1].
      observed: bool, `(b, g)` for entire latent frames or `(b, g, h, w)`; see `masking.sample_mask`.
      key: draws the posterior sample (and gaussian padding); None takes the mean.
      drop_from: `pixels` blanks the pixels of withheld positions before encoding as well, so that nothing of them
        reaches the output. `latents` lets the encoder see all frames (SSVAE's latent masked reconstruction): observed
        latents then carry some of what is withheld.

    The decoder is causal: what is observed after a gap does not help to draw the gap.
    """
    variables = {"params": params}
    if drop_from == "pixels":
        video = mask_pixels(video, observed, model.config.time_factor, model.config.space_factor)
    posterior = model.apply(variables, video, method="encode")
    latents = _sample(posterior, key, posterior.mean.shape[1])  # (b, g, h, w, z)
    pad = model.apply(variables, latents.shape, _pad_key(key), method="pad_latents")
    kept = observed.reshape(observed.shape + (1,) * (latents.ndim - observed.ndim))
    return Prediction(jnp.where(kept, latents, pad.astype(latents.dtype)), posterior, observed.astype(jnp.float32))


def mask_pixels(
    video: Float[Array, "b t H W c"], observed: Bool[Array, "b g *place"], time_factor: int, space_factor: int
) -> Float[Array, "b t H W c"]:
    """`video (b, 1 + T, H, W, 3)` with mid-grey (0) for the pixels of latent positions that are not `observed`.

    A position `(i, y, x)` stands for a square of `space_factor` pixels in the frames of group `i`.
    """
    if observed.ndim == 2:
        observed = observed[:, :, None, None]  # (b, g, 1, 1)
    else:
        observed = jnp.repeat(jnp.repeat(observed, space_factor, axis=2), space_factor, axis=3)  # (b, g, H, W)
    later = jnp.repeat(observed[:, 1:], time_factor, axis=1)  # (b, T, H, W)
    frames = jnp.concatenate([observed[:, :1], later], axis=1)  # (b, 1 + T, H, W)
    return jnp.where(frames[..., None], video, 0.0)


def _sample(posterior: Posterior, key: PRNGKey | None, groups: int) -> Array:
    """Posterior sample whose noise for latent frame `i` does not depend on how many frames were encoded."""
    if key is None:
        return posterior.mode
    b, n, h, w, z = posterior.mean.shape
    noise = jax.random.normal(jax.random.fold_in(key, 0), (b, groups, h, w, z), jnp.float32)[:, :n]
    return posterior.mean + jnp.exp(0.5 * posterior.logvar) * noise


def _pad_key(key: PRNGKey | None) -> PRNGKey | None:
    """The key for gaussian padding, different from that of the posterior sample."""
    return None if key is None else jax.random.fold_in(key, 1)
