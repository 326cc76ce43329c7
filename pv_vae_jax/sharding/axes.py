"""Mesh axis names, and the logical axis names that layers use for activations."""

from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec

from pv_vae_jax.typing import Array

DATA = "data"  # examples of the batch; parameters are replicated
FSDP = "fsdp"  # examples of the batch; parameters and optimiser state are split
TENSOR = "tensor"  # heads and hidden channels of every layer, with their weights
SPACE = "space"  # width of the picture; neighbours exchange the border of a convolution
CONTEXT = "context"  # height of the picture, and with it the transformers' tokens
MESH_AXES = (DATA, FSDP, TENSOR, SPACE, CONTEXT)

# Logical activation axis -> the mesh axes that split it. Tokens run row by row, so `context` cuts them as it cuts
# rows; `space` cuts finer, so that no device is idle in a stage that has tokens only. Attention wants all tokens of a
# few heads on one device: heads take the token axes over, which the compiler does by all-to-all.
LOGICAL = {
    "batch": (DATA, FSDP),
    "height": (CONTEXT,),
    "width": (SPACE,),
    "tokens": (CONTEXT, SPACE),
    "heads": (TENSOR, CONTEXT, SPACE),
    "clips": (DATA, FSDP, CONTEXT, SPACE),  # examples, where pictures cannot be split
    "hidden": (TENSOR,),
}
VIDEO_AXES = ("batch", "time", "height", "width", "channels")
TOKEN_AXES = ("batch", "time", "tokens", "channels")
HIDDEN_AXES = ("batch", "time", "tokens", "hidden")
HEAD_AXES = ("batch", "time", "whole", "heads", "channels")


def constrain(x: Array, axes: tuple[str, ...]) -> Array:
    """Ask the compiler to keep `x` split by its logical `axes`; without a mesh with our axes in context, return `x`.

    Layers can therefore be used in another codebase, without a mesh or under one with other axis names. The axes must
    be of type Auto: the reshapes of these networks are not defined under Explicit ones (`jax.make_mesh`'s default). A
    mesh axis that does not divide the rest of a dimension is left out, so networks run at any size; whether a stage's
    batch and picture fit its mesh is checked when the stage begins.
    """
    mesh = jax.sharding.get_abstract_mesh().shape
    spec = [
        _dividing(size, [(a, mesh[a]) for a in LOGICAL.get(axis, ()) if mesh.get(a, 1) > 1])
        for size, axis in zip(x.shape, axes, strict=True)
    ]
    if not any(spec):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def gather_weights(parameter: Array) -> Array:
    """Gather a convolution's parameter that `fsdp` split before its use, and sum its gradient before splitting it.

    Call it on the parameter in the compute dtype, which may have half the bytes.

    Left to itself, XLA may gather the activations of the whole batch to compute each device's part of the gradient (the
    paper-size VAE on 64 chips: 41 GiB a step), and it computes wrong numbers for a convolution whose kernel and picture
    are both split (jax 0.10.2; tests hold both). Split by `tensor` alone, a kernel stays as it is, unless it meets a
    split picture.
    """
    mesh = jax.sharding.get_abstract_mesh().shape
    fsdp, tensor = mesh.get(FSDP, 1) > 1, mesh.get(TENSOR, 1) > 1
    picture = max(mesh.get(SPACE, 1), mesh.get(CONTEXT, 1)) > 1
    if (fsdp and not tensor) or (tensor and picture):
        return jax.lax.with_sharding_constraint(parameter, PartitionSpec())
    return parameter


def split(axis: str) -> bool:
    """Whether the mesh in context splits the logical activation axis `axis`."""
    mesh = jax.sharding.get_abstract_mesh().shape
    return any(mesh.get(name, 1) > 1 for name in LOGICAL[axis])


def _dividing(size: int, axes: list[tuple[str, int]]) -> tuple[str, ...] | None:
    chosen = []
    for axis, devices in axes:
        if size % devices == 0:
            chosen.append(axis)
            size //= devices
    return tuple(chosen) or None


def per_example(function: Callable[..., Array]) -> Callable[..., Array]:
    """`function` of arrays `(b, ...)`, run on every device for its own examples.

    For kernels that the compiler cannot split (Pallas), and would gather the full batch for. The batch must be a
    multiple of the devices. Without a mesh with our axes, `function` is returned unchanged.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in LOGICAL["batch"] if mesh.shape.get(axis, 1) > 1)
    if not axes:
        return function
    split = PartitionSpec(axes)
    return jax.shard_map(function, in_specs=split, out_specs=split, check_vma=False)
