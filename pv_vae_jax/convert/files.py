"""Weights files: reading takes tensors only, writing is atomic."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from pv_vae_jax.convert.torch_file import read_torch
from pv_vae_jax.storage import as_path, atomic, local
from pv_vae_jax.typing import WeightsError

TORCH_SUFFIXES = (".pth", ".pt", ".bin")


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Tensors by name, each in its own dtype.

    Args:
      path: a `.safetensors`, `.pth`, `.pt` or `.bin` file; a `*.index.json` that says which files hold them; or a
        folder with one of that kind, or with such files alone.

    Raises:
      FileNotFoundError: the file, or one that an index names, does not exist.
      WeightsError: the suffix is another, the file is not what its suffix says, an index is damaged, two files of a
        folder hold a tensor of the same name, or a folder has no weights.
    """
    path = as_path(path)
    if path.is_dir() or path.name.endswith(".index.json"):
        return _read_parts(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {path}")
    if path.suffix in TORCH_SUFFIXES:
        with local(path) as file:
            return read_torch(file)
    if path.suffix != ".safetensors":
        raise WeightsError(f"expected weights as .safetensors, .pth, .pt or .bin, got {path}")
    try:
        with local(path) as file:
            return load_file(file)
    except SafetensorError as error:
        raise WeightsError(f"{path} is not a safetensors file: {error}") from error
    except (AttributeError, KeyError, TypeError) as error:  # its NumPy reader knows no 8- and 4-bit floats
        raise WeightsError(f"{path} holds a dtype that NumPy does not support: {error}; save it as float32") from error


def _read_parts(path: Path) -> dict[str, np.ndarray]:
    """Tensors of a folder, or of the files that a `*.index.json` names."""
    folder = path if path.is_dir() else path.parent
    if index := next(iter(sorted(path.glob("*.index.json"))), None) if path.is_dir() else path:
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            if strange := [name for name in names if Path(name).name != name]:
                raise ValueError(f"{strange[0]!r} is no file beside it")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WeightsError(f"{index} does not say which files hold what ({error}): fetch it again") from error
    else:
        found = sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))
        names = [name for name in found if name.endswith(".safetensors")]
        names = names or [name for name in found if name.endswith(TORCH_SUFFIXES)]
    tensors: dict[str, np.ndarray] = {}
    for name in names:
        part = read_tensors(folder / name)
        if twice := sorted(tensors.keys() & part.keys()):
            raise WeightsError(f"{folder / name} holds {twice[0]} again, as another file there does: name one of them")
        tensors |= part
    if not tensors:
        raise WeightsError(f"{path} holds no weights (.safetensors, .pth, .pt or .bin): name the folder that does")
    return tensors


def write_tensors(path: str | Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a `.safetensors` file atomically."""
    path = as_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        # PyTorch's readers of this format ask for the metadata.
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, temporary, {"format": "pt"})
