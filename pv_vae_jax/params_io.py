"""Parameters on disk: safetensors checked by name, shape and hash, and parameters out of a training checkpoint."""

import contextlib
import hashlib
import json
import sys
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Sharding
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pv_vae_jax.storage import BUCKET_MARK, atomic, file_hash, is_remote, local, write_json
from pv_vae_jax.typing import DTYPES, Params, WeightsError, tensor_faults, unstorable

# One sharding for all parameters, or a function from the tree of their shapes to a tree of shardings.
Placement = Sharding | Callable[[Params], Any]

STATE_MARK = "_CHECKPOINT_METADATA"  # Orbax writes it last
CHECKSUMS = "checksums.json"  # in a state's folder: size and CRC-32 of its files
UNCHECKED = {CHECKSUMS, STATE_MARK, BUCKET_MARK}  # written by Orbax after the files of a state


def weights_hash(params: Params) -> str:
    """First 16 hex digits of the SHA-256 over names, shapes and float32 bytes of all parameters."""
    digest = hashlib.sha256()
    for name, value in sorted(flatten_dict(params, sep="/").items()):
        value = np.asarray(value, np.float32)
        digest.update(f"{name}{value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()[:16]


def check_storable(name: str, params: Params, dtype: str) -> None:
    """Refuse parameters that `dtype` cannot hold; `name` is that of their file, used in messages.

    Raises:
      ValueError: `dtype` is unknown.
      WeightsError: parameters are not finite in `dtype`: the first are named.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be {' or '.join(map(repr, DTYPES))}, got {dtype!r}")
    found = {parameter: unstorable(value, dtype) for parameter, value in flatten_dict(params, sep="/").items()}
    faults = [f"{parameter} is {fault}" for parameter, fault in found.items() if fault]
    if faults:
        advice = "train or load it again" if dtype == "float32" else "save it in float32 or bfloat16"
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise WeightsError(f"{name} cannot be written: {'; '.join(faults[:3])}{more}: {advice}")


def write_params(path: Path, params: Params, dtype: str = "float32") -> str:
    """Write the tensors of a tree as safetensors, atomically; return the file's SHA-256."""
    flat = {k: np.ascontiguousarray(np.asarray(v, dtype)) for k, v in flatten_dict(params, sep="/").items()}
    with atomic(path) as temporary:
        save_file(flat, temporary)
        return file_hash(temporary)


def read_params(
    path: Path,
    expected: Params,
    *,
    strict: bool = True,
    hashes: Mapping[str, str] | None = None,
    record: str = "config.json",
    sharding: Placement | None = None,
) -> Params:
    """Tensors of the safetensors file `path` that the tree of shapes `expected` names, as float32 arrays.

    No other tensor is read, and memory never holds more than these and one of them twice.

    Args:
      path: the file.
      expected: tree of shapes.
      strict: whether tensors that `expected` does not name are an error.
      hashes: SHA-256 by file name; a file that has none is not checked.
      record: name of the file that holds `hashes`, used in messages.
      sharding: where to place the arrays, by default on the default device.

    Raises:
      WeightsError: tensors are missing, left over, misshapen or not finite: all are named; or the file is missing,
        damaged, or not the one whose hash is known.
      TypeError, ValueError: `sharding` does not place these parameters.
    """
    wanted: dict[str, Any] = flatten_dict(expected, sep="/")
    where = flatten_dict(sharding(expected), sep="/") if callable(sharding) else dict.fromkeys(wanted, sharding)
    if unplaced := sorted(wanted.keys() - where.keys()):
        raise ValueError(
            f"expected a sharding for every parameter, got none for {', '.join(unplaced)}: return a full tree"
        )
    if not path.is_file():
        raise WeightsError(f"{path} is missing: copy the model again")
    with local(path) as copy:
        try:
            with safe_open(copy, "numpy") as file:
                shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
        except SafetensorError as error:
            raise WeightsError(f"{path} is damaged: {error}. Copy the file again") from error
        faults = tensor_faults(shapes, _shapes(wanted), strict=strict)
        values = {}
        for name in sorted(shapes.keys() & wanted.keys()):
            with safe_open(copy, "numpy") as file:  # anew each time: what was read of an open file stays in memory
                value = file.get_tensor(name)
            if fault := unstorable(value, "float32"):
                faults.append(f"{name} is {fault}")
            else:
                values[name] = jax.device_put(np.array(value, np.float32), where[name]).block_until_ready()
        if faults:
            raise WeightsError(f"{path} does not fit its config: " + "; ".join(faults))
        if hashes and path.name in hashes and file_hash(copy) != hashes[path.name]:
            raise WeightsError(
                f"{path} is damaged: its SHA-256 is not the one in {record}. Copy the model again; if you changed the "
                f'weights yourself, take "sha256" out of {record}'
            )
    return unflatten_dict(values, sep="/")


def check_placement(sharding: Any) -> None:
    """Raise `TypeError` unless `sharding` is a `Placement` or None."""
    if not (sharding is None or isinstance(sharding, Sharding) or callable(sharding)):
        raise TypeError(
            f"expected sharding to be a jax.sharding.Sharding or a function, got {sharding!r}: pass, for example, "
            "jax.sharding.SingleDeviceSharding(jax.devices()[0])"
        )


def state_mark(folder: Path) -> Path:
    """The file of a training state without which it is not complete."""
    return folder / (BUCKET_MARK if is_remote(folder) else STATE_MARK)


def find_checkpoint(path: Path) -> Path | None:
    """The training checkpoint that `path` means: itself, or the newest in the folder of a stage; None without one."""
    if state_mark(path).exists():
        return path
    return next(reversed(complete_states(path / "checkpoints")), None)


def complete_states(folder: Path) -> list[Path]:
    """The training states `folder/<step>` that were written to their end, in the order of their steps."""
    states = [path for path in folder.glob("*") if path.name.isdigit() and state_mark(path).exists()]
    return sorted(states, key=lambda path: int(path.name))


def write_checksums(folder: Path) -> None:
    """Write `[size, CRC-32]` of every file below `folder` that holds part of a state, by its path in there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in UNCHECKED)
    found = {path.relative_to(folder).as_posix(): [path.stat().st_size, _crc32(path)] for path in files}
    write_json(folder / CHECKSUMS, found)


def find_damage(folder: Path) -> str:
    """A damaged file of a state and its fault; "" if none is damaged, or if the state was saved without checksums."""
    try:
        expected = json.loads((folder / CHECKSUMS).read_text())
        for name, (size, crc) in expected.items():
            path = folder / name
            found = path.stat().st_size if path.is_file() else None
            if found != size:
                return f"{name} is missing" if found is None else f"{name} has {found} bytes of {size}"
            if _crc32(path) != crc:
                return f"the CRC-32 of {name} has changed"
    except FileNotFoundError:
        return ""
    except (ValueError, TypeError, AttributeError) as error:
        return f"{CHECKSUMS} is damaged: {error}"
    return ""


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while part := file.read(1 << 22):
            value = zlib.crc32(part, value)
    return value


def restore_params(folder: Path, weights: str, shapes: Params) -> Params:
    """The parameters of a training checkpoint (a folder `.../checkpoints/<step>`) that `shapes` names, as NumPy arrays.

    Nothing else of it is decoded. Its bytes are compared with `checksums.json` first: TensorStore itself would read
    many a flipped one as another number.

    Args:
      folder: the checkpoint.
      weights: `ema` for the moving average, `params` for what the optimiser updates.
      shapes: tree of shapes.

    Raises:
      WeightsError: tensors are missing, misshapen or not finite: all are named; or the checkpoint is damaged.
    """
    import orbax.checkpoint as ocp

    if fault := find_damage(folder):
        raise WeightsError(f"the training state {folder} is damaged: {fault}. Take another state, or copy it again")
    ignore_abandoned_reads()
    wanted: dict[str, Any] = flatten_dict(shapes, sep="/")
    item = {weights: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.float32), shapes)}
    to_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
    place: Any = (folder / "default").absolute()  # Orbax's own type of paths takes ours
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as reader:
        try:
            stored: dict[str, Any] = flatten_dict(reader.metadata(place).tree[weights], sep="/")
            faults = tensor_faults(_shapes(stored), _shapes(wanted), strict=False)
            args = ocp.args.PyTreeRestore(item=item, partial_restore=True, restore_args=to_numpy)
            tree = {} if faults else reader.restore(place, args=args)[weights]
        except Exception as error:  # Orbax and TensorStore raise many types for damaged files
            raise WeightsError(f"the training state {folder} is damaged: {one_line(error)}") from error
    values: dict[str, Any] = flatten_dict(tree, sep="/")
    faults += [f"{name} is not finite" for name, value in values.items() if not np.isfinite(value).all()]
    if faults:
        raise WeightsError(f"{folder} does not fit: " + "; ".join(faults))
    return tree


def one_line(error: Exception) -> str:
    """The message of an error of Orbax or TensorStore, which may be pages long."""
    return " ".join(str(error).split())[:300]


def _shapes(flat: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in flat.items()}


def ignore_abandoned_reads() -> None:
    """Keep what is left of a failed read silent.

    When one of a checkpoint's arrays cannot be read, Orbax closes its event loop while others are still under way. Each
    of them, often hundreds, would then print "Event loop is closed" after the error that says what to do.
    """
    previous = sys.unraisablehook
    if getattr(previous, "ignores_abandoned_reads", False):
        return

    def hook(unraisable: Any) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            previous(unraisable)

    hook.ignores_abandoned_reads = True
    sys.unraisablehook = hook
