"""I3D (Carreira and Zisserman, arXiv 1705.07750), RGB: the network whose logits FVD compares.

As in the TF-Hub graph of FVD: TensorFlow's "SAME" padding, batch norm without scale and with epsilon 1e-3, 400 Kinetics
classes, logits averaged over the time steps that are left. Ports to PyTorch in wide use have epsilon 1e-5, which alone
moves logits by some percent: `epsilon` is there to compare with them.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from pv_vae_jax.typing import Array, ShapeError

CLASSES = 400
SIDE = 224
LEAST_FRAMES = 9  # fewer leave less than the two steps that the average pool spans

# Widths of a block: 1x1 | 1x1 -> 3x3x3 | 1x1 -> 3x3x3 | pool -> 1x1.
MIXED = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}


class I3DOutput(NamedTuple):
    """What the network says of `b` clips.

    Attributes:
      logits: `(b, 400)`, mean over steps. The features of FVD.
      steps: `(b, s, 400)` logits of every step that is left of the time axis.
      pooled: `(b, 1024)`, what the last layer sees, mean over steps. The features of some toolkits.
    """

    logits: Array
    steps: Array
    pooled: Array


class I3D(nn.Module):
    """The network.

    Attributes:
      epsilon: of batch norm; 1e-3 is right, 1e-5 is what VideoGPT's port and its descendants have.
    """

    epsilon: float = 1e-3

    @nn.compact
    def __call__(self, video: Array) -> I3DOutput:
        """`(b, t, 224, 224, 3)` in [-1, 1], `t >= 9`.

        Raises:
          ShapeError: another size, or too few frames.
        """
        if video.shape[2:] != (SIDE, SIDE, 3) or video.shape[1] < LEAST_FRAMES:
            raise ShapeError(
                f"I3D takes clips of {LEAST_FRAMES} frames or more, {SIDE} x {SIDE}; got {video.shape[1]} frames of "
                f"{video.shape[2]} x {video.shape[3]}"
            )
        x = _Unit(64, (7, 7, 7), 2, self.epsilon, name="Conv3d_1a_7x7")(video)
        x = _max_pool(x, (1, 3, 3), (1, 2, 2))
        x = _Unit(64, (1, 1, 1), 1, self.epsilon, name="Conv3d_2b_1x1")(x)
        x = _Unit(192, (3, 3, 3), 1, self.epsilon, name="Conv3d_2c_3x3")(x)
        x = _max_pool(x, (1, 3, 3), (1, 2, 2))
        for name, widths in MIXED.items():
            if name == "Mixed_4b":
                x = _max_pool(x, (3, 3, 3), (2, 2, 2))
            if name == "Mixed_5b":
                x = _max_pool(x, (2, 2, 2), (2, 2, 2))
            x = _Mixed(widths, self.epsilon, name=name)(x)
        pooled = nn.avg_pool(x, (2, 7, 7), (1, 1, 1), "VALID")[:, :, 0, 0]  # b s d
        steps = nn.Dense(CLASSES, precision="highest", name="Logits")(pooled)
        return I3DOutput(steps.mean(axis=1), steps, pooled.mean(axis=1))


class _Unit(nn.Module):
    """Convolution without bias, batch norm with stored statistics, ReLU."""

    features: int
    kernel_size: tuple[int, int, int]
    stride: int
    epsilon: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        kernel = self.param("kernel", nn.initializers.he_normal(), (*self.kernel_size, x.shape[-1], self.features))
        beta = self.param("beta", zeros, (self.features,))
        mean = self.param("mean", zeros, (self.features,))
        variance = self.param("variance", ones, (self.features,))
        # Statistics are constants, so the norm is a scale of the kernel and a bias: one pass over the pixels less.
        scale = jax.lax.rsqrt(variance + self.epsilon)
        return nn.relu(_conv_same(x, kernel * scale, self.stride) + (beta - mean * scale))


class _Mixed(nn.Module):
    """Four branches side by side."""

    widths: tuple[int, ...]
    epsilon: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        a, b1, b2, c1, c2, d = self.widths
        unit = lambda width, size, name: _Unit(width, (size,) * 3, 1, self.epsilon, name=name)  # noqa: E731
        branches = (
            unit(a, 1, "branch0")(x),
            unit(b2, 3, "branch1b")(unit(b1, 1, "branch1a")(x)),
            unit(c2, 3, "branch2b")(unit(c1, 1, "branch2a")(x)),
            unit(d, 1, "branch3")(_max_pool(x, (3, 3, 3), (1, 1, 1))),
        )
        return jnp.concatenate(branches, axis=-1)


def _max_pool(x: Array, window: tuple[int, int, int], stride: tuple[int, int, int]) -> Array:
    return nn.max_pool(x, window, stride, "SAME")


def _conv_same(x: Array, kernel: Array, stride: int) -> Array:
    """TensorFlow's SAME convolution, `(b, t, h, w, ci)` and `(kt, kh, kw, ci, co)`.

    On CPU the taps in time become channels of a 2-D convolution: XLA's direct 3-D one is slower there.
    """
    kt = kernel.shape[0]
    if kernel.shape[:3] == (1, 1, 1):
        return jnp.matmul(x, kernel[0, 0, 0], precision="highest")
    if jax.default_backend() != "cpu":
        return jax.lax.conv_general_dilated(
            x, kernel, (stride,) * 3, "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC"), precision="highest"
        )
    frames = x.shape[1]
    out = -(-frames // stride)
    pad = max((out - 1) * stride + kt - frames, 0)
    x = jnp.pad(x, ((0, 0), (pad // 2, pad - pad // 2), (0, 0), (0, 0), (0, 0)))
    taps = [x[:, i : i + (out - 1) * stride + 1 : stride] for i in range(kt)]
    stacked = jnp.concatenate(taps, axis=-1).reshape(-1, *x.shape[2:4], kt * x.shape[-1])  # (b t) h w (kt ci)
    folded = jnp.moveaxis(kernel, 0, 2).reshape(*kernel.shape[1:3], -1, kernel.shape[-1])
    y = jax.lax.conv_general_dilated(
        stacked, folded, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
    )
    return y.reshape(len(x), out, *y.shape[1:])
