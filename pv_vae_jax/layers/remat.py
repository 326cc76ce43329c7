"""Rematerialisation policies by name: what a backward pass keeps and what it recomputes."""

from typing import Literal

import flax.linen as nn
import jax

Remat = Literal["none", "blocks", "dots", "dots_no_batch"]
# What is saved for the backward pass, besides the input of every block.
POLICIES = {
    "blocks": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
REMATS = ("none", *POLICIES)


def remat(block: type[nn.Module], policy: Remat) -> type[nn.Module]:
    """A block class for `nn.scan` that saves what `policy` says; values and gradients stay the same.

    `none` saves everything; `blocks` nothing inside a block, which runs once more; `dots` the results of all matrix
    products; `dots_no_batch` of those with weights, so not the attention logits, the largest arrays of a transformer.
    """
    if policy == "none":
        return block
    # The scan already keeps the compiler from merging the second run with the first.
    return nn.remat(block, policy=POLICIES[policy], prevent_cse=False)
