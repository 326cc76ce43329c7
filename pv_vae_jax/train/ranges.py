"""Ranges of settings, declared with their types, and the base class of configs that check them."""

import dataclasses
import functools
import math
import typing
from typing import Annotated, Any

from pv_vae_jax.typing import ConfigError

INT32 = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Range:
    """The smallest and the largest value of a setting, both allowed, and how a message calls them."""

    low: float
    high: float
    name: str


Count = Annotated[int, Range(1, INT32, f"between 1 and {INT32}")]
Seed = Annotated[int, Range(0, INT32, f"between 0 and {INT32}")]
Steps = Annotated[int, Range(0, math.inf, "at least 0")]
NonNegative = Annotated[float, Range(0, math.inf, "at least 0")]
Positive = Annotated[float, Range(math.nextafter(0, 1), math.inf, "above 0")]
Fraction = Annotated[float, Range(0, 1, "in [0, 1]")]
Decay = Annotated[float, Range(0, math.nextafter(1, 0), "in [0, 1)")]  # an average that forgets nothing learns nothing


class Config:
    """Base of frozen dataclasses that refuse a number outside the range of its field, when they are built.

    A message begins with the field's name. `config_files` puts the path before it: `config.video.drop_ratio must be
    in [0, 1], got 2`. A subclass that checks combinations of fields calls this `__post_init__` first.
    """

    def __post_init__(self) -> None:
        for name, ranges in ranges_of(type(self)).items():
            value = getattr(self, name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{name} must be finite, got {value}")
            for allowed in ranges:
                if not allowed.low <= value <= allowed.high:
                    raise ConfigError(f"{name} must be {allowed.name}, got {value}")


@functools.cache
def ranges_of(cls: type) -> dict[str, tuple[Range, ...]]:
    """The range of every field of a config class; empty for a field that has none."""
    hints: dict[str, Any] = typing.get_type_hints(cls, include_extras=True)
    return {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
