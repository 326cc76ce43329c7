"""How the arrays of the train state and of the batch are sharded over the mesh.

One ordered table maps parameter names to preferred splits. It covers the whole train state, because the moments of an
optimiser, the moving average and the discriminator carry the names of the parameters they belong to.
"""

import dataclasses
import math
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pv_vae_jax.sharding.axes import CONTEXT, DATA, FSDP, LOGICAL, SPACE, TENSOR
from pv_vae_jax.typing import ConfigError

# Pattern searched in `params/encoder/level0/block0/conv1/kernel` -> mesh axes of the *last* dimensions. The first
# matching row counts. `fsdp` is a preference: if it does not divide that dimension, the largest divisible one is split;
# `tensor` is then left out. Parameters without a row are split by `fsdp` along their largest dimension.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    # A pair of layers: each device computes its own hidden channels in the first, and the second sums over them.
    (r"/(conv1|mlp1)/kernel$", PartitionSpec(FSDP, TENSOR)),
    (r"/(conv2|mlp2)/kernel$", PartitionSpec(TENSOR, FSDP)),
    (r"/(conv1|mlp1)/bias$", PartitionSpec(TENSOR)),
    (r"/norm2/gamma$", PartitionSpec(TENSOR)),
    # Heads: `qkv` holds queries, keys and values side by side, so its columns cannot be split by head.
    (r"/proj/kernel$", PartitionSpec(TENSOR, FSDP)),
    (r"/(qkv|modulation|final_modulation)/kernel$", PartitionSpec(FSDP, TENSOR)),
)
REPLICATED_AT_MOST = 1 << 14  # values of an array that is cheaper to replicate than to gather ...
REPLICATED_BUDGET = 0.01  # ... as long as all such arrays together hold at most this share of a state
UNSHARDED_LIMIT = 0.02  # share of the parameters' bytes that a run with fsdp may replicate


def partition(path: str, shape: tuple[int, ...], sizes: dict[str, int]) -> PartitionSpec:
    """Split of an array by the first rule that names its `path`; `sizes` holds the devices of each mesh axis."""
    wish = next((spec for pattern, spec in RULES if re.search(pattern, path)), None)
    split: list[str | None] = [None] * len(shape)
    for back, axis in enumerate(reversed(wish or ()), 1):
        if back <= len(shape) and axis and sizes[axis] > 1 and shape[-back] % sizes[axis] == 0:
            split[-back] = axis
    if (wish is None or FSDP in wish) and FSDP not in split and sizes[FSDP] > 1:
        free = [(n, -i) for i, n in enumerate(shape) if split[i] is None and n % sizes[FSDP] == 0]
        if free:
            split[-max(free)[1]] = FSDP
    return PartitionSpec(*split) if any(split) else PartitionSpec()


def state_sharding(mesh: Mesh, abstract_state: Any) -> Any:
    """Tree of `NamedSharding` for a train state (parameters, moments, EMA, discriminator) of `ShapeDtypeStruct`s."""
    sizes, limit = dict(mesh.shape), _replicated_limit(abstract_state)

    def place(path: tuple, leaf: Any) -> NamedSharding:
        small = math.prod(leaf.shape) <= limit
        return NamedSharding(mesh, PartitionSpec() if small else partition(path_name(path), leaf.shape, sizes))

    return jax.tree.map_with_path(place, abstract_state)


def _replicated_limit(state: Any) -> int:
    """Arrays of at most so many values are replicated."""
    sizes = np.sort([math.prod(leaf.shape) for leaf in jax.tree.leaves(state)])
    totals = np.cumsum(sizes)[np.searchsorted(sizes, sizes, side="right") - 1]  # values of all arrays up to this size
    fitting = sizes[(totals <= REPLICATED_BUDGET * sizes.sum()) & (sizes <= REPLICATED_AT_MOST)]
    return max(1, *fitting, 0)


