"""Latents that any program has written, in `.npz` files: the arrays `mean`, and if known `logvar` and `label`."""

import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path

import numpy as np

from pv_vae_jax.evaluation.features import FeatureError
from pv_vae_jax.storage import on_disk

# Types, and the largest size of values: beyond it float64 cannot hold what is computed from them.
KINDS = {"mean": (np.floating, 1e30), "logvar": (np.floating, 500), "label": (np.integer, np.inf)}


def is_latents(path: str | Path) -> bool:
    """Whether `path` is named as a file of latents, or is a folder that holds such files and no model."""
    path = Path(path)
    return path.suffix == ".npz" or any(path.glob("*.npz")) and not (path / "config.json").exists()


def read_latents(path: str | Path) -> dict[str, np.ndarray]:
    """Latents of a `.npz` file, or of all those in a folder, one after the other in the order of their names.

    Returns:
      `mean` `(n, g, h, w, z)`: posterior means, or the latents of an encoder without a posterior; and if the files have
      them, `logvar` of the same shape, the logarithm of the posterior's variance, and `label` `(n,)`, the class of each
      clip. Other arrays are left aside.

    Raises:
      FileNotFoundError: there is no such file, or none in the folder.
      FeatureError: a file cannot be read, an array has another shape or type, or values that are not finite or beyond
        `KINDS`, or files of a folder differ in their arrays or in the shape of a clip's latents.
    """
    path = on_disk(path, "a file of latents")
    parts = [_read(file) for file in (sorted(path.glob("*.npz")) if path.is_dir() else [path])]
    if not parts:
        raise FileNotFoundError(f"no .npz files in {path}")
    kinds = {f"{', '.join(part)} of clips {part['mean'].shape[1:]}" for part in parts}
    if len(kinds) > 1:
        raise FeatureError(f"expected latents of one kind in {path}, got {' and '.join(sorted(kinds))}: separate them")
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def read_arrays(path: str | Path, wanted: Collection[str]) -> tuple[list[str], dict[str, np.ndarray]]:
    """The names of all arrays in a `.npz`, and those arrays that are wanted and there. No pickle is read.

    Raises:
      FeatureError: the file cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return file.files, {name: file[name] for name in wanted if name in file.files}
    except (ValueError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise FeatureError(f"expected an .npz file of arrays, but {path} cannot be read as one: {error}") from error


def _read(path: Path) -> dict[str, np.ndarray]:
    names, found = read_arrays(path, KINDS)
    shape = found["mean"].shape if "mean" in found else ()
    if len(shape) != 5 or 0 in shape:
        got = f"mean {shape}" if shape else ", ".join(names) or "no array"
        raise FeatureError(f"expected an array mean (n, g, h, w, z) in {path}, got {got}: save latents as mean")
    for name, array in found.items():
        wanted, (kind, most) = shape[: 1 if name == "label" else 5], KINDS[name]
        fits = array.shape == wanted and np.issubdtype(array.dtype, kind)
        if not fits or not (np.abs(array) <= np.float64(most)).all():
            got = f"NaN or beyond {most:g}: encode again" if fits else f"{array.shape} of {array.dtype}: save it so"
            raise FeatureError(f"expected {name} {wanted} of finite {kind.__name__} type in {path}, got {got}")
    return found
