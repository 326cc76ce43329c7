"""I3D (Carreira and Zisserman, arXiv 1705.07750), RGB: the network whose logits FVD compares.

As in the TF-Hub graph of FVD: TensorFlow's "SAME" padding, batch norm without scale and with epsilon 1e-3, 400 Kinetics
classes, logits averaged over the time steps that are left. Ports to PyTorch in wide use have epsilon 1e-5, which alone
moves logits by some percent: `epsilon` is there to compare with them.

Published weights come in two layouts: TensorFlow's names (`Mixed_3b/Branch_1/Conv3d_0a_1x1/conv_3d/w`, of the
checkpoint that TF-Hub's FVD module holds) and those of the PyTorch port that VideoGPT and its descendants load
(`Mixed_3b.b1a.conv3d.weight`).
"""

import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from pv_vae_jax.convert.files import read_tensors
from pv_vae_jax.convert.parameters import channels_first, channels_last, check_tensors, parameter_shapes
from pv_vae_jax.layers.platform import platform
from pv_vae_jax.typing import Array, Params, ShapeError, WeightsError

CLASSES = 400
SIDE = 224
LEAST_FRAMES = 9  # fewer leave less than the two steps that the average pool spans

_TABLES: dict[str, dict] = json.loads(Path(__file__).with_name("i3d.json").read_text(encoding="utf-8"))
# Widths of a block: 1x1 | 1x1 -> 3x3x3 | 1x1 -> 3x3x3 | pool -> 1x1.
MIXED = {name: tuple(widths) for name, widths in _TABLES["mixed"].items()}


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
        x = nn.max_pool(x, (1, 3, 3), (1, 2, 2), "SAME")
        x = _Unit(64, (1, 1, 1), 1, self.epsilon, name="Conv3d_2b_1x1")(x)
        x = _Unit(192, (3, 3, 3), 1, self.epsilon, name="Conv3d_2c_3x3")(x)
        x = nn.max_pool(x, (1, 3, 3), (1, 2, 2), "SAME")
        for name, widths in MIXED.items():
            if name == "Mixed_4b":
                x = nn.max_pool(x, (3, 3, 3), (2, 2, 2), "SAME")
            if name == "Mixed_5b":
                x = nn.max_pool(x, (2, 2, 2), (2, 2, 2), "SAME")
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
            unit(d, 1, "branch3")(nn.max_pool(x, (3, 3, 3), (1, 1, 1), "SAME")),
        )
        return jnp.concatenate(branches, axis=-1)


def _conv_same(x: Array, kernel: Array, stride: int) -> Array:
    """TensorFlow's SAME convolution, `(b, t, h, w, ci)` and `(kt, kh, kw, ci, co)`.

    On CPU the taps in time become channels of a 2-D convolution: XLA's direct 3-D one is slower there.
    """
    kt = kernel.shape[0]
    if kernel.shape[:3] == (1, 1, 1):
        return jnp.matmul(x, kernel[0, 0, 0], precision="highest")
    if platform() != "cpu":
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


# Published weights.

TF_PREFIX = "RGB/inception_i3d/"
BRANCHES, TF_LEAVES, TORCH_LEAVES = (_TABLES[name] for name in ("branches", "tensorflow", "torch"))


def read_i3d(path: str | Path) -> Params:
    """Parameters of I3D from a file.

    Args:
      path: the data file of a TensorFlow checkpoint (`...data-00000-of-00001`), or tensors as `.pt`, `.pth` or
        `.safetensors` under the names of either layout. No code of the file is run.

    Raises:
      FileNotFoundError: no such file.
      WeightsError: tensors are missing, left over or misshapen (all are named), or the file is not what it seems.
    """
    path = Path(path)
    if ".data-" in path.name:
        return from_tensorflow(_read_checkpoint_data(path))
    tensors = read_tensors(path)
    return from_torch(tensors) if "Conv3d_1a_7x7.conv3d.weight" in tensors else from_tensorflow(tensors)


WHAT = "these are not the weights of an RGB I3D"


