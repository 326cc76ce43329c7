"""Probes: what a frozen diffusion transformer's features know about motion (paper section 4.3).

A small head learns to read optical flow, or the next frame, out of features of one layer; points are tracked by the
features' likeness alone. A number means something only beside its controls: features that hold the true motion,
features of noise, raw latents, an untrained transformer, and guesses that look at nothing.

The paper does not state noise level, normalisation or the head's sizes: here time is 0.1 on the path from data (0) to
noise (1), features are normalised over channels, and heads are small.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from pv_vae_jax.diffusion.rectified_flow import interpolate
from pv_vae_jax.models.feature_net import TimeConv
from pv_vae_jax.models.latte import Latte
from pv_vae_jax.typing import Array, Params


def diffusion_features(
    model: Latte,
    params: Params,
    latents: Array,
    *,
    layer: int,
    time: float = 0.1,
    seed: int = 0,
    first: Array | int = 0,
) -> Array:
    """Features after `layer` blocks of clean latents that noise was added to, in one forward pass without a class.

    Args:
      model, params: the transformer.
      latents: `(n, g, h, w, z)`, normalised as the transformer was trained on them.
      layer: blocks passed, an even number: the paper's 14 of 28 is after a temporal block.
      time: on the path, 0 is data.
      seed: of the noise; clip `i` gets noise of `(seed, first + i)`.
      first: number of the first clip, where a set is gone through in batches.

    Returns:
      `(n, g, h', w', d)`, normalised over channels; `h'` is `h` over the transformer's patch.

    Raises:
      ValueError: no such layer.
    """
    if layer % 2 or not 2 <= layer <= model.config.depth:
        raise ValueError(f"layers to read from are 2, 4, .. {model.config.depth}; got {layer}")
    shallow = Latte(dataclasses.replace(model.config, depth=layer))
    cut = params | {"pairs": jax.tree.map(lambda x: x[: layer // 2], params["pairs"])}
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(first + jnp.arange(len(latents)))
    noise = jax.vmap(lambda key: jax.random.normal(key, latents.shape[1:]))(keys)
    t = jnp.full((len(latents),), time)
    _, state = shallow.apply(
        {"params": cut},
        interpolate(latents, noise, t),
        t,
        # The norm after the last block is what comes after `layer` blocks, normalised.
        capture_intermediates=lambda module, _: module.path == ("LayerNorm_0",),
        mutable=["intermediates"],
    )
    features = state["intermediates"]["LayerNorm_0"]["__call__"][0]
    b, g, h, w, _ = latents.shape
    return features.reshape(b, g, h // model.config.patch, w // model.config.patch, -1).astype(jnp.float32)


class DenseHead(nn.Module):
    """Convolutions over space and time, then pixel shuffle up to the video's size.

    Attributes:
      channels: of the output.
      time_factor, space_factor: frames and pixels of a feature.
      width: of the hidden layers.
      anchored: every group sees the features of group 0 as well: for points that are asked for there.
    """

    channels: int
    time_factor: int
    space_factor: int
    width: int = 64
    anchored: bool = False

    @nn.compact
    def __call__(self, features: Array) -> Array:
        """`(b, g, h, w, d)` -> `(b, 1 + (g - 1) p_t, h p_s, w p_s, channels)`."""
        if self.anchored:
            features = jnp.concatenate([features, jnp.broadcast_to(features[:, :1], features.shape)], axis=-1)
        x = nn.Dense(self.width, name="enter")(features)
        for i in range(2):
            y = nn.gelu(nn.LayerNorm(name=f"norm{i}")(x))
            y = _space(self.width, f"space{i}", y)
            x = x + TimeConv(self.width, name=f"time{i}")(nn.gelu(y))
        # Feature 0 stands for frame 0, feature k for the p_t frames up to frame k p_t: a shuffle in time as well.
        # The features enter once more, so that what is in them plainly need not pass the narrow layers.
        x = jnp.concatenate([x, features], axis=-1)
        first, later = nn.Dense(self.width, name="first")(x[:, :1]), x[:, 1:]
        later = nn.Dense(self.time_factor * self.width, name="later")(later)
        b, g, h, w, _ = later.shape
        later = later.reshape(b, g, h, w, self.time_factor, self.width)
        later = jnp.moveaxis(later, 4, 2).reshape(b, g * self.time_factor, h, w, self.width)
        x = jnp.concatenate([first, later], axis=1)
        x = x + TimeConv(self.width, name="frames")(nn.gelu(x))
        x = nn.Dense(self.channels * self.space_factor**2, name="pixels")(x)
        b, t, h, w, _ = x.shape
        s = self.space_factor
        x = x.reshape(b, t, h, w, s, s, self.channels)
        return jnp.moveaxis(x, 4, 3).reshape(b, t, h * s, w * s, self.channels)


def _space(width: int, name: str, x: Array) -> Array:
    frames = nn.Conv(width, (3, 3), name=name)(x.reshape(-1, *x.shape[2:]))
    return frames.reshape(*x.shape[:2], *frames.shape[1:])


@dataclasses.dataclass(frozen=True)
class ProbeTraining:
    """How a head is trained: AdamW with cosine decay."""

    steps: int = 300
    batch_size: int = 8
    learning_rate: float = 3e-3
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Probe:
    """A trained head, and the scales that its inputs and outputs are brought to.

    Attributes:
      head, params: the head.
      mean, deviation: `(d,)` of the features.
      scale: of the targets, one or `(c,)`.
    """

    head: DenseHead
    params: Params
    mean: np.ndarray
    deviation: np.ndarray
    scale: float | np.ndarray

    def __call__(self, features: np.ndarray, batch_size: int = 8) -> np.ndarray:
        """Outputs for `(n, g, h, w, d)`, batch by batch."""
        parts = []
        for i in range(0, len(features), batch_size):
            x = (features[np.minimum(np.arange(i, i + batch_size), len(features) - 1)] - self.mean) / self.deviation
            parts.append(np.asarray(_apply(self.head, self.params, x.astype(np.float32)))[: len(features) - i])
        return self.scale * np.concatenate(parts)


def train_probe(
    head: DenseHead,
    features: np.ndarray,
    targets: np.ndarray,
    error: Callable[[Array, Array], Array],
    training: ProbeTraining | None = None,
    *,
    scale: float | np.ndarray | None = None,
    last: bool = False,
) -> Probe:
    """Fit a head to `targets` `(n, t, H, W, c)`, aligned with the head's first `t` frames.

    Args:
      head: what is trained.
      features: `(n, g, h, w, d)`, frozen.
      targets: may have fewer frames than the head draws: flow has one fewer than the video.
      error: of output and target, both divided by `scale`; it is averaged. A function of a module, not a closure:
        compiled programs are kept by it.
      training: sizes; the default suits the synthetic world.
      scale: of the targets, one or `(c,)`; None takes their deviation.
      last: align the targets with the head's last `t` frames instead.
    """
    training = training or ProbeTraining()
    mean = features.mean(axis=(0, 1, 2, 3))
    deviation = np.maximum(features.std(axis=(0, 1, 2, 3)), 1e-6)
    scale = max(float(np.std(targets)), 1e-6) if scale is None else scale
    params, state = _start(head, training, features[:1])
    rng = np.random.default_rng(training.seed)
    for _ in range(training.steps):
        index = rng.integers(len(features), size=training.batch_size)
        x, y = (features[index] - mean) / deviation, targets[index] / scale
        params, state = _step(head, training, error, last, params, state, x.astype(np.float32), y.astype(np.float32))
    return Probe(head, params, mean, deviation, scale)


def _optimizer(training: ProbeTraining) -> optax.GradientTransformation:
    return optax.adamw(optax.cosine_decay_schedule(training.learning_rate, training.steps), weight_decay=1e-3)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _start(head: DenseHead, training: ProbeTraining, features: Array) -> tuple[Params, optax.OptState]:
    params = head.init(jax.random.key(training.seed), features)["params"]
    return params, _optimizer(training).init(params)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _step(head, training, error, last, params: Params, state: optax.OptState, x: Array, y: Array):
    def loss(params):
        output = head.apply({"params": params}, x)
        return error(output[:, -y.shape[1] :] if last else output[:, : y.shape[1]], y).mean()

    update, state = _optimizer(training).update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, update), state


@functools.partial(jax.jit, static_argnums=0)
def _apply(head: DenseHead, params: Params, features: Array) -> Array:
    return head.apply({"params": params}, features)


def length(output: Array, target: Array) -> Array:
    """End-point error, smooth near zero: for flow."""
    return jnp.sqrt(jnp.sum(jnp.square(output - target), axis=-1) + 1e-2)


def squared(output: Array, target: Array) -> Array:
    """For pixels."""
    return jnp.square(output - target)


def path_error(output: Array, target: Array) -> Array:
    """For `(..., 3)`: length of the error of (dx, dy), and the cross-entropy of being hidden (target 0 or 1)."""
    hidden = optax.sigmoid_binary_cross_entropy(output[..., 2], target[..., 2])
    return length(output[..., :2], target[..., :2]) + 0.1 * hidden


def track_by_likeness(
    features: np.ndarray, query: np.ndarray, size: float, *, temperature: float = 0.05, radius: float = 2.0
) -> np.ndarray:
    """Follow points of frame 0 by cosine likeness of features: soft arg-max around the best place of each frame.

    Args:
      features: `(t, h, w, d)` of one clip, a map a frame.
      query: `(n, 2)` (x, y) in pixels of a square picture.
      size: its side.
      temperature: of the soft arg-max over likeness.
      radius: of its window, in features.

    Returns:
      `(n, t, 2)` in the same pixels; frame 0 is the query itself.
    """
    t, h, w, _ = features.shape
    x = np.asarray(features, np.float64)
    x = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    scale = np.array([w, h]) / size
    cell = np.clip((query * scale).astype(int), 0, [w - 1, h - 1])
    likeness = np.einsum("nd,thwd->nthw", x[0, cell[:, 1], cell[:, 0]], x)
    ys, xs = np.mgrid[0:h, 0:w]
    best = likeness.reshape(len(query), t, -1).argmax(axis=-1)
    by, bx = best // w, best % w
    near = (np.abs(ys - by[..., None, None]) <= radius) & (np.abs(xs - bx[..., None, None]) <= radius)
    weights = np.where(near, np.exp((likeness - likeness.max(axis=(2, 3), keepdims=True)) / temperature), 0)
    weights /= weights.sum(axis=(2, 3), keepdims=True)
    centre = np.stack([(weights * (xs + 0.5)).sum(axis=(2, 3)), (weights * (ys + 0.5)).sum(axis=(2, 3))], axis=-1)
    path = centre / scale
    path[:, 0] = query
    return path
