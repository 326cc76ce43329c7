"""Ratios, padding, and rows that the paper does not have: other things to withhold, and more or less often.

pv-vae study --config experiments/study_ablations.py --workdir runs/study-ablations
"""

import dataclasses
from pathlib import Path

from pv_vae_jax.study.plan import Study, ablation_rows, load_study


def get_study() -> Study:
    """The synthetic study's networks, with half its batch and fewer steps: a quarter of an hour of a core a cell."""
    study = load_study(Path(__file__).with_name("study_synthetic.py"))
    base = study.experiment
    experiment = dataclasses.replace(
        base,
        video=dataclasses.replace(base.video, batch_size=8, steps=3_000),
        latents=dataclasses.replace(base.latents, clips=4_096),
        diffusion=dataclasses.replace(base.diffusion, batch_size=16, steps=2_500),
    )
    return dataclasses.replace(
        study, name="ablations", experiment=experiment, rows=ablation_rows(), seeds=(0, 1, 2), scores=2
    )
