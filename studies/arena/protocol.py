"""What every entry has in common: clips, transformer, schedule and seeds; and the files between the steps, checked."""

import dataclasses
import hashlib
import json
import re
import zipfile
import zlib
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
# The clips of `python -m studies.arena clips OUT`, which stored entries have encoded, and the laws that they keep.
MANIFEST = {
    "protocol": VERSION,
    "source": WORLD,
    "names": ["bounce", "orbit", "fall", "swing"],
    "train": 4_096,
    "test": 512,
    "hash": "57e8dd7f9a7efb01",
}
ENDS = {"real": 1.0, "shuffled": 0.0}
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


PUBLIC = ("cpu", "gpu")  # tracks whose entries are stored; `tiny` tries the steps


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

    Raises:
      ConfigError: there is no such world, or `out` holds other clips.
    """
    video, label, counts, names = [], [], [], ()
    for split, most in (("train", train), ("test", test)):
        try:
            found = open_source(source, frames=frames, size=size, split=split, clips=most, random=False)
        except ValueError as error:
            raise ConfigError(f"--data: {error}") from error
        names, counts = found.class_names, [*counts, min(most, len(found))]
        for i in range(counts[-1]):
            item = found[i]
            video.append(np.asarray(item["video"]))
            label.append(item["label"])
    arrays = np.stack(video), np.array(label, np.int32)
    name = source if families_of(source) else Path(source).name
    facts = {"protocol": VERSION, "source": name, "names": list(names), "train": counts[0], "test": counts[1]}
    clips = Clips(*arrays, facts | {"hash": array_hash(*arrays)})
    if (out / "manifest.json").exists():
        if (old := _manifest(out)) != clips.manifest:
            raise ConfigError(f"{out} holds other clips ({old.get('train')} + {old.get('test')}): name another folder")
        return read_clips(out)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file: name a folder for the clips")
    out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out / "clips.npz", video=arrays[0], label=arrays[1])
    write_json(out / "manifest.json", clips.manifest)  # last: without it the folder is unfinished
    return clips


def read_clips(folder: Path) -> Clips:
    """The clips of a folder by `write_clips`.

    Raises:
      ConfigError: they are of another protocol, or are not those that were written.
    """
    if not (folder / "manifest.json").exists():
        raise ConfigError(f"{folder} has no manifest.json: write clips by `python -m studies.arena clips {folder}`")
    manifest = _manifest(folder)
    if manifest.get("protocol") != VERSION:
        raise ConfigError(f"{folder} is of protocol {manifest.get('protocol')}, expected {VERSION}: write it again")
    arrays = load_arrays(folder / "clips.npz", "video", "label")
    if (found := array_hash(*arrays)) != manifest["hash"]:
        raise ConfigError(f"{folder / 'clips.npz'} has hash {found}, expected {manifest['hash']}: write it again")
    return Clips(*arrays, manifest)


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
        if missing := {"source", "names", "train", "test", "hash"} - set(manifest):
            raise ValueError(f"it lacks {min(missing)}")
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({error}): remove the folder and write the clips again") from error
    return manifest


def load_arrays(path: Path, *names: str) -> list[np.ndarray]:
    """Arrays of an `.npz` file, which never runs code.

    Raises:
      ConfigError: there is no such file, it is damaged, or it lacks one of them.
    """
    if not path.exists():
        raise ConfigError(f"{path} does not exist: {_MADE_BY.get(path.name.split('-')[0], 'see docs/arena.md')}")
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            return [file[name] for name in names]
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(f"expected the arrays {', '.join(names)} in {path}: {error}; write it again") from error


def check_name(name: str) -> str:
    """The name of an entry, which names its file as well.

    Raises:
      ConfigError: it has other characters.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}", name):
        raise ConfigError(f"an entry's name has up to 40 letters, digits, dots and dashes, got {name!r}: set --name")
    return name


_MADE_BY = {
    "sampled": "`python -m studies.arena train` draws it",
    "generated": "decode `latents` of the `sampled` file of this seed to it",
    "reconstructed.npz": "decode the held-out rows of `mean` to it",
    "clips.npz": "`python -m studies.arena clips` writes it",
}


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What a `sampled-SEED.npz` was drawn for; it is kept in the file.

    Attributes:
      latents: hash of the latents that were trained on, with the labels of their clips.
      track: name of the track.
      seed: of the transformer.
      rotated: whether it saw rotated latents.
    """

    latents: str
    track: str
    seed: int
    rotated: bool

    def text(self) -> str:
        """As it is kept."""
        return json.dumps(dataclasses.asdict(self) | {"protocol": VERSION, "settings": repr(TRACKS[self.track])})

    def check(self, path: Path, rotated: bool = True) -> dict[str, Any]:
        """Facts of the file `path`, if it was drawn for this.

        Args:
          path: `sampled-SEED.npz`.
          rotated: whether that must agree, too.

        Raises:
          ConfigError: it was drawn for something else; the message says for what.
        """
        (text,) = load_arrays(path, "drawn_for")
        try:
            found = json.loads(str(text))
        except ValueError as error:
            raise ConfigError(f"{path} was drawn by another version: remove it and run `train` again") from error
        wanted = json.loads(self.text())
        names = [name for name in wanted if found.get(name) != wanted[name] and (rotated or name != "rotated")]
        if names:
            name = names[0] if "track" not in names else "track"
            raise ConfigError(
                f"{path} was drawn for {name} {found.get(name)}, expected {wanted[name]}: "
                + ("give the same --track, or " if name == "track" else "")
                + "name another folder, or remove the file to draw it again"
            )
        return found


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