def path_name(path: tuple) -> str:
    """`params/encoder/stem/kernel` of a key path; fields and indices of optimiser states count as names."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


@dataclasses.dataclass(frozen=True)
class ArraySharding:
    """How one array is sharded.

    Attributes:
      path: name of the array.
      shape, dtype: shape and dtype of the global array.
      spec: mesh axis of each dimension.
      device_bytes: bytes on one device.
    """

    path: str
    shape: tuple[int, ...]
    dtype: Any
    spec: PartitionSpec
    device_bytes: int

    @property
    def bytes(self) -> int:
        """Bytes of the global array."""
        return math.prod(self.shape) * self.dtype.itemsize


def array_shardings(state: Any, sharding: Any) -> list[ArraySharding]:
    """The sharding of every array of `state`, in the order of the tree."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return [
        ArraySharding(path_name(path), a.shape, a.dtype, s.spec, math.prod(s.shard_shape(a.shape)) * a.dtype.itemsize)
        for (path, a), s in zip(leaves, jax.tree.leaves(sharding), strict=True)
    ]


def check_split(mesh: Mesh, params: Any, sharding: Any) -> None:
    """Refuse a run with `fsdp` that would replicate too much of the parameters.

    Raises:
      ConfigError: more than `UNSHARDED_LIMIT` of their bytes would be replicated; the largest arrays are named.
    """
    if mesh.shape[FSDP] == 1:
        return
    rows = array_shardings(params, sharding)
    replicated = sorted((r for r in rows if FSDP not in r.spec), key=lambda r: -r.bytes)
    share = sum(r.bytes for r in replicated) / sum(r.bytes for r in rows)
    if share > UNSHARDED_LIMIT:
        names = ", ".join(f"{r.path} {r.shape}" for r in replicated[:5]) + (", ..." if len(replicated) > 5 else "")
        raise ConfigError(
            f"fsdp={mesh.shape[FSDP]} leaves {share:.1%} of the parameters' bytes replicated on every device, more "
            f"than {UNSHARDED_LIMIT:.0%}: {names}. Use an fsdp that divides their dimensions, or fsdp=1"
        )


def batch_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Split of one entry of a batch: its examples, and height and width if its shape is `(b, t, H, W, c)`."""
    spec: list = [LOGICAL["batch"]] if shape else []
    if len(shape) == 5:
        sides = ((2, CONTEXT), (3, SPACE))
        spec += [None, *(axis if shape[i] % mesh.shape[axis] == 0 else None for i, axis in sides), None]
    return NamedSharding(mesh, PartitionSpec(*spec))


def host_share(mesh: Mesh, process: int | None = None) -> tuple[tuple[int, ...], int]:
    """`(parts, count)`: of `count` equal, contiguous parts of every global batch, a process reads `parts`.

    They follow from the sharding, whatever the order of the devices: on a torus the rows of a host need not be
    neighbours. Processes that hold other pixels of the same examples (tensor, space, context) read the same parts.

    Args:
      mesh: the mesh.
      process: index of the process, by default this one.
    """
    process = jax.process_index() if process is None else process
    shape = (mesh.shape[DATA] * mesh.shape[FSDP],)
    where = batch_sharding(mesh, shape).devices_indices_map(shape)
    rows = {index[0].indices(shape[0])[0] for device, index in where.items() if device.process_index == process}
    return tuple(sorted(rows)), shape[0]


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Global arrays from this process's parts of the batch (its `host_share`); scalars are replicated."""
    parts, count = host_share(mesh)

    def place(value: np.ndarray) -> jax.Array:
        value = np.asarray(value)
        size = len(value) // len(parts) if value.ndim else 0  # rows of a part
        shape: Any = (size * count, *value.shape[1:]) if value.ndim else ()

        def shard(index: Any) -> np.ndarray:
            if not index:
                return value
            first, last, _ = index[0].indices(shape[0])
            start = parts.index(first // size) * size
            return value[(slice(start, start + last - first), *index[1:])]

        return jax.make_array_from_callback(shape, batch_sharding(mesh, shape), shard)

    return {name: place(value) for name, value in batch.items()}
