"""The synthetic study in a world of motion that can be foretold, that cannot, and none; scored by class as well.

pv-vae study --config experiments/study_mixed.py --workdir runs/study-mixed
"""

import dataclasses
import importlib.util
from pathlib import Path

from pv_vae_jax.study.plan import Study


def get_study() -> Study:
    """Bodies that fall or bounce, walk at random, or stand still."""
    spec = importlib.util.spec_from_file_location("study_synthetic", Path(__file__).parent / "study_synthetic.py")
    synthetic = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(synthetic)
    study = synthetic.get_study()
    data = dataclasses.replace(study.experiment.data, source="synthetic:bounce,fall,walk,still")
    experiment = dataclasses.replace(study.experiment, data=data)
    world = "textured sprites that fall, bounce, walk at random or stand still, 9 x 32 x 32"
    return dataclasses.replace(study, name="mixed", world=world, experiment=experiment, rows=study.rows[:4])
