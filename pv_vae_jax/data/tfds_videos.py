"""Videos or images of a prepared TensorFlow dataset in ArrayRecord, read without TensorFlow (extra `tfds`)."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pv_vae_jax.data.clips import crop
from pv_vae_jax.data.listing import NoVideosError, SplitIndex, VideoEntry, summarize
from pv_vae_jax.data.skips import SkipLog
from pv_vae_jax.data.video_files import BrokenVideoError, resize

TFDS = "TFDS"  # how listings of such datasets begin


class TFDSVideos:
    """Clips from the feature `video` `(t, h, w, 3)` uint8, or frames from `image` `(h, w, 3)`, of a prepared dataset.

    The folder is `.../NAME/CONFIG/VERSION`, made by `tfds build --file_format=array_record`. An example that cannot be
    read, or is too short, is named, counted and replaced by the next that can.

    Attributes:
      class_names: of the feature `label`; the dataset's name if there is none.
      skipped: example -> why it could not be used.
      replaced: as of `windows.Windowed`.
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
        self.folder, self.frames, self.size, self.stride, self.random = Path(folder), frames, size, stride, random
        self.crop = crop if random else "centre"
        self._examples, self.feature = open_examples(self.folder, split)
        self.class_names = classes(self.folder)
        total = len(self._examples)
        self._length = total if random or clips is None else min(clips, total)
        self.skipped: dict[str, str] = {}
        self.replaced = set[int]()
        self._lock, self._log = threading.Lock(), log or SkipLog()

    @property
    def span(self) -> int:
        """Frames from the first to the last frame of a clip."""
        return (self.frames - 1) * self.stride + 1

    def __len__(self) -> int:
        return self._length

    def clip(self, index: int, rng: np.random.Generator) -> dict:
        """A window of an example, from a random start, or from its first frame where the source is not random."""
        if self.feature == "image" and self.frames > 1:
            raise NoVideosError(f"{self.folder} holds images, and this stage trains on clips: set its images=True")
        place = rng.random()
        return self._read(index, lambda n: int(place * (n - self.span + 1)) if self.random else 0, self.frames, rng)

    def image(self, index: int, rng: np.random.Generator) -> dict:
        """A random frame of an example."""
        place = rng.random()
        return self._read(index, lambda n: int(place * n), 1, rng)

    def _read(self, index: int, start, count: int, rng: np.random.Generator) -> dict:
        corner = rng.random(2) if self.crop == "random" else None
        span = (count - 1) * self.stride + 1
        for step in range(len(self._examples)):
            i = (index + step) % len(self._examples)
            try:
                video, label = read_example(self._examples, self.feature, i)
                if len(video) < span:
                    raise BrokenVideoError(f"{len(video)} frames, a clip spans {span}")
            except BrokenVideoError as error:
                self._skip(f"example {i}", error)
                continue
            if i != index and not self.random:
                self.replaced.add(index)
            first = start(len(video))
            video = np.stack([resize(frame, self.size) for frame in video[first : first + span : self.stride]])
            video = np.ascontiguousarray(crop(video, self.size, corner))
            return {"video": video, "label": np.int32(label)}
        raise NoVideosError(f"none of the {len(self._examples)} examples of {self.folder}: {summarize(self.skipped)}")

    def _skip(self, name: str, error: Exception) -> None:
        with self._lock:
            if name not in self.skipped:
                self.skipped[name] = str(error)
                self._log.skip(f"{self.folder} {name}", error)


def tensorflow_dataset(folder: str | Path, split: str) -> SplitIndex:
    """The examples of a split as a listing for `prepare`, each an `Item` of the folder, `SPLIT/NUMBER`.

    Labels are read with the examples.

    Raises:
      NoVideosError, ImportError: as `open_examples`.
    """
    folder = Path(folder)
    info, name = _info(folder), _split(folder, split)
    count = len(open_examples(folder, split)[0])
    items = tuple(VideoEntry(folder, f"{name}/{i:07d}") for i in range(count))
    return SplitIndex(f"{TFDS} {info.get('name')} {info.get('version')}", classes(folder), items)


def read_item(item: VideoEntry) -> tuple[np.ndarray, int]:
    """`(t, h, w, 3)` uint8 and label of an item of `tensorflow_dataset`.

    Raises:
      BrokenVideoError: it cannot be read.
    """
    split, _, number = item.name.partition("/")
    return read_example(*open_examples(item.path, split), int(number))


@functools.lru_cache(maxsize=8)
def open_examples(folder: Path, split: str) -> tuple[Sequence[dict], str]:
    """The examples of a split by index, and which feature holds the pictures: `video` or `image`.

    Raises:
      NoVideosError: the folder, or the split, is not there, or has no random access or no pictures.
      ImportError: tfds is missing; the message names the extra.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            "prepared TensorFlow datasets need tfds: pip install tensorflow-datasets (the extra [tfds] holds it)"
        ) from error
    form = _info(folder).get("fileFormat", "tfrecord")
    if form != "array_record":
        raise NoVideosError(
            f"{folder} is stored as {form}, which has no random access: build it with tfds build "
            "--file_format=array_record"
        )
    split = _split(folder, split)
    try:
        builder = tfds.builder_from_directory(str(folder))
        keys = set(builder.info.features)
        feature = next((key for key in ("video", "image") if key in keys), None)
        if feature is None:
            raise NoVideosError(f"{folder} has the features {', '.join(sorted(keys))}: none is 'video' or 'image'")
        return builder.as_data_source(split=split), feature
    except NoVideosError:
        raise
    except (ValueError, OSError, RuntimeError, AttributeError) as error:
        raise NoVideosError(f"{folder} cannot be opened as a prepared TensorFlow dataset: {error}") from error


def read_example(examples: Sequence[dict], feature: str, index: int) -> tuple[np.ndarray, int]:
    """`(t, h, w, 3)` uint8 and label of an example; an image is one frame.

    Raises:
      BrokenVideoError: it cannot be read, or is of another kind.
    """
    try:
        example = examples[index]
        video = np.asarray(example[feature])
        label = int(example.get("label", 0))
    except (ValueError, RuntimeError, OSError, KeyError, TypeError) as error:
        raise BrokenVideoError(str(error)) from error
    video = video[None] if feature == "image" else video
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or not video.size:
        raise BrokenVideoError(f"expected (t, h, w, 3) uint8, got {video.shape} {video.dtype}")
    return video, label


def classes(folder: Path) -> tuple[str, ...]:
    """Names of the feature `label`, from `label.labels.txt`; the dataset's name if it has none."""
    path = folder / "label.labels.txt"
    names = tuple(line for line in path.read_text().splitlines() if line) if path.is_file() else ()
    return names or (_info(folder).get("name", folder.name),)


def _split(folder: Path, split: str) -> str:
    """The name that the dataset has for a split: many call it `validation` what others call `test`."""
    names = [s["name"] for s in _info(folder).get("splits", [])]
    if split == "test" and "test" not in names and "validation" in names:
        return "validation"
    if split not in names:
        raise NoVideosError(f"{folder} has no split {split}, only {', '.join(names)}")
    return split


def _info(folder: Path) -> dict:
    try:
        return json.loads((folder / "dataset_info.json").read_text())
    except (OSError, ValueError) as error:
        raise NoVideosError(f"{folder / 'dataset_info.json'} is missing or damaged ({error})") from error
