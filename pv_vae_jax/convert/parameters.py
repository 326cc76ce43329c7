"""What readers of published weights share: shapes of our parameters, the order of axes, one error for all faults."""

from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from pv_vae_jax.typing import WeightsError, tensor_faults, unstorable

Shape = tuple[int, ...]
Tensors = Mapping[str, np.ndarray]


def parameter_shapes(network: nn.Module, *inputs: Shape) -> dict[str, Shape]:
    """Path -> shape of the parameters of a network that takes float32 arrays of the shapes `inputs`."""
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in inputs]
    params = jax.eval_shape(lambda *x: network.init(jax.random.key(0), *x), *arrays)["params"]
    flat: Any = flatten_dict(params, sep="/")
    return {path: leaf.shape for path, leaf in flat.items()}


def channels_first(shape: Shape) -> Shape:
    """Shape in PyTorch's order of axes, `(o, i, ...)`, of one of our kernels, `(..., i, o)`; vectors stay."""
    return (shape[-1], shape[-2], *shape[:-2]) if len(shape) > 1 else shape


def channels_last(array: np.ndarray) -> np.ndarray:
    """An array `(o, i, ...)` in our order of axes, `(..., i, o)`; vectors stay."""
    return np.moveaxis(array, (0, 1), (-1, -2)) if array.ndim > 1 else array


def check_tensors(
    what: str, tensors: Tensors, expected: Mapping[str, Shape], *, strict: bool = True, more: Iterable[str] = ()
) -> None:
    """Raise `WeightsError`, which names every fault, unless `tensors` are floats of the `expected` names and shapes.

    Each number must be finite in float32, in which our parameters are kept: a folder with others would not load.

    Args:
      what: beginning of the message.
      tensors: the tensors by name.
      expected: their shapes.
      strict: whether other tensors than those are a fault.
      more: other faults, found by the caller, to be named with these.
    """
    faults = tensor_faults({name: tuple(t.shape) for name, t in tensors.items()}, expected, strict=strict)
    for name in sorted(expected.keys() & tensors.keys()):
        if not jnp.issubdtype(dtype := tensors[name].dtype, jnp.floating):
            faults.append(f"{name} holds {dtype}, expected floats")
        elif fault := unstorable(tensors[name], "float32"):
            faults.append(f"{name} is {fault}")
    if faults := [*faults, *more]:
        raise WeightsError(f"{what}, {len(faults)} faults:\n  " + "\n  ".join(faults))
