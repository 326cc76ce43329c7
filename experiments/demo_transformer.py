"""The demo with the transformer VAE in place of the CNN (table 7, last row, at the demo's size)."""

import dataclasses
import importlib.util
from pathlib import Path

from pv_vae_jax.train.configs import Experiment, TransformerVAEConfig

# Compiled for these without a TPU (`pv-vae inspect --topology`, `make test-slow`): topology and the mesh it takes.
TOPOLOGIES = {"v5e:2x2": ("mesh.data=4",)}


def get_config() -> Experiment:
    """The demo's compression and stages, 1.5 M parameters."""
    spec = importlib.util.spec_from_file_location("demo", Path(__file__).parent / "demo.py")
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    base = demo.get_config()
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
