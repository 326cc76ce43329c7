"""The paper's diffusion transformer on UCF101 (section 4.1), in the latents of `experiments/paper_vae.py`.

  pv-vae train --config=paper_latte --workdir runs/paper_latte --config.data.source=UCF101 \\
      --config.decoder.init_from=runs/paper_vae

Nobody has trained it to the end with this library, so there are no hours and no scores yet.

From the paper: Latte with one token a latent position, 28 layers, class-conditional, rectified flow, 250 K steps, AdamW
at 1e-4, batches of 64, Euler sampling with 100 steps, 2,048 samples. Ours: warm-up, label dropout 0.1 (Latte's), moving
average, no guidance, four posteriors of every training clip in the cache.

The VAE is used as it is: a decoder stage of one step, with every part frozen, brings it into this run.
"""

import dataclasses
from pathlib import Path

from pv_vae_jax.train import (
    DiffusionConfig,
    Experiment,
    LatentsConfig,
    LatteConfig,
    OptimizerConfig,
    SamplingConfig,
    VAEStageConfig,
    load_experiment,
)

# Compiled for these without a TPU (`pv-vae inspect --topology`, `make test-slow`): topology and the settings it takes.
TOPOLOGIES = {"v5p:4x4x4": ("data.source=synthetic", "mesh.data=1", "mesh.fsdp=64")}


def get_config() -> Experiment:
    """Stages latents and diffusion; `--config.decoder.init_from` names the run that trained the VAE."""
    base = load_experiment(Path(__file__).with_name("paper_vae.py"))
    return dataclasses.replace(
        base,
        name="paper-latte",
        data=dataclasses.replace(base.data, source="data/UCF101"),
        image=VAEStageConfig(images=True),
        video=VAEStageConfig(),
        decoder=VAEStageConfig(
            steps=1, batch_size=64, frozen=("encoder", "decoder", "pad"), init_from="runs/paper_vae"
        ),
        latents=LatentsConfig(clips=38_148, batch_size=64),  # 4 x the 9,537 clips of the first training list
        latte=LatteConfig(latent_channels=64, depth=28, width=1152, heads=16, dtype="bfloat16", remat="blocks"),
        diffusion=DiffusionConfig(
            steps=250_000,
            batch_size=64,
            label_dropout=0.1,
            time_distribution="uniform",
            optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=1_000),
            ema_decay=0.9999,
        ),
        sampling=SamplingConfig(steps=100, guidance=1.0, clips=2_048, batch_size=64),
    )
