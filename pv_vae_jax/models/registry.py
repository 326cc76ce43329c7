"""Which video VAE a configuration means: the CNN of `models.vae`, or the transformer of `models.transformer_vae`."""

from __future__ import annotations

import difflib

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


def vae_config_of(tree: dict) -> tuple[type[AnyVAEConfig], dict]:
    """The class of the configuration that `tree` (from JSON) holds, and its fields.

    Raises:
      ValueError: there is no such kind; the nearest is named.
    """
    kind = tree.get("kind", "cnn")
    if kind not in KINDS:
        near = difflib.get_close_matches(str(kind), KINDS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(KINDS)}"
        raise ValueError(f"there is no VAE of kind {kind!r}; {hint}")
    cls, _ = KINDS[kind]
    tree = {RENAMED_FIELDS.get(name, name): value for name, value in tree.items()}
    tree |= {name: new for (name, old), new in RENAMED_VALUES.items() if tree.get(name) == old}
    return cls, {name: value for name, value in tree.items() if name != "kind" or hasattr(cls, "kind")}
