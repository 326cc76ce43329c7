"""Clips from a pretrained pair of VAE and diffusion transformer."""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from pv_vae_jax.flow import classifier_free_guidance, denormalize_latents, euler
from pv_vae_jax.model import Pretrained
from pv_vae_jax.pixels import to_uint8
from pv_vae_jax.typing import NonFiniteError


def sample_clips(
    model: Pretrained,
    labels: np.ndarray,
    *,
    steps: int = 100,
    guidance: float = 1.0,
    seed: int = 0,
    batch_size: int = 16,
) -> np.ndarray:
    """Draw one clip a label: noise, Euler with guidance, decoder.

    Args:
      model: with a diffusion transformer.
      labels: `(n,)` classes; ignored by an unconditional model.
      steps: Euler steps (paper: 100).
      guidance: scale; 1 is none. An unconditional model takes 1 only.
      seed: of the noise; clip `i` depends on `(seed, i)` alone.
      batch_size: clips at once.

    Returns:
      `(n, 1 + T, H, W, 3)` uint8.

    Raises:
      ValueError: no transformer, guidance without classes, or a label that is no class.
      NonFiniteError: a clip is not finite.
    """
    if model.diffusion is None:
        raise ValueError("this model has no diffusion transformer")
    d = model.diffusion
    classes = d.model.config.classes
    if not classes and guidance != 1.0:
        raise ValueError(f"guidance {guidance} needs a class-conditional transformer; set it to 1")
    if classes and len(wrong := np.setdiff1d(labels, np.arange(classes))):
        raise ValueError(f"labels are classes 0 to {classes - 1}, got {wrong.tolist()}")

    @jax.jit
    def draw(vae_params, params, index, label):
        noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(jax.random.key(seed), i), d.latent_shape))(
            index
        )
        velocity = lambda x, t, label: d.model.apply({"params": params}, x, t, label)  # noqa: E731
        flow = (
            classifier_free_guidance(velocity, label, classes, guidance)
            if classes
            else lambda x, t: velocity(x, t, None)
        )
        latents = denormalize_latents(euler(flow, noise, steps), d.mean, d.std)
        video = model.vae.apply({"params": vae_params}, latents, method="decode")
        return to_uint8(video), jnp.isfinite(video).all()

    clips = []
    for first in tqdm(range(0, len(labels), batch_size), desc="samples", unit="batch", disable=not sys.stderr.isatty()):
        index = np.minimum(np.arange(first, first + batch_size), len(labels) - 1)  # one compiled shape
        drawn, finite = draw(model.vae_params, d.params, index, np.asarray(labels)[index])
        if not finite:  # as uint8 they would be black clips, and scored
            raise NonFiniteError(
                f"clips {first} to {index[-1]} hold NaN or infinite numbers: see that the weights are finite, and try "
                "other steps or another guidance"
            )
        clips.append(np.asarray(drawn)[: len(labels) - first])
    return np.concatenate(clips)
