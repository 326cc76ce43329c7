"""Placement of arrays on devices: axis names, meshes, rules from parameter path to partition."""

from typing import TYPE_CHECKING

from pv_vae_jax._lazy import lazy_imports

if TYPE_CHECKING:  # imported on first use
    from pv_vae_jax.sharding.axes import constrain
    from pv_vae_jax.sharding.mesh import make_mesh
    from pv_vae_jax.sharding.processes import (
        barrier,
        gather_to_host,
        is_primary_process,
        shard_from_host,
        start_processes,
    )
    from pv_vae_jax.sharding.rules import batch_sharding, put_batch, state_sharding

__all__ = [
    "barrier", "batch_sharding", "constrain", "gather_to_host", "is_primary_process", "make_mesh", "put_batch",
    "shard_from_host", "start_processes", "state_sharding",
]  # fmt: skip

__getattr__, __dir__ = lazy_imports(__name__)
