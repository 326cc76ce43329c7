"""The guard against non-finite numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable


class NonFiniteError(RuntimeError):
    """Training stopped: a term of the loss is NaN or infinite."""


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
