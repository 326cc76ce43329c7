"""Our own entries: VAEs of the motion study and others trained alike, and two codes without training.

Each is a way to encode all clips and to decode latents; `enter` then takes the steps that any entrant takes.
"""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.fft import dctn, idctn

from pv_vae_jax.batching import padded_batches
from pv_vae_jax.model import load
from pv_vae_jax.models.transformer_vae import TransformerVAEConfig
from pv_vae_jax.models.vae import VAEConfig
from pv_vae_jax.pixels import to_uint8
from pv_vae_jax.storage import atomic
from pv_vae_jax.train.run import open_run
from pv_vae_jax.train.stages import train_stage
from pv_vae_jax.typing import ConfigError
from studies.arena.protocol import TRACKS, Clips, load_arrays
from studies.arena.scoring import score
from studies.arena.training import train
from studies.motion.plan import Cell, Row, Study, vae_part

BATCH = 32
BLOCK = 8  # pixels of a side, and so the space factor, of the codes without training
GROUP = 4  # frames of a group after frame 0

Encode = Callable[[np.ndarray], dict[str, np.ndarray]]  # (n, t, H, W, 3) uint8 -> mean, and logvar if there is one
Decode = Callable[[np.ndarray], np.ndarray]  # (n, g, h, w, z) -> (n, t, H, W, 3) uint8

# Name -> row of the motion study and settings besides it.
VAES: dict[str, tuple[str, dict]] = {
    "baseline": ("Baseline", {}),
    "whole-method": ("Whole method", {}),
    "rising-ratio": ("Rising ratio", {}),
    "aligned": ("Aligned to the state", {}),  # the positive control
    "rotated": ("Baseline", {}),  # the negative control
    "a-tenth": ("Baseline", {"video.steps": 120, "decoder.steps": 40}),  # trained for a tenth of the steps
    "transformer": ("Baseline", {}),
    "wan": ("Baseline", {}),
}
NETWORKS = {
    "transformer": TransformerVAEConfig(
        space_factor=8, latent_channels=8, width=96, heads=4, encoder_layers=3, decoder_layers=3
    ),
    "wan": VAEConfig.wan21(
        latent_channels=8, encoder_widths=(8, 16, 32, 32), decoder_widths=(8, 16, 32, 32), pad="learnable"
    ),
}
CODES = ("pooled", "dct")


def enter(name: str, out: Path, clips: Clips, track: str, study: Study, vaes: Path | None = None) -> dict:
    """Make the entry `name` in `out`: encode, train, decode and score; a step that is done is not done again.

    Args:
      name: of `VAES` or `CODES`.
      out: folder of the entry.
      clips: the clips to encode.
      track: name of the track.
      study: the motion study, whose VAEs these are.
      vaes: work directory of that study, to share VAEs with it; by default the VAE is trained in `out`.

    Raises:
      ConfigError: there is no such entry, these clips do not fit it, or `out` has latents of another one.
    """
    if name not in (*VAES, *CODES):
        raise ConfigError(f"entry must be one of {', '.join((*VAES, *CODES))}, got {name!r}")
    out.mkdir(parents=True, exist_ok=True)
    made_of = json.dumps([name, clips.manifest["hash"], "" if name in CODES else _cell(name, study).vae])
    if (out / "latents.npz").exists() and (found := str(load_arrays(out / "latents.npz", "made_of")[0])) != made_of:
        raise ConfigError(f"{out} has latents of {found}, expected {made_of}: name another folder")
    encode, decode = _code(name, clips) if name in CODES else _vae(name, out, study, vaes)
    if not (out / "latents.npz").exists():
        with atomic(out / "latents.npz") as partial, open(partial, "wb") as file:
            np.savez(file, made_of=made_of, **encode(clips.video))
    (mean,) = load_arrays(out / "latents.npz", "mean")
    np.savez_compressed(out / "reconstructed.npz", video=decode(mean[clips.test]))
    for path, seed in zip(
        train(out / "latents.npz", clips, track, rotated=name == "rotated"), TRACKS[track].seeds, strict=True
    ):
        (drawn,) = load_arrays(path, "latents")
        np.savez_compressed(out / f"generated-{seed}.npz", video=decode(drawn))
    return score(out, clips, track, name)


def _cell(name: str, study: Study) -> Cell:
    """The cell of the study whose VAE this is, with the entry's own network and settings."""
    row, settings = VAES[name]
    cell = study.cell(Row(name, study.row(row).settings | settings), 0)
    network = NETWORKS.get(name, cell.experiment.vae)
    return dataclasses.replace(cell, experiment=dataclasses.replace(cell.experiment, vae=network))


