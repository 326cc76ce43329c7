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
from studies.ablation.results import over_seeds
from studies.arena.protocol import (
    NO_NOISE,
    TRACKS,
    VERSION,
    Clips,
    Drawn,
    array_hash,
    check_name,
    load_arrays,
    load_latents,
    load_video,
)
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
      ConfigError: the name is none, or a file is missing, or belongs to other latents, clips or seeds; the message says
        which.
    """
    name = check_name(name or folder.resolve().name)
    latents, settings = load_latents(folder / "latents.npz", clips), TRACKS[track]
    real, label = clips.video[clips.test], clips.label[clips.test]
    key = array_hash(*latents.values(), clips.label)
    moments = {
        split: [latents[part][getattr(clips, split)] for part in ("mean", "logvar")] for split in ("train", "test")
    }
    seeds, turned = [], set()
    for seed in settings.seeds:
        file = folder / f"sampled-{seed}.npz"
        turned.add(Drawn(key, track, seed, False).check(file, rotated=False)["rotated"])
        drawn, asked, loss, spread = load_arrays(file, "latents", "label", "loss", "statistics")
        if (found := drawn.shape) != (wanted := (settings.samples, *latents["mean"].shape[1:])):
            raise ConfigError(f"expected latents {wanted} in {file}, got {found}: remove it and run `train` again")
        if not np.isfinite(drawn).all():
            raise ConfigError(f"{file} has NaN or infinite latents: remove it and run `train` again")
        video = load_video(folder / f"generated-{seed}.npz", (settings.samples, *real.shape[1:]))
        held_out, other = (sample_posterior(*moments[split], *spread) for split in ("test", "train"))
        n = min(len(drawn), len(held_out))
        skill = latent_skill(np.asarray(normalize_latents(drawn[:n], *spread)), held_out[:n], other)
        seeds.append({"seed": seed, "loss": [float(x) for x in loss], "skill": skill})
        if clips.laws:
            seeds[-1] |= score_clips(video, asked, clips.laws)
    if len(turned) > 1:
        raise ConfigError(
            f"sampled files in {folder} are of rotated and of other latents: remove those of one kind and run `train`"
        )
    known = {"mean": moments["test"][0], "logvar": moments["test"][1], "label": label}
    if (known["logvar"] == NO_NOISE).all():
        del known["logvar"]  # there is no rate without a posterior
    rebuilt = load_video(folder / "reconstructed.npz", real.shape)
    tree = {
        "name": name,
        "protocol": VERSION,
        "track": track,
        "settings": dataclasses.asdict(settings),
        "clips": clips.manifest,
        "latents": {"hash": key, "shape": list(latents["mean"].shape[1:]), "rotated": turned.pop()},
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
    """Mean over seeds with a 95 % interval: Student's between seeds.

    For a share of `clips` clips it is at least as wide as drawing so many makes it.
    """
    found = over_seeds(values)
    half = 0.0 if found.high is None else float(found.high) - found.mean
    if not clips:
        return {"mean": found.mean, "low": found.mean - half, "high": found.mean + half}
    drawn = clips * len(values)
    share = (found.mean * drawn + 2) / (drawn + 4)  # Agresti and Coull: not 0 at the ends
    half = max(half, NORMAL * float(np.sqrt(share * (1 - share) / drawn)))
    return {"mean": found.mean, "low": max(0.0, found.mean - half), "high": min(1.0, found.mean + half)}
