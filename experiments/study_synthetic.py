"""The paper's tables 4 to 6 on the synthetic world, at a size that two CPU cores can run.

pv-vae study --config experiments/study_synthetic.py --workdir runs/study-synthetic
"""

import dataclasses

from pv_vae_jax.config import (
    DataConfig,
    DiffusionConfig,
    Experiment,
    LatentsConfig,
    LatteConfig,
    Objective,
    OptimizerConfig,
    VAEConfig,
    VAEStageConfig,
)
from pv_vae_jax.study.plan import Study, paper_rows


def base() -> Experiment:
    """A t2s8c16 VAE on clips of 9 frames, so five groups, and a small transformer whose rate stays constant, so that
    its curve can be read at any step.

    The demo's 64 channels at its KL weight hold several nats of detail a value: in this many steps the transformer
    makes noise of them, and distances rise as it trains. Fewer channels and a larger weight leave what it can learn.
    """
    objective = Objective(kl=3e-4)
    stage = VAEStageConfig(
        batch_size=16,
        objective=objective,
        optimizer=OptimizerConfig(name="muon", learning_rate=5e-3, warmup_steps=50, final_fraction=0.03),
        ema_decay=0.98,
    )
    faster = dataclasses.replace(stage.optimizer, learning_rate=1e-2)
    slower = OptimizerConfig(learning_rate=1e-4, warmup_steps=20)
    constant = OptimizerConfig(name="muon", learning_rate=3e-3, warmup_steps=50, final_fraction=1.0)
    return Experiment(
        name="study",
        data=DataConfig(clips=8_192, test_clips=1_024, frames=9, size=32),
        vae=VAEConfig(
            patch=4,
            latent_channels=16,
            time_factors=(2,),
            space_factors=(2,),
            encoder_widths=(48, 48),
            decoder_widths=(48, 64),
            encoder_blocks=1,
            decoder_blocks=1,
        ),
        image=dataclasses.replace(stage, images=True, steps=300, batch_size=32, optimizer=faster),
        video=dataclasses.replace(stage, steps=400, drop_ratio=1.0, drop_form="filled", drop_per_example=True),
        decoder=dataclasses.replace(stage, steps=150, frozen=("encoder", "pad"), optimizer=slower),
        latents=LatentsConfig(clips=4_096, batch_size=32),
        latte=LatteConfig(latent_channels=16, depth=4, width=96, heads=4),
        diffusion=DiffusionConfig(steps=1_200, batch_size=32, optimizer=constant, ema_decay=0.99),
        log_every=20,
    )


def get_study() -> Study:
    """Four thousand clips of latents, scored on 256."""
    return Study(
        name="synthetic",
        world="moving textured sprites with occlusion, four families of motion, 9 x 32 x 32",
        experiment=base(),
        rows=paper_rows(),
        scores=8,
        clips=256,
    )
