"""Videos or images of a prepared TensorFlow dataset in ArrayRecord, read without TensorFlow (extra `tfds`)."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pv_vae_jax.data.clips import LazyClip, Reader
from pv_vae_jax.data.exhaustion import raise_if_exhausted
from pv_vae_jax.data.frame_size import FrameSize
from pv_vae_jax.data.listing import NoVideosError, SplitIndex, VideoEntry
from pv_vae_jax.data.skip_log import SkipLog
from pv_vae_jax.data.video_container import BrokenVideoError
from pv_vae_jax.data.video_pixels import resize


class TFDSReader(Reader):
    """The examples of a prepared dataset, resized by area to `size`.

    The folder is `.../NAME/CONFIG/VERSION`, made by `tfds build --file_format=array_record`. An example's feature
    `video` is `(t, h, w, 3)` uint8, or `image` `(h, w, 3)`.

    Args:
      folder, size, log: as for `Reader`.
      split: `train` or `test`.
      index, span: not used, as labels and lengths are known after opening an example only.

    Raises:
      NoVideosError, ImportError: as `open_examples`.
    """

    unit = "examples"

    def __init__(
        self, folder: Path, split: str, index: Any = None, *, size: FrameSize, span: int = 1, log: SkipLog | None = None
    ):
        super().__init__(folder, classes(folder), size, log)
        self._examples, self.feature = open_examples(folder, split)
        self.images = self.feature == "image"

    def __len__(self) -> int:
        return len(self._examples)

    def open(self, index: int) -> tuple[LazyClip, int]:
        """Example `index` and its label. It is decoded here already; only resizing is left to reading."""
        video, label = read_example(self._examples, self.feature, index)

        def read(start: int, count: int | None, stride: int) -> np.ndarray:
            stop = None if count is None else start + (count - 1) * stride + 1
            return np.stack([resize(frame, self.size) for frame in video[start:stop:stride]])

        return LazyClip(len(video), None, read), label

    def name(self, index: int) -> str:
        """Name of example `index`."""
        return f"example {index}"


def is_dataset(folder: Path, below: set[str]) -> bool:
    """Whether `folder` is a prepared TensorFlow dataset."""
    return (folder / "dataset_info.json").is_file() and (folder / "features.json").is_file()


def tensorflow_dataset(folder: str | Path, split: str) -> SplitIndex:
    """The examples of a split, each an entry of the folder named `SPLIT/NUMBER`, for `pv-vae prepare`.

    Labels are read with the examples.

    Raises:
      NoVideosError, ImportError: as `open_examples`.
    """
    folder = Path(folder)
    info, name = _info(folder), _split(folder, split)
    count = len(open_examples(folder, split)[0])
    items = tuple(VideoEntry(folder, f"{name}/{i:07d}") for i in range(count))
    return SplitIndex(f"TFDS {info.get('name')} {info.get('version')}", classes(folder), items, kind="tfds")


def read_entry(entry: VideoEntry) -> tuple[np.ndarray, int]:
    """`(t, h, w, 3)` uint8 and label of an entry of `tensorflow_dataset`.

    Raises:
      BrokenVideoError: the example cannot be read.
    """
    split, _, number = entry.name.partition("/")
    return read_example(*open_examples(entry.path, split), int(number))


@functools.lru_cache(maxsize=8)
def open_examples(folder: Path, split: str) -> tuple[Sequence[dict], str]:
    """The examples of a split by index, and the feature that holds the frames: `video` or `image`.

    Raises:
      NoVideosError: the folder or split is missing, has no random access, or has no such feature.
      ImportError: tfds is missing; the message names the extra.
    """
    try:
        import tensorflow_datasets as tfds  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "prepared TensorFlow datasets need tfds: pip install tensorflow-datasets (the extra [tfds] holds it)"
        ) from error
    form = _info(folder).get("fileFormat", "tfrecord")
    if form != "array_record":
        raise NoVideosError(
            f"{folder} is stored as {form}, which has no random access: rebuild it with tfds build "
            "--file_format=array_record"
        )
    split = _split(folder, split)
    try:
        builder = tfds.builder_from_directory(str(folder))
        keys = set(builder.info.features)
        feature = next((key for key in ("video", "image") if key in keys), None)
        if feature is None:
            raise NoVideosError(f"{folder}: expected a feature 'video' or 'image', got {', '.join(sorted(keys))}")
        return builder.as_data_source(split=split), feature
    except NoVideosError:
        raise
    except (ValueError, OSError, RuntimeError, AttributeError) as error:
        raise NoVideosError(f"{folder} cannot be opened as a prepared TensorFlow dataset: {error}") from error


def read_example(examples: Sequence[dict], feature: str, index: int) -> tuple[np.ndarray, int]:
    """`(t, h, w, 3)` uint8 and label of an example; an image is one frame.

    Raises:
      BrokenVideoError: the example cannot be read, or has another shape.
    """
    try:
        example = examples[index]
        video = np.asarray(example[feature])
        label = int(example.get("label", 0))
    except (ValueError, RuntimeError, OSError, KeyError, TypeError) as error:
        raise_if_exhausted(error, f"example {index}")
        raise BrokenVideoError(str(error)) from error
    video = video[None] if feature == "image" else video
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or not video.size:
        raise BrokenVideoError(f"expected (t, h, w, 3) uint8, got {video.shape} {video.dtype}")
    return video, label


def classes(folder: Path) -> tuple[str, ...]:
    """Class names of the feature `label`, from `label.labels.txt`; the dataset's name if there is no such file."""
    path = folder / "label.labels.txt"
    names = tuple(line for line in path.read_text().splitlines() if line) if path.is_file() else ()
    return names or (_info(folder).get("name", folder.name),)


def _split(folder: Path, split: str) -> str:
    """The dataset's own name of a split: many call `validation` what others call `test`."""
    names = [s["name"] for s in _info(folder).get("splits", [])]
    if split == "test" and "test" not in names and "validation" in names:
        return "validation"
    if split not in names:
        raise NoVideosError(f"{folder} has no split {split}: it has {', '.join(names)}")
    return split


def _info(folder: Path) -> dict:
    try:
        return json.loads((folder / "dataset_info.json").read_text())
    except (OSError, ValueError) as error:
        raise NoVideosError(f"{folder / 'dataset_info.json'} is missing or damaged ({error})") from error
