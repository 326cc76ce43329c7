"""The synthetic study's finished models, scored once more on four times as many clips, so that chance counts for less.

python -m studies.ablation --config experiments/study_ends.py --workdir runs/study-synthetic

Run it when that study is finished: what it finds missing in the work directory it trains, and keeps no states for
scores along training.
"""

import dataclasses
from pathlib import Path

from studies.ablation.plan import Study, load_study


def get_study() -> Study:
    """Against clips of the training split, of which there are enough, as is the custom for FVD."""
    study = load_study(Path(__file__).with_name("study_synthetic.py"))
    return dataclasses.replace(study, name="synthetic-ends", scores=1, clips=1_024, reference="train")
