"""C3D (Tran et al., arXiv 1412.0767), fine-tuned on UCF101: the classifier of the video inception score."""

from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from pv_vae_jax.convert.lpips import read_arrays
from pv_vae_jax.convert.parameters import channels_first, channels_last, check_tensors, parameter_shapes
from pv_vae_jax.typing import Array, Params, ShapeError, WeightsError

FRAMES, SIDE, CLASSES = 16, 112, 101

# Layers by name: channels of a 3x3x3 convolution, or the window of a max pool.
LAYERS = (
    *(("conv1a", 64), (1, 2, 2)),
    *(("conv2a", 128), (2, 2, 2)),
    *(("conv3a", 256), ("conv3b", 256), (2, 2, 2)),
    *(("conv4a", 512), ("conv4b", 512), (2, 2, 2)),
    *(("conv5a", 512), ("conv5b", 512), (2, 2, 2)),
)


class C3D(nn.Module):
    """The network; widths are those of the published weights.

    Attributes:
      layers: names and widths of the convolutions, windows of the pools.
      hidden: width of the two dense layers.
      classes: of the last.
    """

    layers: tuple = LAYERS
    hidden: int = 4096
    classes: int = CLASSES

    @nn.compact
    def __call__(self, video: Array) -> Array:
        """Logits `(b, 101)` of `(b, 16, 112, 112, 3)`: BGR on [0, 255], less the mean cube (see `c3d_input`).

        Raises:
          ShapeError: another size; the dense layers fit this one alone.
        """
        if video.shape[1:] != (FRAMES, SIDE, SIDE, 3):
            raise ShapeError(f"C3D takes {FRAMES} frames of {SIDE} x {SIDE}, got {video.shape[1:-1]}")
        x = video
        for layer in self.layers:
            if isinstance(layer[0], str):
                x = nn.relu(nn.Conv(layer[1], (3, 3, 3), padding="SAME", precision="highest", name=layer[0])(x))
            else:
                # Odd sides keep their border (7 -> 4), as the published dense layer of 512 x 4 x 4 inputs wants.
                ceil = [(0, -size % window) for size, window in zip(x.shape[1:4], layer, strict=True)]
                x = nn.max_pool(x, layer, layer, ceil)  # pyright: ignore[reportArgumentType]
        x = jnp.moveaxis(x, -1, 1).reshape(len(x), -1)  # channels first, as the weights were trained
        for name in ("fc6", "fc7"):
            x = nn.relu(nn.Dense(self.hidden, precision="highest", name=name)(x))
        return nn.Dense(self.classes, precision="highest", name="fc8")(x)


def c3d_input(video: Array, mean: Array) -> Array:
    """`(b, t >= 16, h, w, 3)` RGB in [-1, 1] -> what `C3D` takes: the first 16 frames, corner-aligned to 112 x 112.

    Args:
      video: clips.
      mean: `(16, 112, 112, 3)` BGR on [0, 255], or anything that broadcasts to it.

    Raises:
      ShapeError: fewer than 16 frames.
    """
    if video.shape[1] < FRAMES:
        raise ShapeError(f"C3D sees {FRAMES} frames, the clips have {video.shape[1]}")
    x = 128.0 * video[:, :FRAMES, :, :, ::-1]
    for axis in (2, 3):
        x = _corner_aligned(x, axis, SIDE)
    return x + 128.0 - mean


def _corner_aligned(x: Array, axis: int, size: int) -> Array:
    """Linear interpolation in which the outermost pixels of both grids coincide."""
    place = jnp.linspace(0, x.shape[axis] - 1, size)
    low = jnp.clip(jnp.floor(place).astype(int), 0, max(x.shape[axis] - 2, 0))
    shape = [1] * x.ndim
    shape[axis] = size
    weight = (place - low).reshape(shape)
    high = jnp.minimum(low + 1, x.shape[axis] - 1)
    return jnp.take(x, low, axis) * (1 - weight) + jnp.take(x, high, axis) * weight


def c3d_shapes(model: C3D) -> dict[str, tuple[int, ...]]:
    """Path -> shape of the parameters."""
    return parameter_shapes(model, (1, FRAMES, SIDE, SIDE, 3))


def read_c3d(path: str | Path, model: C3D | None = None) -> Params:
    """Parameters of `C3D` from chainer's `.npz` (`conv1a/W`, `fc6/b`, ...).

    Raises:
      FileNotFoundError: no such file.
      WeightsError: not an archive of arrays, or tensors are missing or misshapen; all are named.
    """
    tensors = read_arrays(path)
    shapes = c3d_shapes(model or C3D())
    names = {path: path.replace("kernel", "W").replace("bias", "b") for path in shapes}
    expected = {names[path]: channels_first(shape) for path, shape in shapes.items()}
    check_tensors(f"{path} does not hold the weights of C3D", tensors, expected, strict=False)
    params = {ours: np.ascontiguousarray(channels_last(tensors[name]), np.float32) for ours, name in names.items()}
    return unflatten_dict(params, sep="/")


def read_c3d_mean(path: str | Path) -> np.ndarray:
    """The mean cube of C3D's training clips, `(16, 112, 112, 3)` BGR.

    Takes chainer's `mean2.npz` (`mean`, `(1, 3, 16, h, w)` or `(3, 16, h, w)`, cropped at 8), or an array that is
    `(16, 112, 112, 3)` already, as `.npy` or `.npz`.

    Raises:
      WeightsError: none of these.
    """
    arrays = read_arrays(path)
    mean = arrays.get("mean", next(iter(arrays.values())))
    if mean.ndim == 5 and len(mean) == 1:
        mean = mean[0]
    if mean.ndim == 4 and mean.shape[:2] == (3, FRAMES) and min(mean.shape[2:]) >= 8 + SIDE:
        mean = np.moveaxis(mean[:, :, 8 : 8 + SIDE, 8 : 8 + SIDE], 0, -1)
    if mean.shape != (FRAMES, SIDE, SIDE, 3):
        raise WeightsError(
            f"{path} holds {mean.shape}; C3D's mean is (3, {FRAMES}, 128, 171) or ({FRAMES}, {SIDE}, {SIDE}, 3)"
        )
    return mean.astype(np.float32)
