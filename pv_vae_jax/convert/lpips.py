"""Published AlexNet and VGG16 (torchvision) with LPIPS's heads, to parameters of our `LPIPS`."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flax.traverse_util import unflatten_dict

from pv_vae_jax.convert.files import read_tensors
from pv_vae_jax.models.lpips import BACKBONES
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
    params, faults, channels, tap = {}, [], 3, 0
    for layer in BACKBONES[backbone]:
        if layer == "tap":
            short = f"lin{tap}.model.1.weight"
            name = next((n for n in (f"{HEAD_NAMES[backbone]}/{short}", short) if n in heads), None)
            if name is None or heads[name].size != channels:
                faults.append(f"head {short} of shape ({channels},) is missing")
            else:
                params[f"head{tap}"] = np.asarray(heads[name], np.float32).reshape(-1)
                if not np.all(params[f"head{tap}"] >= 0):
                    faults.append(f"head {short} must not be negative")
            tap += 1
        elif len(layer) > 2:
            number, width, kernel, *_ = layer
            shapes = {"weight": (width, channels, kernel, kernel), "bias": (width,)}
            for leaf, shape in shapes.items():
                value = tensors.get(f"features.{number}.{leaf}")
                if value is None or value.shape != shape:
                    found = "missing" if value is None else f"of shape {value.shape}"
                    faults.append(f"features.{number}.{leaf} {shape} is {found}")
                    continue
                value = np.asarray(value, np.float32)
                if not np.isfinite(value).all():
                    faults.append(f"features.{number}.{leaf} is not finite")
                ours = f"features/conv{number}/{'kernel' if leaf == 'weight' else 'bias'}"
                params[ours] = np.transpose(value, (2, 3, 1, 0)) if leaf == "weight" else value
            channels = width
    if faults:
        raise WeightsError(f"expected the weights of LPIPS with {backbone}, got faults:\n  " + "\n  ".join(faults))
    return unflatten_dict(params, sep="/")


def read_lpips(backbone: str, path: str | Path, heads: str | Path) -> Params:
    """`lpips_params` of files: the backbone as `.pth` or `.safetensors`, the heads as those or `.npz`. Runs no code."""
    return lpips_params(backbone, read_tensors(path), read_arrays(heads))


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Arrays of `.npz`, `.npy`, `.pth`, `.pt` or `.safetensors` by name; nothing is unpickled."""
    path = Path(path)
    if path.suffix not in (".npz", ".npy"):
        return read_tensors(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}")
    try:
        loaded = np.load(path, allow_pickle=False)
        return {"array": loaded} if path.suffix == ".npy" else {name: loaded[name] for name in loaded.files}
    except (ValueError, zipfile.BadZipFile, OSError, EOFError) as error:
        raise WeightsError(f"{path} does not hold plain arrays: {error}") from error
