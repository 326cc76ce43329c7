"""Many clips from a trained model, batch by batch, as pixels on the host."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8
from tqdm import tqdm

from pv_vae_jax.model import Model
from pv_vae_jax.model_inputs import checked_labels
from pv_vae_jax.pixels import to_uint8
from pv_vae_jax.typing import Array, NonFiniteError


def sample_clips(
    model: Model,
    labels: Int[np.ndarray, " n"],
    *,
    steps: int = 100,
    guidance: float = 1.0,
    seed: int = 0,
    batch_size: int = 16,
) -> UInt8[np.ndarray, "n t H W 3"]:
    """`Model.sample` in batches of one compiled shape: one clip a label.

    Args:
      model: a model with a diffusion transformer.
      labels: classes; a model without classes only takes their number.
      steps: Euler steps (paper: 100).
      guidance: scale of classifier-free guidance; 1 is none. A model without classes takes 1 only.
      seed: seed of the noise; clip `i` depends on `(seed, i)` alone.
      batch_size: clips at a time.

    Raises:
      ValueError: the model has no transformer, or no classes to guide by, or a label is out of range.
      NonFiniteError: a clip is not finite.
    """
    labels = np.asarray(checked_labels(model.diffusion and model.diffusion.model, labels, guidance))
    key, clips = jax.random.key(seed), []
    for first in tqdm(range(0, len(labels), batch_size), desc="samples", unit="batch", disable=not sys.stderr.isatty()):
        index = np.minimum(np.arange(first, first + batch_size), len(labels) - 1)  # one compiled shape
        video = model.sample(labels[index], key, steps=steps, guidance=guidance, index=index)
        pixels, finite = _pixels(video)
        if not finite:  # as uint8 they would be black clips, and scored
            raise NonFiniteError(
                f"clips {first} to {index[-1]} hold NaN or infinite numbers: check that the weights are finite, and "
                "try other steps or another guidance"
            )
        clips.append(np.asarray(pixels)[: len(labels) - first])
    return np.concatenate(clips)


@jax.jit
def _pixels(video: Float[Array, "n t H W 3"]) -> tuple[UInt8[Array, "n t H W 3"], Array]:
    return to_uint8(video), jnp.isfinite(video).all()
