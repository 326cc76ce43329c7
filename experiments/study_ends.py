"""The synthetic study's finished models, scored once more on four times as many clips, to reduce sampling noise.

  python -m studies.ablation --config=study_ends --workdir runs/study-synthetic

Run it after that study, in the same work directory: cells that are missing there are trained, without the checkpoints
that scores along training need. Expected: docs/results/synthetic-ends.
"""

import dataclasses
from pathlib import Path

from studies.ablation.plan import Study, load_study


def get_study() -> Study:
    """1,024 clips against as many of the training split, as is usual for FVD."""
    study = load_study(Path(__file__).with_name("study_synthetic.py"))
    return dataclasses.replace(study, name="synthetic-ends", scores=1, clips=1_024, reference="train")
