"""The synthetic study with networks several times as wide, for one GPU.

pv-vae study --config experiments/study_larger.py --workdir runs/study-larger
"""

import dataclasses
from pathlib import Path

from pv_vae_jax.study.plan import Study, load_study


def get_study() -> Study:
    """More steps as well: prediction is learnt later than reconstruction."""
    study = load_study(Path(__file__).with_name("study_synthetic.py"))
    experiment = study.experiment
    wider = dict(encoder_widths=(96, 96), decoder_widths=(96, 192), encoder_blocks=1, decoder_blocks=2)
    experiment = dataclasses.replace(
        experiment,
        vae=dataclasses.replace(experiment.vae, **wider),
        video=dataclasses.replace(experiment.video, steps=6_000),
        decoder=dataclasses.replace(experiment.decoder, steps=600),
        latte=dataclasses.replace(experiment.latte, depth=8, width=256),
        diffusion=dataclasses.replace(experiment.diffusion, batch_size=64),
    )
    return dataclasses.replace(study, name="larger", experiment=experiment, rows=study.rows[:4])