def _vae(name: str, out: Path, study: Study, vaes: Path | None) -> tuple[Encode, Decode]:
    """A VAE that is trained in a folder of `vaes` or `out`, unless it is there."""
    cell = _cell(name, study)
    run = open_run(vae_part(cell.experiment), vaes / cell.vae if vaes else out / "vae")
    for stage in ("video", "decoder"):
        if run.steps(stage) and not run.finished(stage):
            with run.lock(stage):
                train_stage(run, stage)
    model = load(run.folder(run.last_vae_stage()) / "model")

    def encode(video: np.ndarray) -> dict[str, np.ndarray]:
        parts = [(model.posterior(batch), count) for batch, count in padded_batches(video, BATCH)]
        join = lambda part: np.concatenate([np.asarray(getattr(p, part))[:n] for p, n in parts])  # noqa: E731
        return {"mean": join("mean"), "logvar": join("logvar")}

    def decode(latents: np.ndarray) -> np.ndarray:
        return np.concatenate([np.asarray(to_uint8(model.decode(b)))[:n] for b, n in padded_batches(latents, BATCH)])

    return encode, decode


def _code(name: str, clips: Clips) -> tuple[Encode, Decode]:
    """A code without training: 12 numbers for a block of 4 frames, or the first one, of 8 x 8 pixels."""
    frames, height, width = clips.video.shape[1:4]
    if (frames - 1) % GROUP or height % BLOCK or width % BLOCK:
        raise ConfigError(f"expected 1 + {GROUP}n frames with sides that {BLOCK} divides, got {clips.video.shape[1:4]}")
    analyse, synthesise = {"pooled": (_pool, _unpool), "dct": (_dct, _undct)}[name]

    def encode(video: np.ndarray) -> dict[str, np.ndarray]:
        first = np.repeat(video[:, :1], GROUP - 1, axis=1)
        x = np.concatenate([first, video], axis=1) / np.float32(127.5) - 1
        n, t = x.shape[:2]
        x = x.reshape(n, t // GROUP, GROUP, height // BLOCK, BLOCK, width // BLOCK, BLOCK, 3)
        return {"mean": analyse(x.transpose(0, 1, 3, 5, 2, 4, 6, 7)).astype(np.float32)}  # n g h w z

    def decode(latents: np.ndarray) -> np.ndarray:
        x = synthesise(latents).transpose(0, 1, 4, 2, 5, 3, 6, 7)  # n g f h b w b c
        x = x.reshape(len(x), -1, height, width, 3)
        x = np.concatenate([x[:, :GROUP].mean(axis=1, keepdims=True), x[:, GROUP:]], axis=1)
        return np.round((np.clip(x, -1, 1) + 1) * 127.5).astype(np.uint8)

    return encode, decode


def _pool(x: np.ndarray) -> np.ndarray:
    """Blocks `(n, g, h, w, 4, 8, 8, 3)` -> means over their frames and quarters, `(n, g, h, w, 12)`."""
    half = BLOCK // 2
    x = x.reshape(*x.shape[:5], 2, half, 2, half, 3).mean(axis=(4, 6, 8))
    return x.reshape(*x.shape[:4], -1)


def _unpool(z: np.ndarray) -> np.ndarray:
    x = z.reshape(*z.shape[:4], 1, 2, 2, 3).repeat(BLOCK // 2, axis=5).repeat(BLOCK // 2, axis=6)
    return x.repeat(GROUP, axis=4)


@functools.cache
def _lowest() -> tuple[np.ndarray, ...]:
    """Indices of the 12 coefficients of a block that are kept: of every colour the four of lowest frequency."""
    t, y, x = (axis.ravel() for axis in np.indices((GROUP, BLOCK, BLOCK)))
    order = np.lexsort((x, y, t, t + y + x))[:4]
    colour = np.repeat(np.arange(3), 4)
    return (*(np.tile(axis[order], 3) for axis in (t, y, x)), colour)


def _dct(x: np.ndarray) -> np.ndarray:
    """Blocks -> their 12 lowest coefficients of the orthonormal DCT over time and space."""
    return dctn(x, axes=(4, 5, 6), norm="ortho")[(..., *_lowest())]


def _undct(z: np.ndarray) -> np.ndarray:
    x = np.zeros((*z.shape[:4], GROUP, BLOCK, BLOCK, 3))
    x[(..., *_lowest())] = z
    return idctn(x, axes=(4, 5, 6), norm="ortho")
