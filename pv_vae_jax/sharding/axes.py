"""Mesh axis names, and the logical names by which layers speak of activations."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec

from pv_vae_jax.typing import Array

DATA = "data"  # examples of the batch; parameters replicated
FSDP = "fsdp"  # examples of the batch; parameters and optimiser state split
MESH_AXES = (DATA, FSDP)

# Logical activation axis -> the mesh axes that may split it.
LOGICAL = {"batch": (DATA, FSDP)}


def constrain(x: Array, axes: tuple[str, ...]) -> Array:
    """Ask the compiler to keep `x` split by its logical `axes`; without a mesh of ours in context, return it as it is.

    Layers can therefore be used in a foreign codebase, under no mesh or under one with other axis names.
    """
    names = jax.sharding.get_abstract_mesh().axis_names
    spec = [tuple(m for m in LOGICAL.get(axis, ()) if m in names) or None for axis in axes]
    if not any(spec):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def per_example(function: Callable[..., Array]) -> Callable[..., Array]:
    """`function` of arrays `(b, ...)`, run by every device on its own examples.

    For kernels that the compiler cannot split (Pallas): under a mesh of ours it would gather the whole batch for them.
    The batch must then be a multiple of the devices; without such a mesh the function comes back as it is.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in LOGICAL["batch"] if mesh.shape.get(axis, 1) > 1)
    if not axes:
        return function
    split = PartitionSpec(axes)
    return jax.shard_map(function, in_specs=split, out_specs=split, check_vma=False)
