"""Clips in ArrayRecord shards, as `pv-vae prepare` writes them, and the source that reads them.

A split is a folder. Shard `i` is `0000i.array_record` (clips) and `0000i.json` (what they are, what was skipped), the
second written after the first; `manifest.json` sums them up and is written last: without it the split is unfinished.
A record is a safetensors blob of `video`, the bytes of an H.264 MP4 file with frequent key frames, and `label`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from pv_vae_jax.data.clips import crop
from pv_vae_jax.data.listing import NoVideosError, summarize
from pv_vae_jax.data.shards import BrokenRecordError, Shards
from pv_vae_jax.data.skips import SkipLog
from pv_vae_jax.data.video_files import BrokenVideoError, EncodedVideo, read_video
from pv_vae_jax.data.windows import Windowed

FORMAT = "pv_vae_jax clips 1"
MANIFEST_KEYS, SHARD_KEYS = {"class_names", "hash", "shards"}, {"name", "clips", "bytes", "lengths"}


def pack(video: bytes, label: int) -> bytes:
    """A record of an encoded clip and its class."""
    return save({"video": np.frombuffer(video, np.uint8), "label": np.asarray(label, np.int32)})


def unpack(record: bytes) -> tuple[bytes, int]:
    """`(video, label)` of a record.

    Raises:
      BrokenRecordError: it is none.
    """
    try:
        tensors = load(record)
        return tensors["video"].tobytes(), int(tensors["label"])
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise BrokenRecordError(f"not a record of a clip ({error})") from error


def is_prepared(folder: Path) -> bool:
    """Whether `pv-vae prepare` made this folder, finished or not."""
    return any((folder / split / "key.json").is_file() for split in ("train", "test"))


def read_manifest(folder: Path) -> dict:
    """What `folder`, a split, holds.

    Raises:
      NoVideosError: it is unfinished, damaged, or of another version.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise NoVideosError(f"{folder} is unfinished: run the same pv-vae prepare again, it goes on where it stopped")
    try:
        manifest = json.loads(path.read_text())
        found = manifest.get("format")
        if found == FORMAT:
            _check(manifest)
    except (ValueError, AttributeError, TypeError) as error:
        raise NoVideosError(
            f"{path} is damaged ({error}): run the same pv-vae prepare again, it keeps the shards and writes this anew"
        ) from error
    if found != FORMAT:
        raise NoVideosError(f"{path} has format {found!r}, this version reads {FORMAT!r}: prepare {folder} again")
    return manifest


def _check(manifest: dict) -> None:
    """Raise ValueError, or whatever its parts raise, unless a manifest has the keys that are read here."""
    for part, keys in ((manifest, MANIFEST_KEYS), *((shard, SHARD_KEYS) for shard in manifest.get("shards", ()))):
        if lost := keys - part.keys():
            raise ValueError(f"no {', '.join(sorted(lost))}")


class RecordVideos(Windowed):
    """Clips from a prepared split. A record that cannot be read is named, counted and replaced by the next that can.

    Attributes:
      class_names: in label order.
      manifest: of the split.
      skipped: record or shard -> why it could not be used.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        frames: int,
        size: int,
        split: str = "train",
        stride: int = 1,
        random: bool = True,
        clips: int | None = None,
        crop: str = "centre",
        log: SkipLog | None = None,
    ):
        self.folder = Path(folder) / split
        self.frames, self.size, self.stride, self.random, self.crop = frames, size, stride, random, crop
        if not self.folder.is_dir():
            raise NoVideosError(f"{folder} was prepared without the split {split}: there is no {self.folder}")
        self.manifest = read_manifest(self.folder)
        self.class_names = tuple(self.manifest["class_names"])
        side = self.manifest.get("settings", {}).get("short_side", size)
        self.skipped: dict[str, str] = {}
        self.replaced = set()
        self._lock, self._log = threading.Lock(), log or SkipLog()
        if side < size:
            self._log.say(f"{self.folder}: clips prepared with --short_side={side} are enlarged to data.size {size}")
        shards = self.manifest["shards"]
        self._shards = Shards([self.folder / shard["name"] for shard in shards], [s["clips"] for s in shards])
        lengths = []
        for shard, path in zip(shards, self._shards.paths, strict=True):
            usable = self._whole(path, shard["bytes"])
            lengths += [n if usable else 0 for n in shard["lengths"]]
        self._lengths = np.asarray(lengths)
        self._windows = self._order(self._lengths, clips)
        if not self._windows:
            longest = int(self._lengths.max(initial=0))
            raise NoVideosError(
                f"no clip of {self.folder} has the {self.span} frames asked for, the longest has {longest}"
                + (f" ({summarize(self.skipped)})" if self.skipped else ""),
                longest,
            )

    def _read(self, record: int, start: Callable[[int], int], count: int, rng: np.random.Generator) -> tuple[dict, int]:
        corner = rng.random(2)  # drawn before reading: which record replaces a broken one changes no draw
        for step in range(len(self._lengths)):
            i = (record + step) % len(self._lengths)
            frames = int(self._lengths[i])
            if frames < self.span:
                continue
            try:
                data, label = unpack(self._shards[i])
                name = f"{self.folder} record {i}"
                first = min(start(frames), frames - 1 - (count - 1) * self.stride)
                file = EncodedVideo(name, data)
                video = read_video(file, short_side=self.size, start=first, count=count, stride=self.stride)
            except (BrokenRecordError, BrokenVideoError) as error:
                self._skip(f"record {i}", error)
                continue
            video = crop(video, self.size, corner if self.crop == "random" and self.random else None)
            return {"video": np.ascontiguousarray(video), "label": np.int32(label)}, i
        raise NoVideosError(
            f"none of the {len(self._lengths)} clips of {self.folder} can be read: {summarize(self.skipped)}"
        )

    def _whole(self, path: Path, size: int) -> bool:
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            self._skip(path.name, "the file is gone" if found is None else f"{found} bytes of {size}")
        return found == size

    def _skip(self, name: str, error: Exception | str) -> None:
        with self._lock:
            if name not in self.skipped:
                self.skipped[name] = str(error)
                self._log.skip(f"{self.folder} {name}", error)

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _lock=threading.Lock())
