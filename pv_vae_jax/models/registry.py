"""The kinds of video VAE: the CNN of `models.vae` and the transformer of `models.transformer_vae`.

A new kind is a module of its own, whose config holds a `kind`, and its entry here.
"""

from typing import Any

from pv_vae_jax.messages import did_you_mean
from pv_vae_jax.models.transformer_vae import TransformerVAE, TransformerVAEConfig
from pv_vae_jax.models.vae import VAE, VAEConfig

AnyVAEConfig = VAEConfig | TransformerVAEConfig
# By the `kind` of the config. Files older than the transformer have no kind: they hold a CNN.
KINDS = {"cnn": (VAEConfig, VAE), "transformer": (TransformerVAEConfig, TransformerVAE)}

# Model folders outlive names: old names of fields and values of a VAE's config, which older folders hold. Flags take
# today's names only.
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


def vae_config_of(tree: dict) -> AnyVAEConfig:
    """The configuration that `tree`, from the JSON of a model folder, holds; older names are translated.

    Raises:
      ValueError: the kind is unknown; the message names the nearest.
      TypeError: a field is unknown.
    """
    tree = {RENAMED_FIELDS.get(name, name): value for name, value in tree.items()}
    tree |= {name: new for (name, old), new in RENAMED_VALUES.items() if tree.get(name) == old}
    cls, fields = vae_fields_of(tree)
    return cls(**to_tuples(fields))


def vae_fields_of(tree: dict) -> tuple[type[AnyVAEConfig], dict]:
    """Class and fields of the configuration that `tree` holds.

    Raises:
      ValueError: the kind is unknown; the message names the nearest.
    """
    kind = tree.get("kind", "cnn")
    if kind not in KINDS:
        raise ValueError(f"unknown kind of VAE {kind!r}; {did_you_mean(str(kind), KINDS)}")
    cls = KINDS[kind][0]
    return cls, {name: value for name, value in tree.items() if name != "kind" or hasattr(cls, "kind")}


def to_tuples(tree: Any) -> Any:
    """`tree` with tuples in place of all lists, which JSON makes of them."""
    if isinstance(tree, dict):
        return {name: to_tuples(value) for name, value in tree.items()}
    return tuple(map(to_tuples, tree)) if isinstance(tree, (list, tuple)) else tree
