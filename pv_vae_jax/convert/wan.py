"""Published Wan2.1 and Wan2.2 VAE weights, in the original and in the diffusers layout, to and from our parameters.

All three hold the same numbers under different names, with the axes of each array in a different order. One table for
each layout gives the names; the axes follow from the kind of layer.
"""

import functools
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from pv_vae_jax.convert.parameters import channels_last, check_tensors, parameter_shapes
from pv_vae_jax.models.vae import VAE, VAEConfig
from pv_vae_jax.typing import Params, WeightsError

Layout = Literal["original", "diffusers"]
LAYOUTS = ("original", "diffusers")

# Tables of names by layout, ours -> theirs: of what a residual block holds, of modules outside the levels and of the
# residual blocks between encoder and decoder. And what the authors published about the latents.
_TABLES: dict[str, Any] = json.loads(Path(__file__).with_name("wan.json").read_text(encoding="utf-8"))
BLOCK, MODULES, MIDDLE = (_TABLES[name] for name in ("block", "modules", "middle"))

# The token that fills dropped latent frames has no place in the published layouts; beside them it has this name.
PAD = "pad.token"


def unwrap(tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Published tensors without the prefix that a wrapper gave all of them: `module.`, `_orig_mod.`, `vae.`, `model.`.

    Raises:
      WeightsError: only some of the names begin so, or there are several Wan VAEs; the message names the prefixes.
    """
    stems = tuple(f".{MODULES[layout]['encoder/stem']}.weight" for layout in LAYOUTS)
    prefixes = sorted(name[: name.rindex("encoder.")] for name in tensors if name.endswith(stems))
    longest = prefixes[-1] if prefixes else ""
    other = next((name for name in tensors if not name.startswith(longest)), None)
    if other is not None:
        raise WeightsError(
            f"expected one Wan VAE, got tensors whose names begin {' and '.join(map(repr, prefixes))} beside others, "
            f"such as {other}: save the tensors of the VAE alone"
        )
    return {name.removeprefix(longest): tensor for name, tensor in tensors.items()}


def detect_layout(names: Iterable[str]) -> Layout:
    """Layout of a file by the names of its tensors.

    Raises:
      WeightsError: the names belong to neither layout; the message shows some of them.
    """
    for layout in LAYOUTS:
        # Either of two names, so that a file that lacks one of them is still recognised, and its fault reported.
        if {f"{MODULES[layout][f'encoder/{name}']}.weight" for name in ("stem", "moments")} & set(names):
            return layout
    shown = ", ".join(sorted(names)[:5]) or "nothing"
    raise WeightsError(f"expected the tensor names of a Wan VAE, original or diffusers, got {shown}, ...")


def detect_architecture(tensors: Mapping[str, np.ndarray]) -> str:
    """The preset of `VAEConfig`, `wan22` or `wan21`, that has the latent channels of published tensors.

    Raises:
      WeightsError: neither has them.
    """
    bias = tensors.get(f"{MODULES[detect_layout(tensors)]['encoder/moments']}.bias")
    for name, statistics in LATENT_STATISTICS.items():
        if bias is not None and bias.shape == (2 * len(statistics.mean),):
            return name
    found = "cannot be seen" if bias is None else f"are {bias.size // 2}"
    raise WeightsError(
        f"the latent channels {found}, so this is neither Wan2.2 (48) nor Wan2.1 (16); name the --architecture that it "
        "resembles, and the differences as --config.latent_channels=... and so on"
    )


def from_wan(tensors: Mapping[str, np.ndarray], config: VAEConfig) -> Params:
    """Our float32 parameters from published tensors of either layout and any float dtype.

    With `pad="learnable"` they must hold `pad.token`, which the command writes beside what it exports.

    Raises:
      WeightsError: tensors are missing, left over, misshapen, not floats or not finite in float32 (the message names
        all of them), the layout is unknown, or `config` is not a Wan network.
    """
    tensors = unwrap(tensors)
    layout = detect_layout(tensors)
    names, shapes = _names(config, layout), published_shapes(config, layout)
    hint = "published weights have no pad token: convert with pad=gaussian, and let the run that predicts draw one"
    if config.pad == "learnable":
        shapes |= {PAD: (config.latent_channels,)}
    more = [hint] if PAD in shapes and PAD not in tensors else []
    check_tensors(f"the weights do not fit the {layout} layout of {config.name}", tensors, shapes, more=more)
    expected = _expected(config)
    params = {path: _from_published(tensors[names[path]], expected[path]) for path in expected}
    return unflatten_dict(params, sep="/")


def to_wan(params: Params, config: VAEConfig, layout: Layout) -> dict[str, np.ndarray]:
    """Published names and axes for our parameters, float32: the inverse of `from_wan`, but for a pad token.

    That has no published name and is left out: it is `params["pad"]["token"]`, `(z,)`.

    Raises:
      WeightsError: parameters are missing, left over, misshapen or not finite (the message names all of them), or
        `config` is not a Wan network.
    """
    names = _names(config, layout)
    flat: Any = flatten_dict(params, sep="/")
    check_tensors(f"the parameters do not fit {config.name}", flat, _expected(config))
    kept = {path: np.asarray(value, np.float32) for path, value in flat.items() if names[path] != PAD}
    return {names[path]: _to_published(path, value) for path, value in kept.items()}


def diffusers_config(config: VAEConfig, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """The `config.json` from which diffusers builds the `AutoencoderKLWan` that takes `to_wan(..., "diffusers")`.

    Args:
      config: the network.
      mean, std: `(z,)` statistics of its latents, with which Wan's pipelines normalise.

    Raises:
      WeightsError: `config` is not a Wan network, or `AutoencoderKLWan` cannot have its widths.
    """
    _check_config(config)
    both = (config.encoder_widths, config.decoder_widths)
    multiples = [width // both[0][0] for width in both[0]]
    if any(widths != tuple(widths[0] * multiple for multiple in multiples) for widths in both):
        raise WeightsError(
            "AutoencoderKLWan widens encoder and decoder by the same whole multiples of their first widths, got "
            f"encoder_widths={both[0]} and decoder_widths={both[1]}: export with --to=original"
        )
    channels = 3 * config.patch**2
    return {
        "_class_name": "AutoencoderKLWan",
        "base_dim": both[0][0],
        "decoder_base_dim": both[1][0],
        "z_dim": config.latent_channels,
        "dim_mult": multiples,
        "num_res_blocks": config.encoder_blocks,
        "temperal_downsample": [factor == 2 for factor in config.time_factors],  # spelt so there
        "is_residual": config.shortcuts,
        "in_channels": channels,
        "out_channels": channels,
        "patch_size": config.patch if config.patch > 1 else None,
        "scale_factor_temporal": config.time_factor,
        "scale_factor_spatial": config.space_factor,
        "latents_mean": [float(x) for x in mean],
        "latents_std": [float(x) for x in std],
    }


def published_shapes(config: VAEConfig, layout: Layout) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of the network in the given layout, which has no pad token."""
    names = _names(config, layout)
    # An array of one number, broadcast: the axes are moved without memory for the values.
    empty = {path: np.broadcast_to(np.float32(0), shape) for path, shape in _expected(config).items()}
    return {names[path]: _to_published(path, value).shape for path, value in empty.items() if names[path] != PAD}


@functools.cache
def _expected(config: VAEConfig) -> Mapping[str, tuple[int, ...]]:
    """Path -> shape of all of our parameters."""
    return MappingProxyType(parameter_shapes(VAE(config), (1, 1, config.space_factor, config.space_factor, 3)))


def _names(config: VAEConfig, layout: Layout) -> dict[str, str]:
    """Path of each of our parameters, `encoder/level0/block1/conv2/kernel`, -> published name."""
    _check_config(config)
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be {' or '.join(LAYOUTS)}, got {layout!r}")
    modules = _modules(config, layout)
    names = {}
    for path in _expected(config):
        module, leaf = path.rsplit("/", 1)
        names[path] = PAD if module == "pad" else f"{modules[module]}.{'weight' if leaf == 'kernel' else leaf}"
    return names


def _modules(config: VAEConfig, layout: Layout) -> dict[str, str]:
    """Our module -> theirs."""
    modules, blocks = dict(MODULES[layout]), dict(MIDDLE[layout])
    sides = (("encoder", "level", "down", config.encoder_blocks), ("decoder", "level_", "up", config.decoder_blocks))
    for i, (side, level, way, count) in itertools.product(range(len(config.encoder_widths)), sides):
        ours, theirs = f"{side}/{level}{i}", [_in_level(config, layout, side, i, n) for n in range(count + 1)]
        blocks |= {f"{ours}/block{n}": theirs[n] for n in range(count)}
        modules |= {
            f"{ours}/{way}/conv": f"{theirs[-1]}.resample.1",
            f"{ours}/{way}/time_conv": f"{theirs[-1]}.time_conv",
        }
    return modules | {
        f"{ours}/{a}": f"{theirs}.{b}" for ours, theirs in blocks.items() for a, b in BLOCK[layout].items()
    }


def _in_level(config: VAEConfig, layout: Layout, side: str, level: int, n: int) -> str:
    """Name of the nth layer of a level; the resampling counts as the one after the last block.

    Wan2.2 nests the layers of a level, because a shortcut spans them; Wan2.1 lists the layers of all levels in a row,
    but diffusers nests those of both decoders.
    """
    way, count = ("down", config.encoder_blocks) if side == "encoder" else ("up", config.decoder_blocks)
    flat = level * (count + 1) + n
    if layout == "original":
        return f"{side}.{way}samples." + (f"{level}.{way}samples.{n}" if config.shortcuts else str(flat))
    if side == "encoder" and not config.shortcuts:
        return f"encoder.down_blocks.{flat}"
    last = f"{way}sampler" if config.shortcuts else "upsamplers.0"
    return f"{side}.{way}_blocks.{level}." + (f"resnets.{n}" if n < count else last)


def _check_config(config: VAEConfig) -> None:
    """Refuse other networks: theirs are the same kinds of layers, so they would silently give useless weights."""
    if not isinstance(config, VAEConfig):
        raise WeightsError(f"{config.name} is not a Wan network, which would be a CNN, got a {type(config).__name__}")
    wrong = {
        "shortcuts and upsample_halves_channels: one of them, as in Wan2.2 and Wan2.1": config.shortcuts
        == config.upsample_halves_channels,
        "shortcut_pad='zero'": config.shortcuts and config.shortcut_pad != "zero",
        "shortcut_time='interleave'": config.shortcuts and config.shortcut_time != "interleave",
        "space_factors of 2": set(config.space_factors) != {2},
        "mid_attention=True": not config.mid_attention,
        "decoder_blocks = encoder_blocks + 1": config.decoder_blocks != config.encoder_blocks + 1,
    }
    missing = [what for what, bad in wrong.items() if bad]
    if missing:
        raise WeightsError(f"{config.name} is not a Wan network, which would have " + "; ".join(missing))


def _to_published(path: str, x: np.ndarray) -> np.ndarray:
    if path.endswith("gamma"):  # attention works on frames, everything else on clips
        return x.reshape(-1, *(1,) * (2 if "/attention/" in path else 3))
    if x.ndim == 2:  # a dense layer, published as a 1 x 1 convolution
        return x.T[:, :, None, None]
    return x if x.ndim == 1 else np.moveaxis(x, (-1, -2), (0, 1))  # (.., i, o) -> (o, i, ..)


def _from_published(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Inverse of `_to_published`, given the shape of our parameter."""
    x = np.asarray(x).astype(np.float32)
    return np.ascontiguousarray(channels_last(x).reshape(shape))


class LatentStatistics(NamedTuple):
    """Channel statistics `(z,)` of posterior means over a data set."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


# As published with the weights (`latents_mean` and `latents_std` in diffusers).
LATENT_STATISTICS = {
    name: LatentStatistics(tuple(of["mean"]), tuple(of["std"])) for name, of in _TABLES["latents"].items()
}
WAN22_LATENTS, WAN21_LATENTS = LATENT_STATISTICS["wan22"], LATENT_STATISTICS["wan21"]
