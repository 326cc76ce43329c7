"""The synthetic study's networks, steps and rows on real clips; `--config.data.source` names their folder.

  python -m studies.ablation --config=study_real --workdir runs/study-real --config.data.source=clips

A cell, one row with one seed, takes about as long as in the synthetic study. No results are published here; those of
the study docs/results/real-short-decoder had a tenth of its decoder steps.
"""

import dataclasses
from pathlib import Path

from studies.ablation.plan import Study, load_study


def get_study() -> Study:
    """Windows of 9 frames at 32 pixels, every second frame, so that more moves; without classes."""
    study = load_study(Path(__file__).with_name("study_synthetic.py"))
    data = dataclasses.replace(study.experiment.data, source="clips", stride=2, crop="centre")
    experiment = dataclasses.replace(study.experiment, data=data)
    world = "camera footage of many kinds, every second frame, 9 x 32 x 32, without classes"
    study = dataclasses.replace(study, name="real", world=world, experiment=experiment)
    return dataclasses.replace(study, rows=study.rows[:4], seeds=(0, 1, 2), clips=192)
