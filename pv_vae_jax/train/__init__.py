"""Training: configs of an experiment, pure steps, one loop for every stage, checkpoints, metric writers.

An experiment file imports its configs from here. `load_experiment` reads one, and `train` runs its stages:

  run = train(load_experiment("demo"), "runs/demo")
"""

from typing import TYPE_CHECKING

from pv_vae_jax._lazy import lazy_imports

if TYPE_CHECKING:  # imported on first use
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

__all__ = [
    "DataConfig", "DiffusionConfig", "DiscriminatorConfig", "Experiment", "LatentsConfig", "LatteConfig",
    "MeshConfig", "Objective", "OptimizerConfig", "PerceptualConfig", "SamplingConfig", "TransformerVAEConfig",
    "VAEConfig", "VAEStageConfig", "load_experiment", "train",
]  # fmt: skip

__getattr__, __dir__ = lazy_imports(__name__)
