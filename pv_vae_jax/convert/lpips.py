"""Published AlexNet and VGG16 (torchvision) with LPIPS's heads, to parameters of our `LPIPS`."""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flax.traverse_util import unflatten_dict

from pv_vae_jax.convert.files import read_tensors
from pv_vae_jax.convert.parameters import channels_first, channels_last, check_tensors, parameter_shapes
from pv_vae_jax.models.lpips import LEAST_SIDE, LPIPS
from pv_vae_jax.storage import on_disk
from pv_vae_jax.typing import Params, WeightsError

HEAD_NAMES = {"alexnet": "alex", "vgg16": "vgg"}


def lpips_params(backbone: str, tensors: Mapping[str, np.ndarray], heads: Mapping[str, np.ndarray]) -> Params:
    """Parameters of `LPIPS(backbone)`.

    Args:
      backbone: `alexnet` or `vgg16`.
      tensors: torchvision's state dict; its classifier is not used.
      heads: `lin{i}.model.1.weight` of shape `(c,)` or `(1, c, 1, 1)`, with or without the backbone's short name as a
        prefix (`alex/lin0...`).

    Raises:
      WeightsError: tensors are missing, misshapen or not finite, or a head is negative; the message names all of them.
    """
    picture, prefix = (1, LEAST_SIDE, LEAST_SIDE, 3), f"{HEAD_NAMES[backbone]}/"
    names, shapes = {}, {}  # path of each of our parameters -> its published name -> its published shape
    for path, shape in parameter_shapes(LPIPS(backbone), picture, picture).items():
        if path.startswith("head"):
            names[path] = f"lin{path.removeprefix('head')}.model.1.weight"
        else:
            _, convolution, leaf = path.split("/")
            names[path] = f"features.{convolution.removeprefix('conv')}.{'weight' if leaf == 'kernel' else leaf}"
        shapes[names[path]] = channels_first(shape)
    found = {name: value for name, value in tensors.items() if name.startswith("features.")}
    found |= {name.removeprefix(prefix): value.reshape(-1) for name, value in heads.items()}
    what = f"these are not the weights of LPIPS with {backbone}"
    lins = {name: value for name, value in found.items() if name.startswith("lin")}
    negative = [f"{name} must not be negative" for name, value in lins.items() if (value < 0).any()]
    check_tensors(what, found, shapes, strict=False, more=negative)
    params = {path: channels_last(np.asarray(found[name], np.float32)) for path, name in names.items()}
    return unflatten_dict(params, sep="/")


def read_lpips(backbone: str, path: str | Path, heads: str | Path) -> Params:
    """`lpips_params` of files: the backbone as `.pth` or `.safetensors`, the heads as those or `.npz`. Runs no code."""
    return lpips_params(backbone, read_tensors(path), read_arrays(heads))


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Arrays of `.npz`, `.npy`, `.pth`, `.pt` or `.safetensors` by name; nothing is unpickled."""
    path = on_disk(path, "a file of weights")
    if path.suffix not in (".npz", ".npy"):
        return read_tensors(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}")
    try:
        loaded = np.load(path, allow_pickle=False)
        return {"array": loaded} if path.suffix == ".npy" else {name: loaded[name] for name in loaded.files}
    except (ValueError, zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
        raise WeightsError(f"{path} does not hold plain arrays: {error}") from error
