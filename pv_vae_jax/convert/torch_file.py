"""Tensors of a PyTorch `.pth`, without PyTorch and without running code.

A `.pth` (PyTorch 1.6 and newer) is a zip archive: `NAME/data.pkl`, a pickle of the dict, and `NAME/data/KEY`, the raw
bytes of each storage. Older ones, such as the published AlexNet, VGG and LPIPS, are a row of pickles followed by the
storages. `pickles` reads both; the names that rebuild a tensor get immutable stand-ins.
"""

import io
import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from pv_vae_jax.convert.pickles import Recipe, UnsafePickleError, load_pickle
from pv_vae_jax.typing import WeightsError

DTYPES = {
    f"torch.{name}Storage": dtype
    for name, dtype in (
        *(("Double", np.float64), ("Float", np.float32), ("Half", np.float16), ("BFloat16", jnp.bfloat16)),
        *(("Long", np.int64), ("Int", np.int32), ("Short", np.int16), ("Char", np.int8)),
        *(("Byte", np.uint8), ("Bool", np.bool_)),
    )
}
OLD_MAGIC = 0x1950A86A20F9469CFC6C


class _Storage(NamedTuple):
    """A run of numbers in the file."""

    kind: str
    key: str
    size: int


class _Tensor(NamedTuple):
    """A view of a storage, in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Dict(dict):
    """Stand-in for OrderedDict; PyTorch sets an attribute `_metadata` on it, which is not read."""


def _not_callable(name: str) -> Callable:
    def call(*_: Any):
        raise UnsafePickleError(f"calls {name}")

    return call


RECIPES: dict[str, Callable] = {
    **{name: _not_callable(name) for name in DTYPES},
    "torch._utils._rebuild_tensor": lambda *args: _Tensor(*args[:4]),
    "torch._utils._rebuild_tensor_v2": lambda *args: _Tensor(*args[:4]),
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "collections.OrderedDict": _Dict,
}


def _storage(pid: tuple) -> _Storage:
    """The storage that a persistent id names."""
    kind, storage, key, _, size = pid
    if kind != "storage" or not isinstance(storage, Recipe) or storage.name not in DTYPES or type(key) is not str:
        raise UnsafePickleError(f"asks for a {kind} of {storage}")
    return _Storage(storage.name, key, size)


def _old_storage(pid: tuple) -> _Storage:
    """The same in the older format, with a sixth field for views, which PyTorch no longer wrote by 2017."""
    if len(pid) != 6 or pid[5] is not None:
        raise UnsafePickleError("asks for a view of a storage")
    return _storage(pid[:5])


def read_torch(path: str | Path) -> dict[str, np.ndarray]:
    """All tensors of a state dict saved by `torch.save`, by name, each in its own dtype (bfloat16 too).

    Raises:
      WeightsError: the file is neither a zip archive nor of PyTorch before 1.6, its pickle asks for anything but
        tensors, an entry is not a tensor, or records do not fit. Nothing of the file has run.
    """
    path = Path(path)
    with path.open("rb") as file:
        try:
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    return _read_archive(path, archive)
            file.seek(0)
            return _read_old(path, file)
        except zipfile.BadZipFile as error:
            raise WeightsError(f"{path} is damaged: {error}; fetch it again") from error
        except UnsafePickleError as error:
            raise WeightsError(f"{path} is not a plain dict of tensors: its pickle {error}. Nothing was run") from error


def _read_archive(path: Path, archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(names) != 1:
        raise WeightsError(f"{path} is not a .pth: expected a zip archive with one data.pkl, got {len(names)}")
    root = names[0].removesuffix("data.pkl")
    packed = [i.filename for i in archive.infolist() if i.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise WeightsError(f"{path} holds compressed records, which PyTorch does not write: {', '.join(packed[:3])}")
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
        raise WeightsError(f"{path} was written on a big-endian machine; save it again as .safetensors")
    tensors = _checked(path, load_pickle(io.BytesIO(archive.read(names[0])), RECIPES, _storage))

    def record(key: str) -> bytes:
        return archive.read(f"{root}data/{key}")

    return {name: _view(path, name, tensor, record) for name, tensor in tensors.items()}


def _read_old(path: Path, file: BinaryIO) -> dict[str, np.ndarray]:
    """The format before PyTorch 1.6.

    Pickles of a magic number, a version, facts about the machine, the dict, and the keys of its storages; then every
    storage as its size and its numbers.
    """
    not_pth = WeightsError(
        f"{path} is not a .pth: neither a zip archive (PyTorch 1.6 and newer) nor the row of pickles of older ones. "
        "Nothing was run. Save it again in PyTorch, torch.save(torch.load(path, weights_only=True), new_path), or look "
        "for a .safetensors of the same weights"
    )
    try:
        magic = load_pickle(file, RECIPES, _old_storage)
    except UnsafePickleError as error:
        raise not_pth from error
    if magic != OLD_MAGIC:
        raise not_pth
    version, machine, tree, keys = (load_pickle(file, RECIPES, _old_storage) for _ in range(4))
    if not isinstance(machine, dict) or not isinstance(keys, list):
        raise not_pth
    if version != 1001 or not machine.get("little_endian", False):
        raise WeightsError(f"{path} has an unknown version or byte order; save it again as .safetensors")
    tensors = _checked(path, tree)
    storages = {t.storage.key: t.storage for t in tensors.values() if isinstance(t.storage, _Storage)}
    records: dict[str, bytes] = {}
    for key in keys:
        size = int.from_bytes(file.read(8), "little", signed=True)
        if type(key) is not str or key not in storages or size != storages[key].size or size < 0:
            raise WeightsError(f"{path}: storage {key} has {size} numbers, unlike its tensors")
        records[key] = file.read(size * np.dtype(DTYPES[storages[key].kind]).itemsize)
    return {name: _view(path, name, tensor, records.__getitem__) for name, tensor in tensors.items()}


def _checked(path: Path, tree: object) -> Mapping[str, _Tensor]:
    """`tree`, if it is a dict of tensors."""
    if not isinstance(tree, dict):
        raise WeightsError(f"{path} holds a {type(tree).__name__}, not a dict of tensors")
    strange = [
        name if isinstance(name, str) else f"one named by a {type(name).__name__}"
        for name, value in tree.items()
        if not isinstance(value, _Tensor) or not isinstance(name, str)
    ]
    if strange:
        shown = ", ".join(strange[:10])
        raise WeightsError(f"{path} has entries that are not tensors: {shown}; save the network's state dict alone")
    return tree


def _view(path: Path, name: str, tensor: _Tensor, record: Callable[[str], bytes]) -> np.ndarray:
    """The numbers of one tensor; every field comes from the file, so each is checked before memory is touched."""
    try:
        (kind, key, size), offset, shape, stride = tensor
        dtype, data = np.dtype(DTYPES[kind]), record(key)
        counts = (size, offset, *shape, *stride)
        if not all(type(n) is int and n >= 0 for n in counts) or len(shape) != len(stride):
            raise ValueError(f"impossible shape {shape} or stride {stride}")
        if len(data) != size * dtype.itemsize:
            raise ValueError(f"storage {key} has {len(data)} bytes for {size} numbers of type {dtype}")
        last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
        if math.prod(shape) > size or (math.prod(shape) and last >= size):
            raise ValueError(f"it reaches beyond its storage of {size} numbers")
        if not math.prod(shape):
            return np.zeros(shape, dtype)
        numbers = np.frombuffer(data, dtype)[offset:]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: tensor {name} is broken: {error}") from error
    view = np.lib.stride_tricks.as_strided(numbers, shape, [s * dtype.itemsize for s in stride], writeable=False)
    return np.ascontiguousarray(view) if shape else view.copy()
