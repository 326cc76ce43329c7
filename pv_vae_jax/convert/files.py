"""Weights files: what is read is tensors only, what is written is whole or not there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from pv_vae_jax.convert.torch_file import read_torch
from pv_vae_jax.typing import WeightsError


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Tensors by name of a `.safetensors`, `.pth`, `.pt` or `.bin` file, each in its own type.

    Raises:
      FileNotFoundError: no such file.
      WeightsError: another suffix, or a file that is not what its suffix says.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}")
    if path.suffix in (".pth", ".pt", ".bin"):
        return read_torch(path)
    if path.suffix != ".safetensors":
        raise WeightsError(f"{path}: weights come as .safetensors, .pth, .pt or .bin")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise WeightsError(f"{path} is not a safetensors file: {error}") from error
    except (AttributeError, KeyError, TypeError) as error:  # its NumPy reader knows no 8- and 4-bit floats
        raise WeightsError(
            f"{path} holds tensors of a type that NumPy has not: {error}; save them as float32"
        ) from error


def write_tensors(path: str | Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a `.safetensors` file, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        # The metadata is what the torch readers of this format ask for.
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, temporary, {"format": "pt"})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
