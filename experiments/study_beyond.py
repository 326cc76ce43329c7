"""The synthetic study with rows that the paper does not have: other things to withhold, and more or less often.

pv-vae study --config experiments/study_beyond.py --workdir runs/study-beyond

Its first two rows are the synthetic study's, cell for cell: files of their scores may be copied from there.
"""

import dataclasses
from pathlib import Path

from pv_vae_jax.study.plan import Study, beyond_rows, load_study


def get_study() -> Study:
    """Everything else as in the synthetic study."""
    study = load_study(Path(__file__).with_name("study_synthetic.py"))
    return dataclasses.replace(study, name="beyond", rows=beyond_rows())
