"""The paper's VAE and its three stages (section 3, section 4.1), for a TPU pod or a node of large GPUs.

  pv-vae train --config=paper_vae --workdir runs/paper_vae --config.data.source=FOLDER

Nobody has trained it to the end with this library, so there are no hours and no scores yet. A step of the video stage
compiled for v5p:4x4x4 needs 6.0 GiB of a chip's 95.

From the paper: t4s16c64, clips of 17 frames at 256 px, 300 K image, 50 K video and 50 K decoder steps, dropping up to
everything but frame 0 (r = 1) with a learned pad, the motion term, the GAN from step 5 K of the video stage and
throughout the decoder stage, AdamW at 5e-5 with decay to one tenth.

Ours, because the paper does not say: widths (658 M parameters; the paper has 661 M), batch sizes, length of the
warm-up, weights of KL and GAN, moving average, how often clips are mirrored or, as in its figure 2, played backwards.
Different here: one resolution where the paper mixes 256, 384 and 512 px (`--config.image.sizes` mixes), and no LPIPS,
whose weights you supply (`--config.perceptual.weights` and `.heads`, then `objective.perceptual` of a stage).
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

# Levels near the pixels, whose activations are large.
PIXELS = ("encoder/level0", "encoder/level1", "decoder/level_3", "decoder/level_4")

# Compiled for these without a TPU (`pv-vae inspect --topology`, `make test-slow`): topology and the settings it takes.
TOPOLOGIES = {"v5p:4x4x4": ("mesh.data=1", "mesh.fsdp=64")}


def get_config() -> Experiment:
    """The three VAE stages."""
    optimizer = OptimizerConfig(learning_rate=5e-5, warmup_steps=1_000, final_fraction=0.1)
    return Experiment(
        name="paper-vae",
        data=DataConfig(source="data/kinetics400", frames=17, size=256, test_clips=2_048, threads=16, crop="random"),
        vae=VAEConfig(
            latent_channels=64,
            time_factors=(2, 2, 1, 1),
            space_factors=(2, 2, 2, 2),
            # Multiples of 128 at every resolution fill a TPU's matrix units.
            encoder_widths=(128, 128, 512, 512, 512),
            decoder_widths=(128, 128, 512, 1024, 1024),
            dtype="bfloat16",
            remat=True,
            remat_blocks=PIXELS,
        ),
        image=VAEStageConfig(images=True, steps=300_000, batch_size=256, optimizer=optimizer, ema_decay=0.9999),
        video=VAEStageConfig(
            steps=50_000,
            batch_size=64,
            drop_ratio=1.0,
            reverse=0.5,
            objective=Objective(motion=1.0, gan=0.1, gan_start=5_000),
            optimizer=optimizer,
            discriminator_optimizer=optimizer,
            ema_decay=0.9995,
        ),
        decoder=VAEStageConfig(
            steps=50_000,
            batch_size=64,
            frozen=("encoder", "pad"),
            objective=Objective(motion=1.0, gan=0.1, gan_start=0),
            optimizer=optimizer,
            discriminator_optimizer=optimizer,
            ema_decay=0.9995,
        ),
        latte=LatteConfig(latent_channels=64),
        log_every=50,
        checkpoint_every=1_000,
        mesh=MeshConfig(data=1, fsdp=-1),
    )
