"""Weights files: reading takes tensors only, writing is atomic."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from pv_vae_jax.convert.torch_file import read_torch
from pv_vae_jax.storage import atomic
from pv_vae_jax.typing import WeightsError


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Tensors by name of a `.safetensors`, `.pth`, `.pt` or `.bin` file, each in its own dtype.

    Raises:
      FileNotFoundError: the file does not exist.
      WeightsError: the suffix is another, or the file is not what its suffix says.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}")
    if path.suffix in (".pth", ".pt", ".bin"):
        return read_torch(path)
    if path.suffix != ".safetensors":
        raise WeightsError(f"expected weights as .safetensors, .pth, .pt or .bin, got {path}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise WeightsError(f"{path} is not a safetensors file: {error}") from error
    except (AttributeError, KeyError, TypeError) as error:  # its NumPy reader knows no 8- and 4-bit floats
        raise WeightsError(f"{path} holds a dtype that NumPy does not support: {error}; save it as float32") from error


def write_tensors(path: str | Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a `.safetensors` file atomically."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        # PyTorch's readers of this format ask for the metadata.
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, temporary, {"format": "pt"})
