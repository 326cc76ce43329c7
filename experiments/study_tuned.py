"""The ablations' finished models with their decoders tuned: the complete method at that size, and a control per row.

  python -m studies.ablation --config=study_tuned --workdir runs/study-ablations

Run it after that study, in the same work directory: cells that are missing there are trained. Expected: the study
docs/results/ablations-tuned.
"""

import dataclasses
from pathlib import Path

from studies.ablation.plan import Row, Study, ablation_rows, control_row, load_study, paper_rows


def get_study() -> Study:
    """Table 4, a tuned baseline, and the rising ratio, which lost least; decoders train as long as the VAEs."""
    study = load_study(Path(__file__).with_name("study_ablations.py"))
    video, decoder = study.experiment.video, study.experiment.decoder
    decoder = dataclasses.replace(decoder, batch_size=video.batch_size, steps=video.steps)
    rising = next(row for row in ablation_rows() if row.name == "Rising ratio")
    control = control_row()
    tuned = Row("Rising ratio, decoder tuned", rising.settings, decoder_of=rising.name, compared_with=control.name)
    return dataclasses.replace(
        study,
        name="ablations-tuned",
        experiment=dataclasses.replace(study.experiment, decoder=decoder),
        rows=(*paper_rows(), control, rising, tuned),
        scores=1,
    )
