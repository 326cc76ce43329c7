"""Heads that read dense targets (flow, frames, paths) out of frozen features (paper section 4.3).

A probe is a linear readout in closed form and a small convolutional head that adds to it. The paper does not state the
head's sizes: here heads are small.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange

from pv_vae_jax.batching import padded_batches
from pv_vae_jax.evaluation.networks.feature_net import TimeConv
from pv_vae_jax.typing import Array, Params
from studies.linear_probe import ridge


class DenseHead(nn.Module):
    """Convolutions over space and time, then pixel shuffle up to the video's size.

    Attributes:
      channels: channels of the output.
      time_factor, space_factor: frames and pixels (a side) of one feature.
      width: width of the hidden layers.
    """

    channels: int
    time_factor: int
    space_factor: int
    width: int = 64

    @nn.compact
    def __call__(self, features: Array) -> Array:
        """`(b, g, h, w, d)` -> `(b, 1 + (g - 1) p_t, h p_s, w p_s, channels)`."""
        x = nn.Dense(self.width, name="enter")(features)
        for i in range(2):
            y = nn.gelu(nn.LayerNorm(name=f"norm{i}")(x))
            y = _space(self.width, f"space{i}", y)
            x = x + TimeConv(self.width, name=f"time{i}")(nn.gelu(y))
        # Feature 0 stands for frame 0, feature k for the p_t frames up to frame k p_t: a shuffle in time as well.
        first, later = nn.Dense(self.width, name="first")(x[:, :1]), x[:, 1:]
        later = nn.Dense(self.time_factor * self.width, name="later")(later)
        b, g, h, w, _ = later.shape
        later = later.reshape(b, g, h, w, self.time_factor, self.width)
        later = jnp.moveaxis(later, 4, 2).reshape(b, g * self.time_factor, h, w, self.width)
        x = jnp.concatenate([first, later], axis=1)
        x = x + TimeConv(self.width, name="frames")(nn.gelu(x))
        # Zeros at first: the head adds to a linear readout, and begins with adding nothing.
        x = nn.Dense(self.channels * self.space_factor**2, kernel_init=nn.initializers.zeros, name="pixels")(x)
        b, t, h, w, _ = x.shape
        s = self.space_factor
        x = x.reshape(b, t, h, w, s, s, self.channels)
        return jnp.moveaxis(x, 4, 3).reshape(b, t, h * s, w * s, self.channels)


def _space(width: int, name: str, x: Array) -> Array:
    frames = nn.Conv(width, (3, 3), name=name)(x.reshape(-1, *x.shape[2:]))
    return frames.reshape(*x.shape[:2], *frames.shape[1:])


def fold(maps: np.ndarray, time: int, space: int) -> np.ndarray:
    """`(n, t, H, W, c)` onto the grid of features that stand for `time` frames and `space` pixels a side.

    Returns:
      `(n, g, h, w, time space space c)`; frame 0 is repeated to fill its group.
    """
    cells = rearrange(maps, "n t (h s) (w r) c -> n t h w (s r c)", s=space, r=space)
    first = np.tile(cells[:, :1], (1, 1, 1, 1, time))
    return np.concatenate([first, rearrange(cells[:, 1:], "n (g f) h w d -> n g h w (f d)", f=time)], axis=1)


def unfold(cells: Array, time: int, space: int) -> Array:
    """Inverse of `fold`."""
    first, later = (
        rearrange(x, "n g h w (f s r c) -> n (g f) (h s) (w r) c", f=time, s=space, r=space)
        for x in (cells[:, :1], cells[:, 1:])
    )
    return jnp.concatenate([first[:, :1], later], axis=1)


@dataclasses.dataclass(frozen=True)
class ProbeTraining:
    """How a head is trained: AdamW with cosine decay; the best of `CHECKS` states on held-out clips is kept."""

    steps: int = 300
    batch_size: int = 8
    learning_rate: float = 3e-3
    seed: int = 0


HELD_OUT = 8  # one training clip in so many chooses the penalty and the state that is kept
CHECKS = 8


@dataclasses.dataclass(frozen=True)
class Probe:
    """A linear readout and a trained head that adds to it, with the scales of inputs and outputs.

    Attributes:
      head, params: the head.
      kernel, bias: of the linear readout, features to folded outputs.
      mean, std: statistics of the features, `(d,)`.
      scale: scale of the targets, one number or `(c,)`.
    """

    head: DenseHead
    params: Params
    kernel: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    scale: float | np.ndarray

    def __call__(self, features: np.ndarray, batch_size: int = 8) -> np.ndarray:
        """Outputs for `(n, g, h, w, d)`, batch by batch."""
        parts = []
        for batch, count in padded_batches(features, batch_size):
            x = ((batch - self.mean) / self.std).astype(np.float32)
            parts.append(np.asarray(_draw(self.head, self.params, self.kernel, self.bias, x))[:count])
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
    """Fit a linear readout in closed form, and a head to what it leaves, to `targets` `(n, t, H, W, c)`.

    What can be read linearly is so read exactly, however few the steps; features of noise get a constant.

    Args:
      head: the head to train.
      features: frozen features, `(n, g, h, w, d)`.
      targets: aligned with the head's first `t` frames, or the last if `last`; there may be fewer than the head draws.
      error: loss of output and target, both divided by `scale`; it is averaged. A function at module level, not a
        closure: compiled programs are cached by it.
      training: settings; the defaults suit the synthetic world.
      scale: scale of the targets, one number or `(c,)`; None takes their standard deviation.
      last: the targets are one frame, the last that the head draws.

    Raises:
      ValueError: fewer than two clips, or `last` with several frames.
    """
    training = training or ProbeTraining()
    if len(features) < 2 or (last and targets.shape[1] != 1):
        raise ValueError(
            f"expected at least two clips, and targets of one frame if last, got features {features.shape} and targets "
            f"{targets.shape}"
        )
    mean = features.mean(axis=(0, 1, 2, 3))
    std = np.maximum(features.std(axis=(0, 1, 2, 3)), 1e-6)
    scale = max(float(np.std(targets)), 1e-6) if scale is None else scale
    normal = lambda part: ((features[part] - mean) / std).astype(np.float32)  # noqa: E731
    wanted = lambda part: (targets[part] / scale).astype(np.float32)  # noqa: E731
    kept = np.arange(len(features)) % HELD_OUT != HELD_OUT - 1
    kept[-1] &= not kept.all()
    chosen, held = np.flatnonzero(kept), np.flatnonzero(~kept)

    def cells(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # rows of the linear readout
        x, y = normal(part), wanted(part)
        if last:
            x = x[:, -1:]
        else:
            frames = 1 + (features.shape[1] - 1) * head.time_factor
            y = np.pad(y, [(0, 0), (0, frames - y.shape[1]), (0, 0), (0, 0), (0, 0)])
        y = fold(y, head.time_factor, head.space_factor)
        return x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])

    parts = [held[i : i + training.batch_size] for i in range(0, len(held), training.batch_size)]

    def held_out(params: Params, kernel: np.ndarray, bias: np.ndarray) -> float:
        found = [_loss(head, error, last, params, kernel, bias, normal(p), wanted(p)) for p in parts]
        return float(np.average(found, weights=[len(p) for p in parts]))

    params, state = _start(head, training, normal(slice(1)))
    kernel, bias = min(ridge(*cells(chosen)), key=lambda linear: held_out(params, *linear))
    rng = np.random.default_rng(training.seed)
    best, least = params, np.inf
    for step in range(training.steps + 1):
        if step % max(training.steps // CHECKS, 1) == 0 or step == training.steps:
            if (found := held_out(params, kernel, bias)) < least:
                best, least = params, found
        if step < training.steps:
            index = rng.choice(chosen, training.batch_size)
            batch = (kernel, bias, normal(index), wanted(index))
            params, state = _step(head, training, error, last, params, state, *batch)
    return Probe(head, best, kernel, bias, mean, std, scale)


def _optimizer(training: ProbeTraining) -> optax.GradientTransformation:
    return optax.adamw(optax.cosine_decay_schedule(training.learning_rate, training.steps), weight_decay=1e-3)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _start(head: DenseHead, training: ProbeTraining, features: Array) -> tuple[Params, optax.OptState]:
    params = head.init(jax.random.key(training.seed), features)["params"]
    return params, _optimizer(training).init(params)


@functools.partial(jax.jit, static_argnums=0)
def _draw(head: DenseHead, params: Params, kernel: Array, bias: Array, x: Array) -> Array:
    linear = unfold(x @ kernel + bias, head.time_factor, head.space_factor)
    return linear + jnp.asarray(head.apply({"params": params}, x))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _loss(head, error, last, params: Params, kernel: Array, bias: Array, x: Array, y: Array) -> Array:
    output = _draw(head, params, kernel, bias, x)
    return error(output[:, -y.shape[1] :] if last else output[:, : y.shape[1]], y).mean()


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _step(head, training, error, last, params: Params, state: optax.OptState, *batch: Array):
    gradient = jax.grad(lambda params: _loss(head, error, last, params, *batch))(params)
    update, state = _optimizer(training).update(gradient, state, params)
    return optax.apply_updates(params, update), state


def endpoint_loss(output: Array, target: Array) -> Array:
    """Length of the error, smooth near zero, `(...)` of `(..., 2)`: the loss of flow."""
    return jnp.sqrt(jnp.sum(jnp.square(output - target), axis=-1) + 1e-2)


def squared(output: Array, target: Array) -> Array:
    """Squared error: the loss of pixels."""
    return jnp.square(output - target)


def path_error(output: Array, target: Array) -> Array:
    """For `(..., 3)`: length of the error of (dx, dy), and the cross-entropy of being hidden (target 0 or 1)."""
    hidden = optax.sigmoid_binary_cross_entropy(output[..., 2], target[..., 2])
    return endpoint_loss(output[..., :2], target[..., :2]) + 0.1 * hidden
