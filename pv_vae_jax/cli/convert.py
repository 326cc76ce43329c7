"""Published Wan VAE weights to a model folder of ours, and back.

  pv-vae convert Wan2.2_VAE.pth models/wan22
  pv-vae convert --to=diffusers models/wan22 wan22-diffusers

Weights are .safetensors or .pth files, a folder of such, or a *.index.json, in the original or the diffusers layout,
which is detected; a .pth runs no code. `--to=diffusers` writes a folder for `AutoencoderKLWan.from_pretrained`, or the
weights alone if TARGET is a .safetensors. A learned pad token goes into a file of its own, pad_token.safetensors.
The network is Wan2.2 or Wan2.1 by the latent channels of the file, or the one that --architecture names; flags set what
differs from it, `--config.encoder_widths=96,192,384,384`. If tensors are missing, left over or misshapen, all of them
are reported and nothing is written. Existing files are never overwritten.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import flags

from pv_vae_jax.convert import wan
from pv_vae_jax.convert.files import TORCH_SUFFIXES, read_tensors, write_tensors
from pv_vae_jax.model import Model, load, save
from pv_vae_jax.models.vae import VAE, VAEConfig
from pv_vae_jax.storage import as_path, write_json
from pv_vae_jax.train.config_files import override
from pv_vae_jax.typing import ConfigError, WeightsError


def define_flags(values: flags.FlagValues) -> None:
    """Flags of `pv-vae convert`."""
    flags.DEFINE_enum("to", "ours", ("ours", *wan.LAYOUTS), "layout of the target", flag_values=values)
    architectures = sorted(wan.LATENT_STATISTICS)
    flags.DEFINE_enum("architecture", None, architectures, "network of the source; needs --to=ours", flag_values=values)


def run(values: flags.FlagValues, positional: Sequence[str], overrides: dict[str, str]) -> None:
    """Convert SOURCE to TARGET."""
    if len(positional) != 2:
        raise ConfigError(f"pv-vae convert takes SOURCE and TARGET, got {' '.join(positional) or 'neither'}")
    source, target = map(as_path, positional, ("SOURCE", "TARGET"))
    if target.exists():
        raise ConfigError(f"{target} exists; name another target, or remove it first")
    if values.to == "ours":
        import_weights(source, target, values.architecture, overrides)
        return
    if values.architecture or overrides:
        raise ConfigError(f"--to={values.to} takes the network from the model folder; give no other flags")
    export_weights(source, target, values.to)


def import_weights(source: Path, target: Path, architecture: str | None, overrides: dict[str, str]) -> None:
    """Published weights -> model folder."""
    tensors = wan.unwrap(read_tensors(source))
    layout = wan.detect_layout(tensors)
    architecture = architecture or wan.detect_architecture(tensors)
    preset: VAEConfig = getattr(VAEConfig, architecture)()
    trained = dataclasses.replace(preset, pad="learnable") if wan.PAD in tensors else preset
    config: VAEConfig = override(trained, overrides)
    model = Model(VAE(config), wan.from_wan(tensors, config), meta={"source": f"{source.name}, {layout} layout"})
    published = wan.LATENT_STATISTICS[architecture] if config == preset else None
    if statistics := _given(source, config.latent_channels, published):
        model.meta["latent_statistics"] = statistics._asdict()
    save(target, model)
    print(f"{target}: {config.name}, {len(tensors)} tensors, {_count(tensors)} parameters, from the {layout} layout")


def export_weights(source: Path, target: Path, layout: wan.Layout) -> None:
    """Model folder -> published layout."""
    alone = target.suffix == ".safetensors"
    if not alone and (layout == "original" or target.suffix in TORCH_SUFFIXES):
        raise ConfigError(
            f"published layouts are written as .safetensors, got {target}; --to=diffusers takes a folder as well"
        )
    weights = target if alone else target / "diffusion_pytorch_model.safetensors"
    pad = weights.with_name("pad_token.safetensors")
    model = load(source)
    config = model.vae.config
    tensors = wan.to_wan(model.vae_params, config, layout)
    if config.pad == "learnable" and pad.exists():
        raise ConfigError(f"{pad} exists, and the pad token goes there; name another folder, or remove it first")
    described = None if alone else wan.diffusers_config(config, *_statistics(model))
    write_tensors(weights, tensors)
    if config.pad == "learnable":
        write_tensors(pad, {wan.PAD: np.asarray(model.vae_params["pad"]["token"], np.float32)})
        print(f"{pad}: the pad token, left out of the weights because the {layout} layout has no place for it")
    if described:
        write_json(target / "config.json", described)
    print(f"{target}: {len(tensors)} tensors, {_count(tensors)} parameters in the {layout} layout")


def _given(source: Path, channels: int, published: wan.LatentStatistics | None) -> wan.LatentStatistics | None:
    """Statistics of latents by a `config.json` of diffusers, None where it says 0 and 1; without one `published`."""
    path = (source if source.is_dir() else source.parent) / "config.json"
    try:
        tree = json.loads(path.read_text())
        both = np.reshape([tree["latents_mean"], tree["latents_std"]], (2, channels)).astype(float).tolist()
    except (FileNotFoundError, KeyError):
        return published
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{path}: expected latents_mean and latents_std of {channels} channels: {error}") from error
    return None if both == [[0] * channels, [1] * channels] else wan.LatentStatistics(*map(tuple, both))


def _statistics(model: Model) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the latents' channels, as far as the model knows them."""
    if model.diffusion is not None:
        return np.asarray(model.diffusion.mean).tolist(), np.asarray(model.diffusion.std).tolist()
    if "latent_statistics" in model.meta:
        return model.meta["latent_statistics"]["mean"], model.meta["latent_statistics"]["std"]
    print("latents_mean and latents_std of config.json are 0 and 1: the model holds no statistics of its latents")
    return [0.0] * model.vae.config.latent_channels, [1.0] * model.vae.config.latent_channels


def _count(tensors: Mapping[str, np.ndarray]) -> str:
    return f"{sum(t.size for t in tensors.values()):,}"
