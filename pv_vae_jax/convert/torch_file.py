"""Tensors of a PyTorch `.pth`, without PyTorch and without running code.

A `.pth` (PyTorch 1.6 and newer) is a zip archive: `NAME/data.pkl`, a pickle of the dict, and `NAME/data/KEY`, the raw
bytes of each storage. Older ones, such as the published AlexNet, VGG and LPIPS, are a row of pickles with the storages
behind them. A pickle may name any function and have it called; this reader admits the few names that rebuild a tensor,
and gives an immutable stand-in for each, so nothing the file names is ever imported or called.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from pv_vae_jax.typing import WeightsError

DTYPES = {
    "torch.DoubleStorage": np.float64,
    "torch.FloatStorage": np.float32,
    "torch.HalfStorage": np.float16,
    "torch.BFloat16Storage": jnp.bfloat16,
    "torch.LongStorage": np.int64,
    "torch.IntStorage": np.int32,
    "torch.ShortStorage": np.int16,
    "torch.CharStorage": np.int8,
    "torch.ByteStorage": np.uint8,
    "torch.BoolStorage": np.bool_,
}
ROW_MAGIC = 0x1950A86A20F9469CFC6C
REBUILD_TENSOR = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
REBUILD_PARAMETER = "torch._utils._rebuild_parameter"
ORDERED_DICT = "collections.OrderedDict"
ADMITTED = {*DTYPES, *REBUILD_TENSOR, REBUILD_PARAMETER, ORDERED_DICT}


def read_torch(path: str | Path) -> dict[str, np.ndarray]:
    """All tensors of a state dict saved by `torch.save`, by name, in their own type (bfloat16 too).

    Raises:
      WeightsError: neither a zip archive nor a file of PyTorch before 1.6, a pickle that asks for anything but tensors,
        an entry that is no tensor, or records that do not fit; nothing of the file has run.
    """
    path = Path(path)
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            file.seek(0)
            return _read_row(path, file)
        try:
            with zipfile.ZipFile(file) as archive:
                return _read_archive(path, archive)
        except zipfile.BadZipFile as error:
            raise WeightsError(f"{path} is damaged: {error}; fetch it again") from error


class _Storage(NamedTuple):
    """A run of numbers in the archive."""

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
    """Takes the place of OrderedDict; PyTorch hangs an attribute `_metadata` on it, which is not read."""


class _Global(NamedTuple):
    """Takes the place of an admitted name. A tuple, so that no pickle instruction can alter it."""

    name: str

    def __call__(self, *args):
        if self.name in REBUILD_TENSOR:
            return _Tensor(*args[:4])
        if self.name == REBUILD_PARAMETER:
            return args[0]
        if self.name == ORDERED_DICT:
            return _Dict(*args)
        raise pickle.UnpicklingError(f"calls {self.name}")


class _Unpickler(pickle._Unpickler):
    """In Python: the C one allocates as much memory as any memo index in the file asks for."""

    def find_class(self, module: str, name: str) -> _Global:
        full = f"{module}.{name}"
        if full not in ADMITTED:
            raise pickle.UnpicklingError(f"asks for {full}")
        return _Global(full)

    def persistent_load(self, pid) -> _Storage:
        kind, storage, key, _, size = pid
        if kind != "storage" or storage.name not in DTYPES:
            raise pickle.UnpicklingError(f"asks for a {kind} of {storage}")
        return _Storage(storage.name, key, size)


def _read_archive(path: Path, archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(names) != 1:
        raise WeightsError(f"{path} is a zip archive, but no .pth: it holds {len(names)} records named data.pkl")
    root = names[0].removesuffix("data.pkl")
    packed = [i.filename for i in archive.infolist() if i.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise WeightsError(f"{path} holds compressed records, which PyTorch does not write: {', '.join(packed[:3])}")
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
        raise WeightsError(f"{path} was written on a big-endian machine: save it again as .safetensors")
    try:
        tree = _Unpickler(io.BytesIO(archive.read(names[0]))).load()
    except Exception as error:  # a broken or hostile pickle raises nearly anything
        raise WeightsError(f"{path} is not a plain dict of tensors: its pickle {error}. Nothing was run") from error
    _check_tree(path, tree)
    return {name: _tensor(path, archive, root, name, value) for name, value in tree.items()}


def _check_tree(path: Path, tree: object) -> None:
    if not isinstance(tree, dict):
        raise WeightsError(f"{path} holds a {type(tree).__name__}, not a dict of tensors")
    strange = [
        name if isinstance(name, str) else f"one named by a {type(name).__name__}"
        for name, value in tree.items()
        if not isinstance(value, _Tensor) or not isinstance(name, str)
    ]
    if strange:
        shown = ", ".join(strange[:10])
        raise WeightsError(f"{path} has entries that are no tensors: {shown}; save the network's state dict alone")


class _RowUnpickler(_Unpickler):
    """Storages of the older format have a sixth field, for views of storages, which PyTorch no longer wrote by 2017."""

    def persistent_load(self, pid) -> _Storage:
        if len(pid) != 6 or pid[5] is not None:
            raise pickle.UnpicklingError("asks for a view of a storage")
        return super().persistent_load(pid[:5])


def _read_row(path: Path, file: BinaryIO) -> dict[str, np.ndarray]:
    """The format before PyTorch 1.6.

    Pickles of a magic number, a version, facts about the machine, the dict, and the keys of its storages; then every
    storage as its size and its numbers.
    """
    no_pth = WeightsError(
        f"{path} is no .pth: neither a zip archive (PyTorch 1.6 and newer) nor the row of pickles of older ones. "
        "Nothing was run. Save it again in PyTorch, torch.save(torch.load(path, weights_only=True), new_path), or look "
        "for a .safetensors of the same weights"
    )
    try:
        if _RowUnpickler(file).load() != ROW_MAGIC:
            raise no_pth
    except Exception as error:  # a broken or hostile pickle raises nearly anything
        raise no_pth from error
    try:
        version, machine, tree, keys = (_RowUnpickler(file).load() for _ in range(4))
    except Exception as error:
        raise WeightsError(f"{path} is not a plain dict of tensors: its pickle {error}. Nothing was run") from error
    if version != 1001 or not machine.get("little_endian", False):
        raise WeightsError(f"{path}: its machine or version is not read, save it again as .safetensors")
    _check_tree(path, tree)
    kinds = {t.storage.key: t.storage for t in tree.values() if isinstance(t.storage, _Storage)}
    records = {}
    for key in keys:
        size = int.from_bytes(file.read(8), "little", signed=True)
        if key not in kinds or size != kinds[key].size or size < 0:
            raise WeightsError(f"{path}: storage {key} has {size} numbers, which is not what its tensors say")
        records[key] = file.read(size * np.dtype(DTYPES[kinds[key].kind]).itemsize)
    return {name: _view(path, name, value, records) for name, value in tree.items()}


def _tensor(path: Path, archive: zipfile.ZipFile, root: str, name: str, tensor: _Tensor) -> np.ndarray:
    """One tensor of an archive."""
    try:
        key = tensor.storage.key
        record = archive.read(f"{root}data/{key}")
    except (AttributeError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise WeightsError(f"{path}: tensor {name} is broken: {error}") from error
    return _view(path, name, tensor, {key: record})


def _view(path: Path, name: str, tensor: _Tensor, records: Mapping[str, bytes]) -> np.ndarray:
    """The numbers of one tensor; every field comes from the file, so each is checked before memory is touched."""
    try:
        (kind, key, size), offset, shape, stride = tensor
        dtype, record = np.dtype(DTYPES[kind]), records[key]
        counts = (size, offset, *shape, *stride)
        if not all(type(n) is int and n >= 0 for n in counts) or len(shape) != len(stride):
            raise ValueError(f"impossible shape {shape} or stride {stride}")
        if len(record) != size * dtype.itemsize:
            raise ValueError(f"storage {key} has {len(record)} bytes for {size} numbers of type {dtype}")
        last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
        if math.prod(shape) > size or (math.prod(shape) and last >= size):
            raise ValueError(f"it reaches beyond its storage of {size} numbers")
        if not math.prod(shape):
            return np.zeros(shape, dtype)
        numbers = np.frombuffer(record, dtype)[offset:]
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: tensor {name} is broken: {error}") from error
    view = np.lib.stride_tricks.as_strided(numbers, shape, [s * dtype.itemsize for s in stride], writeable=False)
    return np.ascontiguousarray(view) if shape else view.copy()
