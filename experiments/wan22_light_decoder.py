"""A light decoder for the latents of Wan2.2, whose encoder and latents stay as they are.

  pv-vae convert Wan2.2_VAE.pth models/wan22
  pv-vae train --config experiments/wan22_light_decoder.py --workdir runs/wan22-light --config.data.source=FOLDER
  python docs/decoders.py models/wan22 runs/wan22-light
  pv-vae convert --to=diffusers runs/wan22-light wan22-light

Nobody has trained it with the published weights, so there are no hours and no scores; with random weights it ran for
two steps. The decoder has a quarter of Wan's widths in the same proportion, so diffusers loads it: 35.0 M parameters in
place of 555.1 M, a sixteenth of the operations. Copy `latents_mean` and `latents_std` from Wan's config.json into its
own, for the latents are Wan's.

To decode what a predictive Wan2.2 left open as well, start from that (`init_from`), with `pad="learnable"`,
`init_parts=("encoder", "pad")` and `drop_ratio=1.0`.
"""

from pv_vae_jax.train import (
    DataConfig,
    Experiment,
    LatteConfig,
    MeshConfig,
    Objective,
    OptimizerConfig,
    VAEConfig,
    VAEStageConfig,
)

# Compiled for these without a TPU (`pv-vae inspect --topology`, `make test-slow`): topology and the settings it takes.
TOPOLOGIES = {"v5p:4x4x4": ("mesh.data=1", "mesh.fsdp=64")}


def get_config() -> Experiment:
    """Stage `decoder` alone."""
    optimizer = OptimizerConfig(learning_rate=2e-4, warmup_steps=1_000, final_fraction=0.1)
    return Experiment(
        name="wan22-light-decoder",
        data=DataConfig(source="data/kinetics400", frames=17, size=256, test_clips=2_048, threads=16, crop="random"),
        vae=VAEConfig.wan22(decoder_widths=(64, 128, 256, 256), dtype="bfloat16", remat=True),
        decoder=VAEStageConfig(
            steps=100_000,
            batch_size=64,
            init_from="models/wan22",
            init_parts=("encoder",),
            frozen=("encoder",),
            objective=Objective(motion=1.0, gan=0.1, gan_start=50_000),
            optimizer=optimizer,
            discriminator_optimizer=optimizer,
            ema_decay=0.9995,
        ),
        latte=LatteConfig(latent_channels=48),
        log_every=50,
        checkpoint_every=1_000,
        mesh=MeshConfig(data=1, fsdp=-1),
    )
