"""The kinds of video VAE: the CNN of `models.vae` and the transformer of `models.transformer_vae`.

A new kind is a module of its own, whose config holds a `kind`, and its entry here.
"""

from __future__ import annotations

import difflib

from pv_vae_jax.models.transformer_vae import TransformerVAE, TransformerVAEConfig
from pv_vae_jax.models.vae import VAE, VAEConfig

AnyVAEConfig = VAEConfig | TransformerVAEConfig
# By the `kind` of the config. Files older than the transformer have no kind: they hold a CNN.
KINDS = {"cnn": (VAEConfig, VAE), "transformer": (TransformerVAEConfig, TransformerVAE)}

# Model folders outlive names: old names of fields and values of a VAE's config, which older folders hold.
RENAMED_FIELDS = {"halve_up": "upsample_halves_channels"}
RENAMED_VALUES = {("shortcut_time", "deal"): "interleave", ("lowering", "im2col"): "taps_in"}


def build_vae(config: AnyVAEConfig) -> VAE:
    """The network that `config` describes.

    Raises:
      ValueError: the kind is not registered.
    """
    config_class, network = KINDS.get(getattr(config, "kind", ""), (None, None))
    if network is None or type(config) is not config_class:
        raise ValueError(
            f"expected the config of a known VAE, got {type(config).__name__}; add it to models/registry.py"
        )
    return network(config)


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
