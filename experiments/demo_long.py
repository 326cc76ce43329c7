"""`make demo-long`: the demo's networks, trained longer. Its weights ship as `tiny-synthetic`."""

import dataclasses
import importlib.util
from pathlib import Path

from pv_vae_jax.train.configs import Experiment

# Compiled for these without a TPU (`pv-vae inspect --topology`, `make test-slow`): topology and the mesh it takes.
TOPOLOGIES = {"v5e:2x2": ("mesh.data=4",)}


def get_config() -> Experiment:
    """The demo with longer stages."""
    spec = importlib.util.spec_from_file_location("demo", Path(__file__).parent / "demo.py")
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    base = demo.get_config()

    def longer(stage, **changes):
        return dataclasses.replace(stage, **changes)

    return dataclasses.replace(
        base,
        name="demo-long",
        data=dataclasses.replace(base.data, clips=32_768, test_clips=256),
        # As the shipped weights were trained; over the demo's length `repeat` scores the same.
        vae=dataclasses.replace(base.vae, shortcut_time="interleave"),
        image=longer(base.image, steps=4_000),
        video=longer(base.video, steps=7_000, ema_decay=0.998),
        decoder=longer(base.decoder, steps=400),
        latents=dataclasses.replace(base.latents, clips=8_192),
        diffusion=longer(base.diffusion, steps=5_000, ema_decay=0.999),
        sampling=dataclasses.replace(base.sampling, clips=256, steps=100),
        checkpoint_every=500,
    )
