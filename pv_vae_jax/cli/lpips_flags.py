"""Flags that name the files of LPIPS, for the commands that measure it."""

from __future__ import annotations

from pathlib import Path

from absl import flags

from pv_vae_jax.convert.lpips import HEAD_NAMES
from pv_vae_jax.typing import ConfigError


def define_flags(values: flags.FlagValues) -> None:
    """Flags `lpips`, `lpips_weights` and `lpips_heads`."""
    flags.DEFINE_enum("lpips", None, sorted(HEAD_NAMES), "perceptual distance of pairs", flag_values=values)
    flags.DEFINE_string("lpips_weights", None, "torchvision's weights of that network", flag_values=values)
    flags.DEFINE_string("lpips_heads", None, "LPIPS's linear heads, .pth or .npz", flag_values=values)


def lpips_files(values: flags.FlagValues) -> tuple[str, Path, Path] | None:
    """Backbone, weights and heads; None if none is wanted. Raises ConfigError if some are given without the others."""
    if values.lpips and not (values.lpips_weights and values.lpips_heads):
        raise ConfigError("--lpips takes --lpips_weights and --lpips_heads")
    if (values.lpips_weights or values.lpips_heads) and not values.lpips:
        raise ConfigError(
            f"--lpips_weights and --lpips_heads are of --lpips: add it, {' or '.join(sorted(HEAD_NAMES))}"
        )
    return (values.lpips, Path(values.lpips_weights), Path(values.lpips_heads)) if values.lpips else None
