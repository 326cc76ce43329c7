"""The scores of an entry: laws kept, reconstruction by frame, skill in latent space, measures without training."""

import dataclasses
from pathlib import Path

import numpy as np

from pv_vae_jax.evaluation.diffusability import measure_latents
from pv_vae_jax.evaluation.image_metrics import score_frames, summarize_frames
from pv_vae_jax.evaluation.velocity import sample_posterior
from pv_vae_jax.flow import normalize_latents
from pv_vae_jax.storage import write_json
from pv_vae_jax.typing import ConfigError
from studies.arena.protocol import NO_NOISE, TRACKS, VERSION, Clips, array_hash, load_arrays, load_latents, load_video
from studies.motion.scores import score_clips, shuffled
from studies.motion.skill import latent_skill

NORMAL = 1.96  # half-width of a 95 % interval in standard errors


def score(folder: Path, clips: Clips, track: str, name: str = "") -> dict:
    """Write `entry.json` to the folder of an entry, and return it.

    Args:
      folder: holds `latents.npz`, `reconstructed.npz`, and for every seed `sampled-SEED.npz` and `generated-SEED.npz`.
      clips: the clips that were encoded.
      track: name of the track.
      name: how the page calls the entry; the folder's name by default.

    Raises:
      ConfigError: a file is missing, or belongs to other latents, clips or seeds; the message says which.
    """
    latents, settings = load_latents(folder / "latents.npz", clips), TRACKS[track]
    real, label = clips.video[clips.test], clips.label[clips.test]
    key = array_hash(*latents.values(), clips.label)
    moments = {
        split: [latents[part][getattr(clips, split)] for part in ("mean", "logvar")] for split in ("train", "test")
    }
    seeds, rotated = [], False
    for seed in settings.seeds:
        file = folder / f"sampled-{seed}.npz"
        found, drawn, asked, loss, spread = load_arrays(file, "key", "latents", "label", "loss", "statistics")
        began = f"{key}-{track}-"
        if not str(found).startswith(began):
            raise ConfigError(f"{file} was drawn for other latents, clips or track: run `train` again")
        rotated = str(found) == f"{began}True"
        video = load_video(folder / f"generated-{seed}.npz", (settings.samples, *real.shape[1:]))
        held_out, other = (sample_posterior(*moments[split], *spread) for split in ("test", "train"))
        n = min(len(drawn), len(held_out))
        skill = latent_skill(np.asarray(normalize_latents(drawn[:n], *spread)), held_out[:n], other)
        seeds.append({"seed": seed, "loss": [float(x) for x in loss], "skill": skill})
        if clips.laws:
            seeds[-1] |= score_clips(video, asked, clips.laws)
    known = {"mean": moments["test"][0], "logvar": moments["test"][1], "label": label}
    if (known["logvar"] == NO_NOISE).all():
        del known["logvar"]  # there is no rate without a posterior
    rebuilt = load_video(folder / "reconstructed.npz", real.shape)
    tree = {
        "name": name or folder.name,
        "protocol": VERSION,
        "track": track,
        "settings": dataclasses.asdict(settings),
        "clips": clips.manifest,
        "latents": {"hash": key, "shape": list(latents["mean"].shape[1:]), "rotated": rotated},
        "seeds": seeds,
        "reconstruction": summarize_frames(score_frames(rebuilt, real, 255)),
        "measures": measure_latents(known),
    }
    if clips.laws:
        ends = {"real": real, "shuffled": shuffled(real), "reconstructed": rebuilt}
        tree["ends"] = {end: score_clips(video, label, clips.laws)["kept"] for end, video in ends.items()}
        tree["kept"] = interval([seed["kept"] for seed in seeds], settings.samples)
    tree["skill"] = interval([seed["skill"]["energy"] for seed in seeds])
    write_json(folder / "entry.json", tree)
    return tree


def interval(values: list[float], clips: int = 0) -> dict[str, float]:
    """Mean over seeds with a 95 % interval.

    Its standard error is that between seeds; for a share of `clips` clips it is at least that of drawing so many.
    """
    mean, count = float(np.mean(values)), len(values)
    error = float(np.std(values, ddof=1) / np.sqrt(count)) if count > 1 else 0.0
    if clips:
        share = (mean * clips * count + 2) / (clips * count + 4)  # Agresti and Coull: not 0 at the ends
        error = max(error, float(np.sqrt(share * (1 - share) / (clips * count))))
        return {"mean": mean, "low": max(0.0, mean - NORMAL * error), "high": min(1.0, mean + NORMAL * error)}
    return {"mean": mean, "low": mean - NORMAL * error, "high": mean + NORMAL * error}
