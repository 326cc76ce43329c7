"""What error messages share: phrases, and the error of a wrong setting (here, as it must not need jax)."""

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """An experiment that cannot run as written; the message says what to change."""


def counted(number: int, thing: str) -> str:
    """`1 clip`, `1,234 clips`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def did_you_mean(name: str, known: Iterable[str], else_list: bool = True) -> str:
    """`did you mean 'encoder'?` for the nearest of `known`; without one `expected one of a, b, c`, or nothing."""
    known = list(known)
    if near := difflib.get_close_matches(name, known, 1):
        return f"did you mean {near[0]!r}?"
    return f"expected one of {', '.join(known) or 'nothing'}" if else_list else ""
