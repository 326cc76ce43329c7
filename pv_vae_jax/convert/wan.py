"""Published Wan2.1 and Wan2.2 VAE weights, in the original and in the diffusers layout, to and from our parameters.

All three hold the same numbers under different names, with the axes of each array in a different order. One table for
each layout gives the names; the axes follow from the kind of layer.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from pv_vae_jax.convert.parameters import channels_last, check_tensors, parameter_shapes
from pv_vae_jax.models.vae import VAE, VAEConfig
from pv_vae_jax.typing import Params, WeightsError

Layout = Literal["original", "diffusers"]
LAYOUTS = ("original", "diffusers")

# Our names -> theirs, within a residual block.
BLOCK = {
    "original": {
        "norm1": "residual.0",
        "conv1": "residual.2",
        "norm2": "residual.3",
        "conv2": "residual.6",
        "shortcut": "shortcut",
    },
    "diffusers": {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {"shortcut": "conv_shortcut"},
}
# Our names -> theirs, outside the levels; `middle/block0` and the like are prefixes of residual blocks.
MODULES = {
    "original": {
        "encoder/stem": "encoder.conv1",
        "encoder/norm": "encoder.head.0",
        "encoder/head": "encoder.head.2",
        "encoder/moments": "conv1",
        "decoder/latents": "conv2",
        "decoder/stem": "decoder.conv1",
        "decoder/norm": "decoder.head.0",
        "decoder/head": "decoder.head.2",
    },
    "diffusers": {
        "encoder/stem": "encoder.conv_in",
        "encoder/norm": "encoder.norm_out",
        "encoder/head": "encoder.conv_out",
        "encoder/moments": "quant_conv",
        "decoder/latents": "post_quant_conv",
        "decoder/stem": "decoder.conv_in",
        "decoder/norm": "decoder.norm_out",
        "decoder/head": "decoder.conv_out",
    },
}
MIDDLE = {
    "original": {"block0": "middle.0", "attention": "middle.1", "block1": "middle.2"},
    "diffusers": {
        "block0": "mid_block.resnets.0",
        "attention": "mid_block.attentions.0",
        "block1": "mid_block.resnets.1",
    },
}


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
    flat = flatten_dict(params, sep="/")
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
    modules = dict(MODULES[layout])

    def block(ours: str, theirs: str) -> None:
        modules.update({f"{ours}/{a}": f"{theirs}.{b}" for a, b in BLOCK[layout].items()})

    def resample(ours: str, theirs: str) -> None:
        modules.update({f"{ours}/conv": f"{theirs}.resample.1", f"{ours}/time_conv": f"{theirs}.time_conv"})

    for side in ("encoder", "decoder"):
        middle = {ours: f"{side}.{theirs}" for ours, theirs in MIDDLE[layout].items()}
        block(f"{side}/middle/block0", middle["block0"])
        block(f"{side}/middle/block1", middle["block1"])
        for name in ("norm", "to_qkv", "proj"):
            modules[f"{side}/middle/attention/{name}"] = f"{middle['attention']}.{name}"
    for i in range(len(config.encoder_widths)):
        for n in range(config.encoder_blocks):
            block(f"encoder/level{i}/block{n}", _in_encoder(config, layout, i, n))
        resample(f"encoder/level{i}/down", _in_encoder(config, layout, i, config.encoder_blocks))
        for n in range(config.decoder_blocks):
            block(f"decoder/level_{i}/block{n}", _in_decoder(config, layout, i, n))
        resample(f"decoder/level_{i}/up", _in_decoder(config, layout, i, config.decoder_blocks))
    return modules


def _in_encoder(config: VAEConfig, layout: Layout, level: int, n: int) -> str:
    """Name of the nth layer of a level; the resampling counts as the one after the last block.

    Wan2.2 nests the layers of a level, because a shortcut spans them; Wan2.1 lists the layers of all levels in a row.
    """
    flat = level * (config.encoder_blocks + 1) + n
    if layout == "original":
        return f"encoder.downsamples.{level}.downsamples.{n}" if config.shortcuts else f"encoder.downsamples.{flat}"
    if not config.shortcuts:
        return f"encoder.down_blocks.{flat}"
    return f"encoder.down_blocks.{level}." + (f"resnets.{n}" if n < config.encoder_blocks else "downsampler")


def _in_decoder(config: VAEConfig, layout: Layout, level: int, n: int) -> str:
    """The same for the decoder, which diffusers nests in both networks."""
    flat = level * (config.decoder_blocks + 1) + n
    if layout == "original":
        return f"decoder.upsamples.{level}.upsamples.{n}" if config.shortcuts else f"decoder.upsamples.{flat}"
    up = "upsampler" if config.shortcuts else "upsamplers.0"
    return f"decoder.up_blocks.{level}." + (f"resnets.{n}" if n < config.decoder_blocks else up)


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
    return np.ascontiguousarray((channels_last(x) if len(shape) > 1 else x).reshape(shape))


class LatentStatistics(NamedTuple):
    """Channel statistics `(z,)` of posterior means over a data set."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


# fmt: off
# As published with the weights (`latents_mean` and `latents_std` in diffusers).
WAN21_LATENTS = LatentStatistics(
    mean=(
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517, -0.3632, -0.1922,
        -0.9497, 0.2503, -0.2921,
    ),
    std=(
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253,
        2.8251, 1.916,
    ),
)

WAN22_LATENTS = LatentStatistics(
    mean=(
        -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891, 0.157,
        -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502, -0.2055, -0.0322,
        0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.123, -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.052,
        0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
    ),
    std=(
        0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.499, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165,
        0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659, 0.7069, 0.5338, 0.4889, 0.4917,
        0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.06,
        0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
    ),
)
# fmt: on

LATENT_STATISTICS = {"wan22": WAN22_LATENTS, "wan21": WAN21_LATENTS}
