"""Checks for non-finite losses and parameters."""

import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp

from pv_vae_jax.sharding.rules import path_name
from pv_vae_jax.typing import NonFiniteError, Params

FOLLOWING = ("loss", "gradient_norm")  # what any other term makes non-finite as well


def check_finite(stage: str, rows: Iterable[tuple[int, dict[str, float]]]) -> None:
    """Check the terms of steps, `(step, terms)`.

    Raises:
      NonFiniteError: a term is not finite. The first such step and its term are named; `loss` and `gradient_norm` only
        if all others are finite, since any of them makes these two non-finite.
    """
    for step, terms in rows:
        if bad := [name for name, value in terms.items() if not math.isfinite(value)]:
            name = min(bad, key=lambda n: FOLLOWING.index(n.split("/")[0]) if n.split("/")[0] in FOLLOWING else -1)
            raise NonFiniteError(
                f"stage {stage}, step {step}: {name} is {terms[name]}. The newest checkpoint is from before this step; "
                f"try a lower learning rate, a lower weight of this term, or a smaller clip_norm, with "
                f"another --workdir."
            )


def check_finite_params(stage: str, step: int, params: Params) -> None:
    """Check the parameters of a state that is to be saved, after `step` steps.

    The terms of a step belong to the parameters before it: only the next step's terms would show a bad update.

    Raises:
      NonFiniteError: a parameter is not finite; one is named.
    """
    finite = jax.device_get(_are_finite(params))
    bad = [path_name(path) for path, ok in jax.tree.leaves_with_path(finite) if not ok]
    if bad:
        raise NonFiniteError(
            f"stage {stage}, step {step}: {len(bad)} parameters are not finite, {bad[0]} among them. This state is not "
            f"saved; try a lower learning rate or a smaller clip_norm, with another --workdir."
        )


@jax.jit
def _are_finite(params: Params):
    return jax.tree.map(lambda p: jnp.isfinite(p).all(), params)
