"""The paper's tables 4 to 6 on the synthetic world, at a size that two CPU cores can run.

pv-vae study --config experiments/study_synthetic.py --workdir runs/study-synthetic
"""

import dataclasses
import importlib.util
from pathlib import Path

from pv_vae_jax.config import DataConfig, Experiment, Objective, OptimizerConfig
from pv_vae_jax.study.plan import Row, Study


def rows() -> tuple[Row, ...]:
    """Table 4 first. Each row adds one setting to the one before; every other setting, clip and seed is the same."""
    baseline = {"video.drop_ratio": 0.0, "video.objective.motion": 0.0}
    predictive = {"video.drop_ratio": 1.0, "video.objective.motion": 0.0}
    motion = {"video.drop_ratio": 1.0, "video.objective.motion": 1.0}
    return (
        Row("Baseline", baseline),
        Row("+ Predictive Reconstruction", predictive),
        Row("+ Motion-aware Objective", motion),
        Row("+ Decoder Fine-tuning", motion, decoder_of="+ Motion-aware Objective"),
    )


def base() -> Experiment:
    """The demo's networks. The transformer's rate stays constant, so that its curve can be read at any step."""
    spec = importlib.util.spec_from_file_location("demo", Path(__file__).parent / "demo.py")
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    demo = demo.get_config()
    optimizer = OptimizerConfig(name="muon", learning_rate=3e-3, warmup_steps=50, final_fraction=1.0)
    return dataclasses.replace(
        demo,
        name="study",
        image=dataclasses.replace(demo.image, steps=400),
        video=dataclasses.replace(demo.video, steps=600),
        decoder=dataclasses.replace(
            demo.decoder, steps=200, objective=Objective(), optimizer=dataclasses.replace(demo.decoder.optimizer)
        ),
        diffusion=dataclasses.replace(demo.diffusion, steps=900, optimizer=optimizer, ema_decay=0.98),
    )


def get_study() -> Study:
    """Two thousand clips of latents, scored on 512."""
    experiment = dataclasses.replace(base(), data=DataConfig(clips=8_192, test_clips=1_024, frames=17, size=32))
    return Study(
        name="synthetic",
        world="moving textured sprites with occlusion, four families of motion, 17 x 32 x 32",
        experiment=experiment,
        rows=rows(),
    )
