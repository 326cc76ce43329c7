"""The demo with the transformer VAE in place of the CNN (table 7, last row, at the demo's size).

  pv-vae train --config=demo_transformer --workdir runs/demo-transformer

The demo's stages and steps, so minutes on two cores; no figures of it are published here.
"""

import dataclasses
from pathlib import Path

from pv_vae_jax.train import Experiment, TransformerVAEConfig, load_experiment

# Compiled for these without a TPU (`pv-vae inspect --topology`, `make test-slow`): topology and the mesh it takes.
TOPOLOGIES = {"v5e:2x2": ("mesh.data=4",)}


def get_config() -> Experiment:
    """The demo's compression and stages, 1.5 M parameters."""
    base = load_experiment(Path(__file__).with_name("demo.py"))
    vae = TransformerVAEConfig(
        time_factor=base.vae.time_factor,
        space_factor=base.vae.space_factor,
        latent_channels=base.vae.latent_channels,
        width=128,
        heads=4,
        encoder_layers=3,
        decoder_layers=3,
    )
    return dataclasses.replace(base, name="demo-transformer", vae=vae)
