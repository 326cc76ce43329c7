"""A state dict of every kind of tensor, as `torch.save` writes it: makes `tests/data/tensors.pth`.

    python -m tests.torch_fixture

needs PyTorch; the test that reads the file does not.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import jax.numpy as jnp
import numpy as np

PATH = Path(__file__).parent / "data" / "tensors.pth"
RAMP = np.arange(6, dtype=np.float32).reshape(2, 3)
# Values that every type holds exactly.
EXPECTED = {
    "float32": RAMP - 2.5,
    "float16": (RAMP / 4).astype(np.float16),
    "bfloat16": (RAMP * 8).astype(jnp.bfloat16),
    "float64": RAMP.astype(np.float64) / 3,
    "int64": RAMP.astype(np.int64),
    "bool": RAMP > 2,
    "transposed": (RAMP - 2.5).T,
    "slice": (RAMP - 2.5)[1:, 1:],
    "scalar": np.float32(7),
    "empty": np.zeros((0, 3), np.float32),
    "parameter": RAMP,
}


def state_dict() -> OrderedDict:
    """The tensors of `EXPECTED`; `transposed` and `slice` are views of `float32`."""
    import torch

    base = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    shifted = base - 2.5
    tensors = OrderedDict(
        float32=shifted,
        float16=(base / 4).half(),
        bfloat16=(base * 8).bfloat16(),
        float64=base.double() / 3,
        int64=base.long(),
        bool=base > 2,
        transposed=shifted.T,
        slice=shifted[1:, 1:],
        scalar=torch.tensor(7.0),
        empty=torch.zeros(0, 3),
        parameter=torch.nn.Parameter(base.clone()),
    )
    tensors._metadata = OrderedDict({"": {"version": 1}})  # as `Module.state_dict()` has it
    return tensors


if __name__ == "__main__":
    import torch

    torch.save(state_dict(), PATH)
    print(PATH, PATH.stat().st_size)
