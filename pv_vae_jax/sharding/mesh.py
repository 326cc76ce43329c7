"""Device meshes."""

import contextlib
import warnings
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh, create_hybrid_device_mesh
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
    dcn_data: int = 1,
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
) -> Mesh:
    """Mesh with the axes of `sharding.axes`; -1 takes the remaining devices, and spare devices stay unused.

    With `dcn_data` slices the axis `data` has `dcn_data * data` devices, slice after slice. `ordered` has their order.

    Raises:
      ConfigError: the mesh needs more devices than exist, or other slices than there are, or, with several processes,
        leaves devices unused.
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
    fixed = int(np.prod([n for n in shape if n != -1])) * dcn_data
    shape = [max(len(devices) // max(fixed, 1), 1) if n == -1 else n for n in shape]
    count = int(np.prod(shape)) * dcn_data
    named = dict(zip(MESH_AXES, shape, strict=True)) | ({"dcn_data": dcn_data} if dcn_data != 1 else {})
    if min(*shape, dcn_data) < 1 or count > len(devices):
        raise ConfigError(f"mesh {named} needs {count} devices, got {len(devices)}: change --config.mesh")
    if count < len(devices) and len({d.process_index for d in devices}) > 1:
        raise ConfigError(
            f"mesh {named} uses {count} of {len(devices)} devices: with several processes, it must use all"
        )
    slices = len({getattr(d, "slice_index", 0) for d in devices[:count]})
    if slices != dcn_data and (dcn_data > 1 or devices[0].platform == "tpu"):
        raise ConfigError(f"mesh {named} is for {dcn_data} slices, got {slices}: set --config.mesh.dcn_data={slices}")
    order = ordered(devices[:count], shape, dcn_data)
    return Mesh(order, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def ordered(devices: Sequence[jax.Device], shape: Sequence[int], slices: int = 1) -> np.ndarray:  # pyright: ignore[reportInvalidTypeForm]
    """`devices` in the order in which a mesh of `shape`, in each of `slices`, holds them.

    On a TPU's torus every axis of the mesh is made of whole axes of the torus, where that is possible: its devices are
    rings of neighbours then, which they often are not in the order of `jax.devices()` (`data` of 16 x 16 on v5e:16x16,
    `fsdp` of 4 x 4 x 4 on v5p:4x4x4). Where an axis of the torus would have to be split, and on other devices, they
    keep their order, the last axis of the mesh varying fastest: small axes then lie within a host.
    """
    if devices[0].platform == "tpu":
        # It refuses to split an axis, and asserts that the chips fill a cuboid.
        with contextlib.suppress(NotImplementedError, AssertionError):
            if slices == 1:
                return create_device_mesh(shape, devices)
            return create_hybrid_device_mesh(shape, [slices, *[1] * (len(shape) - 1)], devices)
    if slices > 1:
        devices = sorted(devices, key=lambda d: d.slice_index)  # stable: the order within a slice stays
    return np.array(devices).reshape(slices * shape[0], *shape[1:])
