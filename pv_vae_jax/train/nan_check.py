"""The guard against non-finite numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp

from pv_vae_jax.typing import NonFiniteError, Params


def check_finite(stage: str, rows: Iterable[tuple[int, dict[str, float]]]) -> None:
    """Raise `NonFiniteError` with the first step of `rows` that holds a non-finite term, and the term's name.

    The sum is named only if every part of it is finite, since any part makes it non-finite too.
    """
    for step, terms in rows:
        bad = [name for name, value in terms.items() if not math.isfinite(value)]
        if bad:
            name = min(bad, key=lambda n: (n == "gradient_norm", n == "loss"))
            raise NonFiniteError(
                f"stage {stage}, step {step}: {name} is {terms[name]}. The newest checkpoint is from before this step; "
                f"try a lower learning rate, a lower weight of this term, or a smaller clip_norm, with "
                f"another --workdir."
            )


def check_finite_params(stage: str, step: int, params: Params) -> None:
    """Raise `NonFiniteError` with the name of a parameter that is not finite after `step` steps.

    The terms of a step are those of the parameters before it, so its own update shows in the next step's alone: a state
    that is to be saved is looked at itself.
    """
    finite = jax.device_get(_are_finite(params))
    bad = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, ok in jax.tree.leaves_with_path(finite)
        if not ok
    ]
    if bad:
        raise NonFiniteError(
            f"stage {stage}, step {step}: {len(bad)} parameters are not finite, {bad[0]} among them. This state is not "
            f"saved; try a lower learning rate or a smaller clip_norm, with another --workdir."
        )


@jax.jit
def _are_finite(params: Params):
    return jax.tree.map(lambda p: jnp.isfinite(p).all(), params)
