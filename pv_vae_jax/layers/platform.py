"""The platform that layers compute on: they take other kernels on CPUs than on GPUs and TPUs."""

import jax


def platform() -> str:
    """`cpu`, `gpu` or `tpu`: that of the mesh in context, whose devices may be absent, or else of this process."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def on_one_cpu() -> bool:
    """Whether the platform is a CPU, and nothing can be split over several of its devices."""
    return platform() == "cpu" and jax.device_count() == 1
