"""The synthetic study in a world of motion that can be foretold, that cannot, and none; scored by class as well.

python -m studies.ablation --config experiments/study_mixed.py --workdir runs/study-mixed
"""

import dataclasses
from pathlib import Path

from studies.ablation.plan import Study, load_study


def get_study() -> Study:
    """Bodies that fall or bounce, walk at random, or stand still."""
    study = load_study(Path(__file__).with_name("study_synthetic.py"))
    data = dataclasses.replace(study.experiment.data, source="synthetic:bounce,fall,walk,still")
    experiment = dataclasses.replace(study.experiment, data=data)
    world = "textured sprites that fall, bounce, walk at random or stand still, 9 x 32 x 32"
    return dataclasses.replace(study, name="mixed", world=world, experiment=experiment, rows=study.rows[:4])
