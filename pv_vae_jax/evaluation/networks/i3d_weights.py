"""Published I3D weights to the parameters of `models.i3d.I3D`.

Two layouts: TensorFlow's names (`Mixed_3b/Branch_1/Conv3d_0a_1x1/conv_3d/w`, of the checkpoint that TF-Hub's FVD module
holds) and those of the PyTorch port that VideoGPT and its descendants load (`Mixed_3b.b1a.conv3d.weight`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flax.traverse_util import unflatten_dict

from pv_vae_jax.convert.files import read_tensors
from pv_vae_jax.evaluation.networks.i3d import CLASSES, MIXED
from pv_vae_jax.typing import Params, WeightsError

TF_PREFIX = "RGB/inception_i3d/"
BRANCHES = {
    "branch0": ("Branch_0/Conv3d_0a_1x1", "b0"),
    "branch1a": ("Branch_1/Conv3d_0a_1x1", "b1a"),
    "branch1b": ("Branch_1/Conv3d_0b_3x3", "b1b"),
    "branch2a": ("Branch_2/Conv3d_0a_1x1", "b2a"),
    "branch2b": ("Branch_2/Conv3d_0b_3x3", "b2b"),
    "branch3": ("Branch_3/Conv3d_0b_1x1", "b3b"),
}
TF_LEAVES = {
    "kernel": "conv_3d/w",
    "beta": "batch_norm/beta",
    "mean": "batch_norm/moving_mean",
    "variance": "batch_norm/moving_variance",
}
TORCH_LEAVES = {"kernel": "conv3d.weight", "beta": "bn.bias", "mean": "bn.running_mean", "variance": "bn.running_var"}


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


def from_tensorflow(tensors: Mapping[str, np.ndarray]) -> Params:
    """Parameters from TensorFlow's names, with or without their common prefix; kernels are `(t, h, w, in, out)`."""
    tensors = {name.removeprefix(TF_PREFIX): value for name, value in tensors.items()}
    shapes = tensorflow_shapes()
    _raise_faults(tensors, shapes)
    params = {}
    for ours, (theirs, _) in units().items():
        for leaf, name in TF_LEAVES.items():
            value = np.asarray(tensors[f"{theirs}/{name}"], np.float32)
            params[f"{ours}/{leaf}"] = value if leaf == "kernel" else value.reshape(-1)
    params["Logits/kernel"] = np.asarray(tensors["Logits/Conv3d_0c_1x1/conv_3d/w"], np.float32)[0, 0, 0]
    params["Logits/bias"] = np.asarray(tensors["Logits/Conv3d_0c_1x1/conv_3d/b"], np.float32)
    return unflatten_dict(params, sep="/")


def from_torch(tensors: Mapping[str, np.ndarray]) -> Params:
    """Parameters from the PyTorch port's names; kernels are `(out, in, t, h, w)`.

    The port's batch norm has a scale, which ours, like the original, has not: it is folded into kernel and mean.
    """
    tensors = {name: v for name, v in tensors.items() if not name.endswith("num_batches_tracked")}
    shapes = {}
    tf_shapes = tensorflow_shapes()
    for theirs, torch_name in units().values():
        for leaf, name in TORCH_LEAVES.items():
            shape = tf_shapes[f"{theirs}/{TF_LEAVES[leaf]}"]
            shapes[f"{torch_name}.{name}"] = (shape[4], shape[3], *shape[:3]) if leaf == "kernel" else shape
        shapes[f"{torch_name}.bn.weight"] = shapes[f"{torch_name}.bn.bias"]
    shapes |= {"logits.conv3d.weight": (CLASSES, 1024, 1, 1, 1), "logits.conv3d.bias": (CLASSES,)}
    _raise_faults(tensors, shapes)
    tensors = {name: np.asarray(value, np.float32) for name, value in tensors.items()}
    params = {}
    for ours, (_, torch_name) in units().items():
        values = {leaf: tensors[f"{torch_name}.{name}"] for leaf, name in TORCH_LEAVES.items()}
        scale = tensors[f"{torch_name}.bn.weight"]
        values["kernel"] = np.moveaxis(values["kernel"], (0, 1), (4, 3)) * scale
        values["mean"] = values["mean"] * scale
        params |= {f"{ours}/{leaf}": value for leaf, value in values.items()}
    params["Logits/kernel"] = tensors["logits.conv3d.weight"][:, :, 0, 0, 0].T
    params["Logits/bias"] = tensors["logits.conv3d.bias"]
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


def tensorflow_shapes() -> dict[str, tuple[int, ...]]:
    """Name -> shape of the 230 tensors of the published checkpoint."""
    widths = {"Conv3d_1a_7x7": (7, 3, 64), "Conv3d_2b_1x1": (1, 64, 64), "Conv3d_2c_3x3": (3, 64, 192)}
    channels = 192
    for block, (a, b1, b2, c1, c2, d) in MIXED.items():
        sizes = {
            "branch0": (1, channels, a),
            "branch1a": (1, channels, b1),
            "branch1b": (3, b1, b2),
            "branch2a": (1, channels, c1),
            "branch2b": (3, c1, c2),
            "branch3": (1, channels, d),
        }
        widths |= {f"{block}/{branch}": size for branch, size in sizes.items()}
        channels = a + b2 + c2 + d
    shapes = {"Logits/Conv3d_0c_1x1/conv_3d/w": (1, 1, 1, 1024, CLASSES), "Logits/Conv3d_0c_1x1/conv_3d/b": (CLASSES,)}
    for ours, (theirs, _) in units().items():
        size, inputs, outputs = widths[ours]
        shapes |= {f"{theirs}/{leaf}": (outputs,) for leaf in TF_LEAVES.values()}
        shapes[f"{theirs}/conv_3d/w"] = (size, size, size, inputs, outputs)
    return shapes


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


def _raise_faults(found: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]) -> None:
    faults = [f"missing {name} {expected[name]}" for name in sorted(expected.keys() - found.keys())]
    faults += [f"left over {name}" for name in sorted(found.keys() - expected.keys())]
    for name in sorted(found.keys() & expected.keys()):
        if tuple(found[name].shape) != expected[name]:
            faults.append(f"{name} has shape {tuple(found[name].shape)}, expected {expected[name]}")
    if faults:
        raise WeightsError(f"these are not the weights of an RGB I3D, {len(faults)} faults:\n  " + "\n  ".join(faults))
