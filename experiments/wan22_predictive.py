"""A predictive Wan2.2: the published VAE, trained to predict latent frames that it was not shown (stages 2 and 3).

  pv-vae convert Wan2.2_VAE.pth models/wan22
  pv-vae train --config experiments/wan22_predictive.py --workdir runs/wan22 --config.data.source=FOLDER
  pv-vae convert --to=diffusers runs/wan22 wan22-predictive

Nobody has trained it with the published weights, so there are no hours and no scores. `tests/test_wan_predictive.py`
runs these three commands on a narrow network and compares the result with diffusers.

Stage `image` is left out: the network has seen enough images. It was trained without a pad token, so the video stage
draws one and says so; everything else starts from the published weights. The rates are a fifth of the paper's, for
weights that are good already. The encoder trains too, since it must learn to say what lies ahead: latents move away
from Wan's, see docs/converting.md for what has to be trained again then.
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
PIXELS = ("encoder/level0", "encoder/level1", "decoder/level_2", "decoder/level_3")

# Compiled for these without a TPU (`pv-vae inspect --topology`, `make test-slow`): topology and the settings it takes.
TOPOLOGIES = {"v5p:4x4x4": ("mesh.data=1", "mesh.fsdp=64")}


def get_config() -> Experiment:
    """Stages `video` and `decoder`."""
    optimizer = OptimizerConfig(learning_rate=1e-5, warmup_steps=1_000, final_fraction=0.1)
    return Experiment(
        name="wan22-predictive",
        data=DataConfig(source="data/kinetics400", frames=17, size=256, test_clips=2_048, threads=16, crop="random"),
        vae=VAEConfig.wan22(pad="learnable", dtype="bfloat16", remat=True, remat_blocks=PIXELS),
        video=VAEStageConfig(
            steps=50_000,
            batch_size=64,
            init_from="models/wan22",
            drop_ratio=1.0,
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
        latte=LatteConfig(latent_channels=48),
        log_every=50,
        checkpoint_every=1_000,
        mesh=MeshConfig(data=1, fsdp=-1),
    )
