"""Published Wan VAE weights to a model folder of ours, and back.

  pv-vae convert Wan2.2_VAE.pth models/wan22
  pv-vae convert --to=diffusers models/wan22 diffusion_pytorch_model.safetensors

Weights come as .safetensors or .pth, in the original or the diffusers layout (seen from the file); a .pth runs no code.
The network is Wan2.2 or Wan2.1 by the latent channels of the file, unless --architecture names it; what differs from it
is set by flags, `--config.encoder_widths=96,192,384,384`. Every tensor that is missing, left over or misshapen is
reported at once, and then nothing is written. Nothing that exists is overwritten.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from pv_vae_jax.convert.files import read_tensors, write_tensors
from pv_vae_jax.convert.wan import (
    LAYOUTS,
    MODULES,
    WAN21_LATENTS,
    WAN22_LATENTS,
    Layout,
    detect_layout,
    from_wan,
    to_wan,
)
from pv_vae_jax.model import Pretrained, load, save
from pv_vae_jax.models.vae import VAE, VAEConfig
from pv_vae_jax.train.config_files import override
from pv_vae_jax.typing import ConfigError, WeightsError

STATISTICS = {"wan22": WAN22_LATENTS, "wan21": WAN21_LATENTS}


def define_flags(values: flags.FlagValues) -> None:
    """Flags of `pv-vae convert`."""
    flags.DEFINE_enum("to", "ours", ("ours", *LAYOUTS), "layout of the target", flag_values=values)
    flags.DEFINE_enum(
        "architecture", None, sorted(STATISTICS), "network of the source; needs --to=ours", flag_values=values
    )


def run(values: flags.FlagValues, positional: Sequence[str], overrides: dict[str, str]) -> None:
    """Convert SOURCE to TARGET."""
    if len(positional) != 2:
        raise ConfigError(f"pv-vae convert takes SOURCE and TARGET, got {' '.join(positional) or 'neither'}")
    source, target = map(Path, positional)
    if target.exists():
        raise ConfigError(f"{target} exists: name another target, or remove it first")
    if values.to == "ours":
        import_weights(source, target, values.architecture, overrides)
        return
    if values.architecture or overrides:
        raise ConfigError(f"with --to={values.to} the network is that of the model folder: no other flags apply")
    export_weights(source, target, values.to)


def import_weights(source: Path, target: Path, architecture: str | None, overrides: dict[str, str]) -> None:
    """Published weights -> model folder."""
    tensors = read_tensors(source)
    layout = detect_layout(tensors)
    architecture = architecture or _architecture(tensors)
    preset: VAEConfig = getattr(VAEConfig, architecture)()
    config: VAEConfig = override(preset, overrides)
    model = Pretrained(VAE(config), from_wan(tensors, config), meta={"source": f"{source.name}, {layout} layout"})
    if config == preset:
        mean, std = STATISTICS[architecture]
        model.meta["latent_statistics"] = {"mean": list(mean), "std": list(std)}
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        save(partial, model)
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"{target}: {config.name} of {len(tensors)} tensors, {_count(tensors)} parameters, from the {layout} layout")


def export_weights(source: Path, target: Path, layout: Layout) -> None:
    """Model folder -> published layout."""
    if target.suffix != ".safetensors":
        raise ConfigError(f"published layouts are written as .safetensors; {target} is named otherwise")
    try:
        model = load(source)
    except ValueError as error:
        raise WeightsError(str(error)) from error
    tensors = to_wan(model.vae_params, model.vae.config, layout)
    write_tensors(target, tensors)
    print(f"{target}: {len(tensors)} tensors, {_count(tensors)} parameters in the {layout} layout")


def _architecture(tensors: dict[str, np.ndarray]) -> str:
    bias = tensors.get(f"{MODULES[detect_layout(tensors)]['encoder/moments']}.bias")
    for name in STATISTICS:
        if bias is not None and bias.shape == (2 * getattr(VAEConfig, name)().latent_channels,):
            return name
    found = "cannot be seen" if bias is None else f"are {bias.size // 2}"
    raise WeightsError(
        f"the latent channels {found}, so it is neither Wan2.2 (48) nor Wan2.1 (16): name the --architecture that it "
        f"resembles, and what differs as --config.latent_channels=... and so on"
    )


def _count(tensors: dict[str, np.ndarray]) -> str:
    return f"{sum(t.size for t in tensors.values()):,}"
