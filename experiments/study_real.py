"""The synthetic study's networks, steps and rows on real clips; name their folder.

pv-vae study --config experiments/study_real.py --workdir runs/study-real --config.data.source=clips
"""

import dataclasses
import importlib.util
from pathlib import Path

from pv_vae_jax.study.plan import Study


def get_study() -> Study:
    """Windows of 9 frames at 32 pixels, at every second frame, so that more moves; without classes."""
    spec = importlib.util.spec_from_file_location("study_synthetic", Path(__file__).parent / "study_synthetic.py")
    synthetic = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(synthetic)
    study = synthetic.get_study()
    data = dataclasses.replace(study.experiment.data, source="clips", stride=2, crop="centre")
    experiment = dataclasses.replace(study.experiment, data=data)
    world = "camera footage of many kinds, every second frame, 9 x 32 x 32, without classes"
    return dataclasses.replace(study, name="real", world=world, experiment=experiment, rows=study.rows[:4], clips=192)
