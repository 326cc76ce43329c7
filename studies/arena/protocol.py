"""What every entry has in common: clips, transformer, schedule and seeds; and the files between the steps, checked."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from pv_vae_jax.data.sources import open_source
from pv_vae_jax.data.synthetic import families_of
from pv_vae_jax.evaluation.features import FeatureError
from pv_vae_jax.evaluation.latent_sets import read_latents
from pv_vae_jax.storage import write_json
from pv_vae_jax.typing import ConfigError

VERSION = 1  # of the protocol: scores of other versions cannot be compared
WORLD = "plain:bounce,orbit,fall,swing"
CLIPS = (
    "57e8dd7f9a7efb01"  # hash of the clips of `python -m studies.arena clips OUT`, which stored entries have encoded
)
NO_NOISE = -30.0  # log variance of an encoder without a posterior
MOST_TOKENS = 1_280  # latent positions of a clip


@dataclasses.dataclass(frozen=True)
class Track:
    """The transformer that every entry of a track is given.

    Attributes:
      depth, width, heads: of Latte.
      steps, batch_size, learning_rate: of its training, by Muon.
      seeds: of which each trains a transformer of its own.
      samples: generated clips of each.
      sampling_steps: Euler steps of a sample, without guidance.
    """

    depth: int = 6
    width: int = 64
    heads: int = 4
    steps: int = 2_400
    batch_size: int = 32
    learning_rate: float = 6e-3
    seeds: tuple[int, ...] = (0, 1, 2)
    samples: int = 512
    sampling_steps: int = 32


TRACKS = {
    "cpu": Track(),
    "gpu": Track(depth=12, width=384, heads=6, steps=20_000, batch_size=64, learning_rate=3e-3, samples=2_048),
    "tiny": Track(depth=2, width=8, heads=2, steps=3, batch_size=4, seeds=(0,), samples=8, sampling_steps=2),
}


def array_hash(*arrays: np.ndarray) -> str:
    """16 hexadecimal digits of types, shapes and values, whatever the file that holds them."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Clips:
    """The clips that entries encode: first those to train on, then the held-out ones.

    Attributes:
      video: `(n, t, H, W, 3)` uint8.
      label: `(n,)` index of `names`.
      manifest: what they are: protocol, source, names, train, test, hash.
    """

    video: np.ndarray
    label: np.ndarray
    manifest: dict[str, Any]

    @property
    def train(self) -> slice:
        """The rows to train on."""
        return slice(0, self.manifest["train"])

    @property
    def test(self) -> slice:
        """The rows that are held out."""
        return slice(self.manifest["train"], len(self.video))

    @property
    def laws(self) -> tuple[str, ...]:
        """The laws of motion by which clips are scored; none for clips of a folder."""
        return families_of(self.manifest["source"]) or ()


def write_clips(
    out: Path, source: str = WORLD, *, frames: int = 17, size: int = 24, train: int = 4_096, test: int = 512
) -> Clips:
    """Write `clips.npz` and `manifest.json` to `out`: the same arrays wherever it runs.

    Args:
      out: folder to create.
      source: the world, or a folder of videos.
      frames, size: of a clip.
      train, test: number of clips; a folder may have fewer.
    """
    video, label, counts, names = [], [], [], ()
    for split, most in (("train", train), ("test", test)):
        found = open_source(source, frames=frames, size=size, split=split, clips=most, random=False)
        names, counts = found.class_names, [*counts, min(most, len(found))]
        for i in range(counts[-1]):
            item = found[i]
            video.append(np.asarray(item["video"]))
            label.append(item["label"])
    arrays = np.stack(video), np.array(label, np.int32)
    name = source if families_of(source) else Path(source).name
    facts = {"protocol": VERSION, "source": name, "names": list(names), "train": counts[0], "test": counts[1]}
    out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out / "clips.npz", video=arrays[0], label=arrays[1])
    clips = Clips(*arrays, facts | {"hash": array_hash(*arrays)})
    write_json(out / "manifest.json", clips.manifest)  # last: without it the folder is unfinished
    return clips


def read_clips(folder: Path) -> Clips:
    """The clips of a folder by `write_clips`.

    Raises:
      ConfigError: they are of another protocol, or are not those that were written.
    """
    if not (folder / "manifest.json").exists():
        raise ConfigError(f"{folder} has no manifest.json: write clips by `python -m studies.arena clips {folder}`")
    manifest = json.loads((folder / "manifest.json").read_text())
    if manifest.get("protocol") != VERSION:
        raise ConfigError(f"{folder} is of protocol {manifest.get('protocol')}, expected {VERSION}: write it again")
    arrays = load_arrays(folder / "clips.npz", "video", "label")
    if (found := array_hash(*arrays)) != manifest["hash"]:
        raise ConfigError(f"{folder / 'clips.npz'} has hash {found}, expected {manifest['hash']}: write it again")
    return Clips(*arrays, manifest)


def load_arrays(path: Path, *names: str) -> list[np.ndarray]:
    """Arrays of an `.npz` file, which never runs code.

    Raises:
      ConfigError: there is no such file, or it lacks one of them.
    """
    if not path.exists():
        raise ConfigError(f"{path} does not exist: the step before writes it, see docs/arena.md")
    try:
        with np.load(path, allow_pickle=False) as file:
            return [file[name] for name in names]
    except (KeyError, ValueError, OSError) as error:
        raise ConfigError(f"expected the arrays {', '.join(names)} in {path}: {error}") from error


def load_latents(path: Path, clips: Clips) -> dict[str, np.ndarray]:
    """`mean` and `logvar` `(n, g, h, w, z)` of all clips; without a log variance, that of a posterior without noise.

    Raises:
      ConfigError: they are not latents of these clips, or too many for the transformer.
    """
    if not path.exists():
        raise ConfigError(f"{path} does not exist: encode the clips and save them there, see docs/arena.md")
    try:
        found = read_latents(path)
    except FeatureError as error:
        raise ConfigError(str(error)) from error
    mean, count = np.asarray(found["mean"], np.float32), len(clips.video)
    if len(mean) != count:
        raise ConfigError(
            f"expected latents of all {count} clips in their order (train, then test), got {len(mean)} in {path}"
        )
    if (tokens := int(np.prod(mean.shape[1:4]))) > MOST_TOKENS:
        raise ConfigError(f"expected at most {MOST_TOKENS} latent positions a clip, got {tokens}: fold some into z")
    if not mean[clips.train].std():
        raise ConfigError(f"all latents of {path} are equal: encode the clips again")
    logvar = np.asarray(found["logvar"], np.float32) if "logvar" in found else np.full_like(mean, NO_NOISE)
    return {"mean": mean, "logvar": logvar}


def load_video(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The array `video` of a file, of this shape and uint8.

    Raises:
      ConfigError: it is not there, or is something else.
    """
    (video,) = load_arrays(path, "video")
    if video.shape != shape or video.dtype != np.uint8:
        raise ConfigError(f"expected video {shape} uint8 in {path}, got {video.shape} {video.dtype}: decode it again")
    return video
