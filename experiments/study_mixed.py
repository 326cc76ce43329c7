"""The synthetic study on clips with predictable motion, unpredictable motion and none; scored by class as well.

  python -m studies.ablation --config=study_mixed --workdir runs/study-mixed

A cell, one row with one seed, takes about as long as in the synthetic study. No results are published here.
"""

import dataclasses
from pathlib import Path

from studies.ablation.plan import Study, load_study


def get_study() -> Study:
    """Sprites that fall or bounce, walk at random, or stand still."""
    study = load_study(Path(__file__).with_name("study_synthetic.py"))
    data = dataclasses.replace(study.experiment.data, source="synthetic:bounce,fall,walk,still")
    experiment = dataclasses.replace(study.experiment, data=data)
    world = "textured sprites that fall, bounce, walk at random or stand still, 9 x 32 x 32"
    return dataclasses.replace(study, name="mixed", world=world, experiment=experiment, rows=study.rows[:4])