def from_tensorflow(tensors: Mapping[str, np.ndarray]) -> Params:
    """Parameters from TensorFlow's names, with or without their common prefix; kernels are `(t, h, w, in, out)`."""
    tensors = {name.removeprefix(TF_PREFIX): value for name, value in tensors.items()}
    check_tensors(WHAT, tensors, tensorflow_shapes())
    shapes, names = _shapes(), tensorflow_names()
    params = {path: np.asarray(tensors[names[path]], np.float32).reshape(shape) for path, shape in shapes.items()}
    return unflatten_dict(params, sep="/")


def from_torch(tensors: Mapping[str, np.ndarray]) -> Params:
    """Parameters from the PyTorch port's names; kernels are `(out, in, t, h, w)`.

    The port's batch norm has a scale, which ours, like the original, has not: it is folded into kernel and mean.
    """
    names = {"Logits/kernel": "logits.conv3d.weight", "Logits/bias": "logits.conv3d.bias"}
    for ours, (_, theirs) in units().items():
        names |= {f"{ours}/{leaf}": f"{theirs}.{name}" for leaf, name in TORCH_LEAVES.items()}
    shapes = _shapes()
    expected = {name: channels_first(shapes[path]) for path, name in names.items()}
    expected["logits.conv3d.weight"] += (1, 1, 1)
    expected |= {f"{theirs}.bn.weight": expected[f"{theirs}.bn.bias"] for _, theirs in units().values()}
    tensors = {name: v for name, v in tensors.items() if not name.endswith("num_batches_tracked")}
    check_tensors(WHAT, tensors, expected)
    tensors = {name: np.asarray(value, np.float32) for name, value in tensors.items()}
    params = {path: channels_last(tensors[names[path]]).reshape(shape) for path, shape in shapes.items()}
    for ours, (_, theirs) in units().items():
        scale = tensors[f"{theirs}.bn.weight"]
        params |= {f"{ours}/{leaf}": params[f"{ours}/{leaf}"] * scale for leaf in ("kernel", "mean")}
    return unflatten_dict(params, sep="/")


def units() -> dict[str, tuple[str, str]]:
    """Path of every convolution unit of ours -> TensorFlow's and PyTorch's names."""
    units = {name: (name, name) for name in ("Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3")}
    for block in MIXED:
        for branch, (tf_name, torch_name) in BRANCHES.items():
            if (block, branch) == ("Mixed_5b", "branch2b"):
                tf_name = "Branch_2/Conv3d_0a_3x3"  # named so in the published file
            units[f"{block}/{branch}"] = (f"{block}/{tf_name}", f"{block}.{torch_name}")
    return units


@functools.cache
def _shapes() -> Mapping[str, tuple[int, ...]]:
    """Path -> shape of our parameters."""
    return MappingProxyType(parameter_shapes(I3D(), (1, LEAST_FRAMES, SIDE, SIDE, 3)))


def tensorflow_names() -> dict[str, str]:
    """Path of each of our parameters -> its name in the published checkpoint."""
    logits = "Logits/Conv3d_0c_1x1/conv_3d"
    names = {"Logits/kernel": f"{logits}/w", "Logits/bias": f"{logits}/b"}
    for ours, (theirs, _) in units().items():
        names |= {f"{ours}/{leaf}": f"{theirs}/{name}" for leaf, name in TF_LEAVES.items()}
    return names


def tensorflow_shapes() -> dict[str, tuple[int, ...]]:
    """Name -> shape of the 230 tensors of the published checkpoint."""
    names = tensorflow_names()
    shapes = {names[path]: shape for path, shape in _shapes().items()}
    logits = names["Logits/kernel"]  # there a convolution
    return shapes | {logits: (1, 1, 1, *shapes[logits])}


def _read_checkpoint_data(path: Path) -> dict[str, np.ndarray]:
    """Tensors of the one-shard data file: little-endian float32, one after the other in the order of their names."""
    shapes = dict(sorted(tensorflow_shapes().items()))
    expected = 4 * sum(math.prod(shape) for shape in shapes.values())
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}")
    if path.stat().st_size != expected:
        raise WeightsError(f"{path} has {path.stat().st_size} bytes, the data file of an RGB I3D has {expected}")
    numbers, tensors, start = np.fromfile(path, "<f4"), {}, 0
    for name, shape in shapes.items():
        tensors[name] = numbers[start : start + math.prod(shape)].reshape(shape)
        start += math.prod(shape)
    return tensors
