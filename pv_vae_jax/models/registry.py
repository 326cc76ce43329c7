"""Which video VAE a configuration means: the CNN of `models.vae`, or the transformer of `models.transformer_vae`."""

from __future__ import annotations

from typing import Any

from pv_vae_jax.messages import did_you_mean
from pv_vae_jax.models.transformer_vae import TransformerVAE, TransformerVAEConfig
from pv_vae_jax.models.vae import VAE, VAEConfig

AnyVAEConfig = VAEConfig | TransformerVAEConfig
# In JSON, `kind` tells them apart. Files that are older than the transformer have none: they hold a CNN.
KINDS = {"cnn": (VAEConfig, VAE), "transformer": (TransformerVAEConfig, TransformerVAE)}

# Model folders outlive names: what fields and values of a VAE's configuration were called when older ones were written.
RENAMED_FIELDS = {"halve_up": "upsample_halves_channels"}
RENAMED_VALUES = {("shortcut_time", "deal"): "interleave", ("lowering", "im2col"): "taps_in"}


def build_vae(config: AnyVAEConfig) -> VAE:
    """The network that `config` describes.

    Raises:
      ValueError: it is none of a known kind.
    """
    for known, network in KINDS.values():
        if type(config) is known:
            return network(config)
    raise ValueError(f"{type(config).__name__} is the configuration of no known VAE: add it to models/registry.py")


def vae_config_of(tree: dict) -> AnyVAEConfig:
    """The configuration that `tree` (from JSON) holds.

    Raises:
      ValueError: the kind is unknown; the message names the nearest.
      TypeError: a field is unknown.
    """
    cls, fields = vae_fields_of(tree)
    return cls(**to_tuples(fields))


def vae_fields_of(tree: dict) -> tuple[type[AnyVAEConfig], dict]:
    """Class and fields of the configuration that `tree` holds, under the names they have today.

    Raises:
      ValueError: the kind is unknown; the message names the nearest.
    """
    kind = tree.get("kind", "cnn")
    if kind not in KINDS:
        raise ValueError(f"unknown kind of VAE {kind!r}; {did_you_mean(str(kind), KINDS)}")
    cls, _ = KINDS[kind]
    tree = {RENAMED_FIELDS.get(name, name): value for name, value in tree.items()}
    tree |= {name: new for (name, old), new in RENAMED_VALUES.items() if tree.get(name) == old}
    return cls, {name: value for name, value in tree.items() if name != "kind" or hasattr(cls, "kind")}


def to_tuples(tree: Any) -> Any:
    """`tree` with tuples in place of all lists, which JSON makes of them."""
    if isinstance(tree, dict):
        return {name: to_tuples(value) for name, value in tree.items()}
    return tuple(map(to_tuples, tree)) if isinstance(tree, (list, tuple)) else tree
