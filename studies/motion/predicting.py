"""Does a VAE draw what it has not seen? Held-out clips of which it saw the first frames, scored as generated ones are.

What prediction changes in a VAE must be there before it can change how its latents diffuse. A row whose clips break
their law as soon as a group is withheld has not learnt the law, whatever its objective asked for.
"""

import json
from pathlib import Path

import numpy as np

from pv_vae_jax.batching import padded_batches
from pv_vae_jax.model import load
from pv_vae_jax.pixels import to_uint8
from pv_vae_jax.storage import write_json
from pv_vae_jax.train.run import Run, open_run
from studies.motion.measure import BATCH, real_clips
from studies.motion.plan import Cell, Study, vae_part
from studies.motion.scores import score_clips

CLIPS = 256


def predicted(cell: Cell, vae: Run) -> dict[str, float]:
    """Groups withheld -> share of held-out clips that keep their law; empty for `walk`, which has none.

    By the VAE of the video stage: the decoder's tuning, in which nothing is withheld, has not touched it yet.
    """
    if cell.families == ("walk",):
        return {}
    model, (real, kinds) = load(vae.folder("video") / "model"), real_clips(vae, "test", CLIPS)
    frames, shares = real.shape[1], {}
    for withheld in range(1, model.vae.config.latent_frames(frames)):
        seen = frames - withheld * model.vae.config.time_factor
        drawn = [np.asarray(to_uint8(model.predict(b, observed=seen)))[:n] for b, n in padded_batches(real, BATCH)]
        shares[str(withheld)] = score_clips(np.concatenate(drawn), kinds, cell.families)["kept"]
    return shares


def add_predicted(study: Study, workdir: Path, results: Path) -> int:
    """Add the score to stored cells that lack it and whose VAE is in `workdir`; returns how many were given it."""
    count = 0
    for cell in study.cells():
        path, folder = results / f"{cell.name}.json", workdir.absolute() / cell.vae
        if not path.exists() or not folder.exists() or "predicted" in (tree := json.loads(path.read_text())):
            continue
        write_json(path, tree | {"predicted": predicted(cell, open_run(vae_part(cell.experiment), folder))})
        count += 1
    return count
