"""Published AlexNet and VGG16 (torchvision) with LPIPS's heads, and C3D (chainer), to parameters of our networks."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from pv_vae_jax.convert.files import read_tensors
from pv_vae_jax.models.c3d import C3D, FRAMES, SIDE, init_c3d
from pv_vae_jax.models.lpips import BACKBONES
from pv_vae_jax.typing import Params, WeightsError

HEAD_NAMES = {"alexnet": "alex", "vgg16": "vgg"}


def lpips_params(backbone: str, tensors: Mapping[str, np.ndarray], heads: Mapping[str, np.ndarray]) -> Params:
    """Parameters of `LPIPS(backbone)`.

    Args:
      backbone: `alexnet` or `vgg16`.
      tensors: torchvision's state dict; its classifier is not used.
      heads: `lin{i}.model.1.weight`, with the backbone's short name before it (`alex/lin0...`) or without, of shape
        `(c,)` or `(1, c, 1, 1)`.

    Raises:
      WeightsError: tensors are missing, misshapen or not finite, or a head is negative; all are named.
    """
    params, faults, channels, tap = {}, [], 3, 0
    for layer in BACKBONES[backbone]:
        if layer == "tap":
            short = f"lin{tap}.model.1.weight"
            name = next((n for n in (f"{HEAD_NAMES[backbone]}/{short}", short) if n in heads), None)
            if name is None or heads[name].size != channels:
                faults.append(f"head {short} of {channels} numbers is missing")
            else:
                params[f"head{tap}"] = np.asarray(heads[name], np.float32).reshape(-1)
                if not np.all(params[f"head{tap}"] >= 0):
                    faults.append(f"head {short} is not of numbers from 0 on, as the published one is")
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
        raise WeightsError(f"these are not the weights of LPIPS with {backbone}:\n  " + "\n  ".join(faults))
    return unflatten_dict(params, sep="/")


def read_lpips(backbone: str, path: str | Path, heads: str | Path) -> Params:
    """As `lpips_params`, from files: the backbone `.pth` or `.safetensors`, the heads those or `.npz`. Runs no code."""
    return lpips_params(backbone, read_tensors(path), read_arrays(heads))


def read_c3d(path: str | Path, model: C3D | None = None) -> Params:
    """Parameters of `C3D` from chainer's `.npz` (`conv1a/W`, `fc6/b`, ...).

    Raises:
      FileNotFoundError: no such file.
      WeightsError: not an archive of arrays, or tensors are missing or misshapen; all are named.
    """
    tensors = read_arrays(path)
    expected: dict[str, Any] = flatten_dict(init_c3d(model or C3D()), sep="/")
    params, faults = {}, []
    for name, want in expected.items():
        layer, leaf = name.split("/")
        theirs = f"{layer}/{'W' if leaf == 'kernel' else 'b'}"
        value = tensors.get(theirs)
        if value is not None and leaf == "kernel":
            value = value.T if value.ndim == 2 else np.moveaxis(value, (0, 1), (-1, -2))  # (o, i, ..) -> (.., i, o)
        if value is None or value.shape != want.shape:
            faults.append(f"{theirs} is {'missing' if value is None else f'of shape {tensors[theirs].shape}'}")
        else:
            params[name] = np.ascontiguousarray(value, np.float32)
    if faults:
        raise WeightsError(f"{path} does not hold the weights of C3D:\n  " + "\n  ".join(faults))
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
        raise WeightsError(f"{path} is not an archive of plain arrays: {error}") from error
