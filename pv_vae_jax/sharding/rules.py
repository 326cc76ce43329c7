"""Where arrays of the train state and of the batch live on the mesh."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pv_vae_jax.sharding.axes import DATA, FSDP

# Smaller arrays are cheaper to keep everywhere than to gather.
MIN_SHARDED_BYTES = 1 << 16


def fsdp_spec(shape: tuple[int, ...], itemsize: int, devices: int) -> PartitionSpec:
    """Split the largest axis that `devices` divides; small arrays and those that do not divide stay whole."""
    if devices == 1 or int(np.prod(shape)) * itemsize < MIN_SHARDED_BYTES:
        return PartitionSpec()
    fitting = [(n, -i) for i, n in enumerate(shape) if n % devices == 0]
    if not fitting:
        return PartitionSpec()
    axis = -max(fitting)[1]
    return PartitionSpec(*(FSDP if i == axis else None for i in range(len(shape))))


def state_sharding(mesh: Mesh, abstract_state: Any) -> Any:
    """Tree of `NamedSharding` for a train state (parameters, moments, EMA, discriminator) of `ShapeDtypeStruct`s."""
    devices = mesh.shape[FSDP]
    return jax.tree.map(lambda a: NamedSharding(mesh, fsdp_spec(a.shape, a.dtype.itemsize, devices)), abstract_state)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Examples split over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec((DATA, FSDP)))


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's rows of the batch as global arrays; scalars are replicated."""
    split, whole = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())

    def place(value: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(split if np.ndim(value) else whole, np.asarray(value))

    return {name: place(value) for name, value in batch.items()}
