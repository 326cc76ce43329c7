"""Device meshes from counts."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from pv_vae_jax.sharding.axes import MESH_AXES


def make_mesh(data: int = -1, fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Mesh with axes `data, fsdp`; -1 takes the devices that are left, and spare devices stay unused.

    Raises:
      ValueError: more devices asked for than there are.
    """
    devices = jax.devices() if devices is None else devices
    shape = [data, fsdp]
    if shape.count(-1) > 1:
        raise ValueError(f"only one mesh axis may be -1, got {dict(zip(MESH_AXES, shape, strict=True))}")
    fixed = int(np.prod([n for n in shape if n != -1]))
    shape = [max(len(devices) // fixed, 1) if n == -1 else n for n in shape]
    count = int(np.prod(shape))
    if min(shape) < 1 or count > len(devices):
        raise ValueError(
            f"mesh {dict(zip(MESH_AXES, shape, strict=True))} needs {count} devices, there are {len(devices)}"
        )
    return Mesh(np.array(devices[:count]).reshape(shape), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))
