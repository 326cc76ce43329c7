"""Clips in ArrayRecord shards, as `pv-vae prepare` writes them.

A split is a folder. Shard `i` is `0000i.array_record` (the clips) and then `0000i.json` (their names, lengths and
labels, and what was skipped). `manifest.json` sums the shards up and is written last: without it the split is
unfinished. A record is a safetensors blob of `video`, an H.264 MP4 file with frequent key frames, and `label`.
"""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from pv_vae_jax.data.clips import LazyClip, Reader
from pv_vae_jax.data.frame_size import FrameSize
from pv_vae_jax.data.listing import NoVideosError
from pv_vae_jax.data.shards import BrokenRecordError, Shards
from pv_vae_jax.data.skip_log import SkipLog
from pv_vae_jax.data.video_container import EncodedVideo
from pv_vae_jax.data.video_reading import read_video

FORMAT = "pv_vae_jax clips 1"
MANIFEST_KEYS, SHARD_KEYS = {"class_names", "hash", "shards"}, {"name", "clips", "bytes", "lengths"}


def pack(video: bytes, label: int) -> bytes:
    """The record of an encoded clip and its class."""
    return save({"video": np.frombuffer(video, np.uint8), "label": np.asarray(label, np.int32)})


def unpack(record: bytes) -> tuple[bytes, int]:
    """`(video, label)` of a record.

    Raises:
      BrokenRecordError: it is not such a record.
    """
    try:
        tensors = load(record)
        return tensors["video"].tobytes(), int(tensors["label"])
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise BrokenRecordError(f"not a record of a clip ({error})") from error


def is_prepared(folder: Path, below: set[str]) -> bool:
    """Whether `pv-vae prepare` made this folder, finished or not; `below` names its sub-folders."""
    return any((folder / split / "key.json").is_file() for split in below & {"train", "test"})


def read_manifest(folder: Path) -> dict:
    """The manifest of the prepared split in `folder`.

    Raises:
      NoVideosError: the split is missing, unfinished, damaged, or of another version.
    """
    path = folder / "manifest.json"
    if not folder.is_dir():
        raise NoVideosError(
            f"{folder.parent} was prepared without the split {folder.name}: add it with --split={folder.name}"
        )
    if not path.is_file():
        raise NoVideosError(f"{folder} is unfinished: run the same pv-vae prepare again, it continues where it stopped")
    try:
        manifest = json.loads(path.read_text())
        found = manifest.get("format")
        if found == FORMAT:
            _check(manifest)
    except (ValueError, AttributeError, TypeError) as error:
        raise NoVideosError(
            f"{path} is damaged ({error}): run the same pv-vae prepare again, it keeps the shards and rewrites it"
        ) from error
    if found != FORMAT:
        raise NoVideosError(f"{path} has format {found!r}, this version reads {FORMAT!r}: prepare {folder} again")
    return manifest


def _check(manifest: dict) -> None:
    """Raise ValueError (or AttributeError, if parts are not mappings) unless a manifest has the keys that are read."""
    for part, keys in ((manifest, MANIFEST_KEYS), *((shard, SHARD_KEYS) for shard in manifest.get("shards", ()))):
        if lost := keys - part.keys():
            raise ValueError(f"{', '.join(sorted(lost))} missing")
    if any(shard["clips"] != len(shard["lengths"]) for shard in manifest["shards"]):
        raise ValueError("clips and lengths of a shard differ in number")


class RecordReader(Reader):
    """The clips of a prepared split, resized by area to `size`.

    Args:
      folder: prepared folder.
      split: `train` or `test`.
      index, span: not used, as the manifest of the split says what it holds.
      size, log: as for `Reader`.

    Attributes:
      shards: the records.
      rate: frames a second, if the clips were prepared at one rate.

    Raises:
      NoVideosError: the split is missing, unfinished or damaged.
      DamagedDataError: shards are missing or short.
    """

    unit, allowed = "clips", "max_damaged_records"
    remedy = "run the same pv-vae prepare again, which makes missing and short shards anew (remove other damaged ones)"

    def __init__(
        self, folder: Path, split: str, index: Any = None, *, size: FrameSize, span: int = 1, log: SkipLog | None = None
    ):
        folder = folder / split
        manifest = read_manifest(folder)
        super().__init__(folder, manifest["class_names"], size, log)
        settings, least = manifest.get("settings", {}), min(size.height, size.width)
        self.rate = settings.get("fps") or None
        if (side := settings.get("short_side", least)) < least:
            self.log.say(f"{folder}: clips prepared with --short_side={side} are enlarged to data.size {size}")
        shards = manifest["shards"]
        self.shards = Shards([folder / shard["name"] for shard in shards], [shard["clips"] for shard in shards])
        lengths = []
        for shard, path in zip(shards, self.shards.paths, strict=True):
            intact = self._intact(path, shard)
            lengths += [n if intact else 0 for n in shard["lengths"]]
        self.lengths = np.asarray(lengths)
        self.check_damage()

    def _intact(self, path: Path, shard: dict) -> bool:
        found, size = path.stat().st_size if path.is_file() else None, shard["bytes"]
        if found != size:
            reason = "the file is missing" if found is None else f"{found} bytes instead of {size}"
            self.skip(path.name, reason, videos=shard["clips"])
        return found == size

    def __len__(self) -> int:
        return len(self.lengths)

    def open(self, index: int) -> tuple[LazyClip, int]:
        """Record `index` and its label."""
        data, label = unpack(self.shards[index])
        file = EncodedVideo(f"{self.folder} record {index}", data)
        read = functools.partial(read_video, file, resize=self.size)
        return LazyClip(int(self.lengths[index]), self.rate, read), label

    def name(self, index: int) -> str:
        """Name of record `index`."""
        return f"record {index}"
