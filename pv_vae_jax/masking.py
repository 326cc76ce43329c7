"""What is withheld from a clip: patterns over latent positions. How many groups' worth, `k`, see `dropping`.

The paper withholds the last groups ("future"); the other patterns are ours, to compare with it. All patterns
withhold as much for the same `k`, namely `k` groups' worth of latent positions, and none withholds frame 0:

* `future`: the last `k` groups.
* `infill`: `k` groups in a row; the last group stays.
* `block`: one box in space and time, of `k` to all later groups and any place, sides within a factor of 2 or so.
* `tube`: the same positions of every later group, chosen at random (VideoMAE, arXiv 2203.12602).
* `random`: positions chosen at random one by one (MAE; SSVAE's latent masked reconstruction, arXiv 2512.05394).
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Int

from pv_vae_jax.dropping import DropPattern, num_droppable
from pv_vae_jax.typing import Array, PRNGKey


def sample_mask(
    pattern: DropPattern, key: PRNGKey, dropped: Int[Array, " b"], grid: tuple[int, int, int]
) -> Bool[Array, "b g h w"]:
    """Draw which latent positions stay observed.

    Args:
      pattern: chooses the withheld positions, see the head of this module.
      key: random key, split among the examples.
      dropped: the `k` of each example. `tube` and `random` withhold that many groups' worth of positions up to rounding
        to an integer, `block` up to rounding its sides.
      grid: `(g, h, w)` of the latents.

    Returns:
      True where a position is observed; true for all of frame 0.
    """
    g, h, w = grid
    later = (g - 1, h, w)
    if g == 1:
        return jnp.ones((len(dropped), *grid), bool)

    def withhold(key: PRNGKey, k: Array) -> Array:
        return _PATTERNS[pattern](key, jnp.minimum(k, num_droppable(g, pattern)), later)

    withheld = jax.vmap(withhold)(jax.random.split(key, dropped.shape[0]), dropped)  # (b, g - 1, h, w)
    return jnp.pad(~withheld, ((0, 0), (1, 0), (0, 0), (0, 0)), constant_values=True)  # (b, g, h, w)


# Each draws, for one example, which of the later positions `(g - 1, h, w)` are withheld.


def _future(key: PRNGKey, k: Array, shape: tuple[int, int, int]) -> Array:
    return jnp.broadcast_to(_span(shape[0] - k, k, shape[0])[:, None, None], shape)


def _infill(key: PRNGKey, k: Array, shape: tuple[int, int, int]) -> Array:
    start = _randint(key, shape[0] - k)
    return jnp.broadcast_to(_span(start, k, shape[0])[:, None, None], shape)


def _block(key: PRNGKey, k: Array, shape: tuple[int, int, int]) -> Array:
    """A box of volume `k h w`: its duration is uniform, its aspect ratio log-uniform in [1/2, 2] where it fits."""
    g, h, w = shape
    duration_key, ratio_key, *start_keys = jax.random.split(key, 5)
    duration = k + _randint(duration_key, g - k + 1)
    area = k * h * w / jnp.maximum(duration, 1)
    ratio = jnp.exp2(jax.random.uniform(ratio_key, (), jnp.float32, minval=-1.0, maxval=1.0))
    height = jnp.round(jnp.clip(jnp.sqrt(area * ratio), area / w, h)).clip(1, h).astype(int)
    width = jnp.round(area / height.astype(area.dtype)).clip(1, w).astype(int)
    time, row, column = (
        _span(_randint(start_key, size - length + 1), length, size)
        for start_key, length, size in zip(start_keys, (duration, height, width), shape, strict=True)
    )
    return (k > 0) & time[:, None, None] & row[None, :, None] & column[None, None]  # (g, h, w)


def _tube(key: PRNGKey, k: Array, shape: tuple[int, int, int]) -> Array:
    g, h, w = shape
    count = jnp.round(k * h * w / g).astype(int)
    return jnp.broadcast_to(_choose(key, h * w, count).reshape(h, w), shape)


def _random(key: PRNGKey, k: Array, shape: tuple[int, int, int]) -> Array:
    return _choose(key, math.prod(shape), k * shape[1] * shape[2]).reshape(shape)


_PATTERNS = {"future": _future, "infill": _infill, "block": _block, "tube": _tube, "random": _random}


def _span(start: Array, length: Array, size: int) -> Array:
    """`(size,)` bool, true for `length` entries from `start` on."""
    at = jnp.arange(size)
    return (at >= start) & (at < start + length)


def _randint(key: PRNGKey, count: Array) -> Array:
    """Uniform over `0 .. count - 1`, for a traced `count`."""
    place = jax.random.uniform(key, (), jnp.float32) * count.astype(jnp.float32)
    return jnp.minimum(jnp.floor(place).astype(count.dtype), count - 1)


def _choose(key: PRNGKey, size: int, count: Array) -> Array:
    """`(size,)` bool, true for `count` entries chosen at random."""
    rank = jnp.argsort(jnp.argsort(jax.random.uniform(key, (size,), jnp.float32)))
    return rank < count
