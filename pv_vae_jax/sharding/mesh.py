"""Device meshes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from pv_vae_jax.sharding.axes import MESH_AXES
from pv_vae_jax.typing import ConfigError

RIGHT_ON_GPUS = (0, 12)  # earlier versions of jax have known miscompilations on NVIDIA GPUs, see setup.py


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    space: int = 1,
    context: int = 1,
    *,
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
) -> Mesh:
    """Mesh with the axes of `sharding.axes`; -1 takes the remaining devices, and spare devices stay unused.

    Devices keep their order, the last axis varying fastest: the devices of one process, and of one host, are
    neighbours along `context`, `space` and `tensor`, whose traffic is the heaviest, and share their examples.

    Raises:
      ConfigError: the mesh needs more devices than exist or, with several processes, leaves some unused.
    """
    devices = jax.devices() if devices is None else devices
    if devices[0].platform == "gpu" and jax.__version_info__ < RIGHT_ON_GPUS:
        wanted = ".".join(map(str, RIGHT_ON_GPUS))
        warnings.warn(
            f"jax {jax.__version__} can compute wrong values on GPUs without an error: install Python 3.12 or newer "
            f"and 'jax[cuda13]>={wanted}' (or 'jax[cuda12]>={wanted}')",
            stacklevel=2,
        )
    shape = [data, fsdp, tensor, space, context]
    if shape.count(-1) > 1:
        axes = [axis for axis, n in zip(MESH_AXES, shape, strict=True) if n == -1]
        raise ConfigError(f"only one mesh axis may be -1, not {' and '.join(axes)}: set --config.mesh.{axes[0]}=1")
    fixed = int(np.prod([n for n in shape if n != -1]))
    shape = [max(len(devices) // max(fixed, 1), 1) if n == -1 else n for n in shape]
    count = int(np.prod(shape))
    named = dict(zip(MESH_AXES, shape, strict=True))
    if min(shape) < 1 or count > len(devices):
        raise ConfigError(f"mesh {named} needs {count} devices, got {len(devices)}: change --config.mesh")
    if count < len(devices) and len({d.process_index for d in devices}) > 1:
        raise ConfigError(
            f"mesh {named} uses {count} of {len(devices)} devices: with several processes, it must use all"
        )
    return Mesh(np.array(devices[:count]).reshape(shape), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))
