"""The complete method in minutes on two CPU cores: a world of moving sprites, or a folder of videos.

  pv-vae train --config=demo --workdir runs/demo          (make demo; --config.data.source=FOLDER for your own videos)

Takes 15.5 minutes on two cores of a shared server: 126 s of images, 364 of clips, 65 of the decoder, 20 of latents, 330
of the transformer. Expected: 25.8 dB, and a prediction error 42 % below copying
the last frame, on 64 held-out clips.

A t4s8c64 VAE of 2.1 M parameters on clips of 17 x 32 x 32, then a 1.1 M diffusion transformer on its latents. Lengths,
widths and rates were chosen by experiment for this size.
"""

from pv_vae_jax.train import (
    DataConfig,
    DiffusionConfig,
    DiscriminatorConfig,
    Experiment,
    LatentsConfig,
    LatteConfig,
    Objective,
    OptimizerConfig,
    SamplingConfig,
    VAEConfig,
    VAEStageConfig,
)

# Compiled for these without a TPU (`pv-vae inspect --topology`, `make test-slow`): topology and the mesh it takes.
TOPOLOGIES = {"v5e:2x2": ("mesh.data=4",)}


def get_config() -> Experiment:
    """All five stages at the demo's size."""
    return Experiment(
        name="demo",
        data=DataConfig(clips=8_192, test_clips=64, frames=17, size=32),
        vae=VAEConfig(
            patch=4,
            latent_channels=64,
            time_factors=(2, 2),
            space_factors=(2, 1),
            encoder_widths=(48, 48, 48),
            decoder_widths=(48, 48, 64),
            encoder_blocks=1,
            decoder_blocks=1,
        ),
        discriminator=DiscriminatorConfig(width=16, levels=2),
        image=VAEStageConfig(
            images=True,
            steps=500,
            batch_size=32,
            objective=Objective(),
            optimizer=OptimizerConfig(name="muon", learning_rate=1e-2, warmup_steps=50, final_fraction=0.03),
            ema_decay=0.98,
        ),
        # The filled form: one program. The truncated form saves encoder work, and compiles a program for every k.
        video=VAEStageConfig(
            steps=700,
            batch_size=8,
            drop_ratio=1.0,
            drop_form="filled",
            drop_per_example=True,
            objective=Objective(),
            optimizer=OptimizerConfig(name="muon", learning_rate=5e-3, warmup_steps=50, final_fraction=0.03),
            ema_decay=0.99,
        ),
        decoder=VAEStageConfig(
            steps=80,
            batch_size=8,
            frozen=("encoder", "pad"),
            objective=Objective(gan=0.05, gan_start=0),
            optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=20),
            discriminator_optimizer=OptimizerConfig(learning_rate=4e-4, warmup_steps=20),
            ema_decay=0.98,
        ),
        latents=LatentsConfig(clips=2_048, batch_size=16),
        latte=LatteConfig(latent_channels=64, depth=6, width=96, heads=4),
        diffusion=DiffusionConfig(
            steps=800,
            batch_size=32,
            optimizer=OptimizerConfig(name="muon", learning_rate=6e-3, warmup_steps=50, final_fraction=0.03),
            ema_decay=0.99,
        ),
        sampling=SamplingConfig(steps=50, guidance=1.5, clips=64, batch_size=32),
        log_every=20,
        checkpoint_every=200,
    )
