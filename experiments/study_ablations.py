"""Drop ratios, padding, and rows that the paper does not have: other drop patterns and schedules.

  python -m studies.ablation --config=study_ablations --workdir runs/study-ablations

A cell, one row with one seed, takes about 14 minutes of a core. Expected: docs/results/ablations.
"""

import dataclasses
from pathlib import Path

from studies.ablation.plan import Study, ablation_rows, load_study


def get_study() -> Study:
    """The synthetic study with narrower networks, half its batch and fewer steps."""
    study = load_study(Path(__file__).with_name("study_synthetic.py"))
    base = study.experiment
    experiment = dataclasses.replace(
        base,
        vae=dataclasses.replace(base.vae, encoder_widths=(32, 32), decoder_widths=(32, 48)),
        video=dataclasses.replace(base.video, batch_size=8, steps=3_000),
        latents=dataclasses.replace(base.latents, clips=4_096),
        latte=dataclasses.replace(base.latte, depth=4),
        diffusion=dataclasses.replace(base.diffusion, batch_size=16, steps=2_500),
    )
    return dataclasses.replace(
        study, name="ablations", experiment=experiment, rows=ablation_rows(), seeds=(0, 1, 2), scores=2
    )
