"""The published weights of C3D, from chainer's `.npz`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from pv_vae_jax.convert.lpips import read_arrays
from pv_vae_jax.evaluation.networks.c3d import C3D, FRAMES, SIDE, init_c3d
from pv_vae_jax.typing import Params, WeightsError


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
