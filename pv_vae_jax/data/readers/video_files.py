"""Video files, as they are (extra `video`)."""

import functools
from pathlib import Path

import numpy as np

from pv_vae_jax.data.clips import LazyClip, Reader, TooShortError
from pv_vae_jax.data.frame_size import FrameSize
from pv_vae_jax.data.listing import NoVideosError, SplitIndex, check_uncut, summarize
from pv_vae_jax.data.skip_log import SkipLog
from pv_vae_jax.data.video_container import SUFFIXES, BrokenVideoError, probe
from pv_vae_jax.data.video_reading import read_video


class VideoFiles(Reader):
    """The video files of a split, resized by area to `size`.

    Subclasses name other functions for `probe` and `read`, which take a path and the arguments of `read_video`.

    Args:
      folder, size, log: as for `Reader`.
      split: `train` or `test`, used in messages.
      index: files of the split.
      span: files of fewer frames are skipped.

    Attributes:
      paths, rates: files that are long enough, and their frames a second.

    Raises:
      NoVideosError: no file can be used, or the entries are parts of files.
      DamagedDataError: too many files are damaged.
    """

    unit, cached = "files", True
    probe, read = staticmethod(probe), staticmethod(read_video)

    def __init__(
        self, folder: Path, split: str, index: SplitIndex, *, size: FrameSize, span: int = 1, log: SkipLog | None = None
    ):
        super().__init__(folder, index.class_names, size, log)
        check_uncut(folder, index)
        self.absent, self.passed_over, self.listed = index.absent, index.passed_over, len(index.items)
        self.paths: list[Path] = []
        labels, lengths, self.rates, small, longest = [], [], [], 0, 0
        for entry in index.items:
            try:
                info = self.probe(entry.path)
                longest = max(longest, info.frames)
                if info.frames < span:
                    raise TooShortError(f"{entry.path}: {info.frames} frames, but a clip spans {span}")
            except (BrokenVideoError, OSError) as error:
                self.skip(entry.path, error)
                continue
            self.paths.append(entry.path)
            labels.append(entry.label)
            lengths.append(info.frames)
            self.rates.append(info.fps)
            small += size.enlarges(info.height, info.width)
        if not self.paths:
            raise NoVideosError(self._no_videos(split, len(index.items)), longest)
        self.check_damage()
        self.labels, self.lengths = np.asarray(labels, np.int32), np.asarray(lengths)
        if self.skipped:
            self.log.say(f"{folder}: {len(self.skipped)} of {len(index.items)} {self.unit} skipped")
        if small:
            self.log.say(f"{folder}: {small} of {len(self.paths)} {self.unit} are enlarged to data.size {size}")

    def _no_videos(self, split: str, total: int) -> str:
        if self.skipped:
            return f"none of the {total} {self.unit} of {self.folder} ({split}) can be used: {summarize(self.skipped)}"
        if split == "test":
            return f"{self.folder} holds no clip for testing: add a second video, or sub-folders train and test"
        return f"{self.folder} holds no video files ({', '.join(SUFFIXES)}), neither directly nor in sub-folders"

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, index: int) -> tuple[LazyClip, int]:
        """File `index` and its label."""
        path = self.paths[index]
        read = functools.partial(self.read, path, resize=self.size)
        return LazyClip(int(self.lengths[index]), self.rates[index], read), int(self.labels[index])

    def name(self, index: int) -> Path:
        """Path of file `index`."""
        return self.paths[index]
