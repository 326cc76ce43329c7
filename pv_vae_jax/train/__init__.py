"""Training: configs of an experiment, pure steps, one loop for every stage, checkpoints, metric writers.

An experiment file imports its configs from here. `load_experiment` reads one, and `train` runs its stages:

  run = train(load_experiment("demo"), "runs/demo")
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pv_vae_jax.losses import Objective
    from pv_vae_jax.models.discriminator import DiscriminatorConfig
    from pv_vae_jax.models.latte import LatteConfig
    from pv_vae_jax.models.transformer_vae import TransformerVAEConfig
    from pv_vae_jax.models.vae import VAEConfig
    from pv_vae_jax.train.config_files import load_experiment
    from pv_vae_jax.train.configs import (
        DataConfig,
        DiffusionConfig,
        Experiment,
        LatentsConfig,
        MeshConfig,
        OptimizerConfig,
        PerceptualConfig,
        SamplingConfig,
        VAEStageConfig,
    )
    from pv_vae_jax.train.stages import train

# Written out for type checkers, to which a typed package exports what is listed here.
__all__ = [
    "DataConfig",
    "DiffusionConfig",
    "DiscriminatorConfig",
    "Experiment",
    "LatentsConfig",
    "LatteConfig",
    "MeshConfig",
    "Objective",
    "OptimizerConfig",
    "PerceptualConfig",
    "SamplingConfig",
    "TransformerVAEConfig",
    "VAEConfig",
    "VAEStageConfig",
    "load_experiment",
    "train",
]

# Resolved on first use; everything else is a config, and `configs` has them all.
_HOME_OF = {"load_experiment": "config_files", "train": "stages"}


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF.get(name, 'configs')}"), name)


def __dir__():
    return [*globals(), *__all__]
