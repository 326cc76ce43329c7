"""Clips that a program passes to training, as a source."""

from typing import Any

import numpy as np

from pv_vae_jax.data.frame_size import FrameSize
from pv_vae_jax.data.listing import NoVideosError
from pv_vae_jax.data.pipeline import Elements
from pv_vae_jax.data.transforms import RandomWindow, ResizeCrop


class GivenClips:
    """Elements `{"video": ..., "label": int}` of a program, whose labels are checked.

    Attributes:
      class_names: class names in label order.
      features: numbers of a frame in the `features` of an element; 0 leaves them out.

    Raises:
      NoVideosError: there are no clips.
    """

    def __init__(self, clips: Elements, class_names: tuple[str, ...], features: int = 0):
        if not len(clips):
            raise NoVideosError("expected clips, got none: pass a data set with at least one")
        self.clips, self.class_names, self.features = clips, class_names, features

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Element `index`.

        Raises:
          ValueError: its label is not that of a class, or it lacks features.
        """
        element: Any = self.clips[index]
        label = int(element.get("label", 0))
        if not 0 <= label < len(self.class_names):
            raise ValueError(
                f"clip {index}: expected a label below {len(self.class_names)}, got {label}: name every class in "
                "data.class_names"
            )
        clip = {"video": element["video"], "label": np.int32(label)}
        if not self.features:
            return clip
        features = np.asarray(element.get("features", ()), np.float32)
        if features.shape[1:] != (self.features,):
            raise ValueError(
                f"clip {index}: expected features (t, {self.features}), got {features.shape}: see data.features"
            )
        return clip | {"features": features}


class GivenWindows(GivenClips):
    """The first window of each clip, cut at the centre: what evaluation scores.

    Args:
      clips, class_names: as for `GivenClips`.
      window, size: length and size of the windows.
      limit: largest number of clips.
    """

    def __init__(
        self, clips: Elements, class_names: tuple[str, ...], *, window: RandomWindow, size: FrameSize, limit: int
    ):
        super().__init__(clips, class_names)
        self._window, self._limit = window, limit
        self._fit = ResizeCrop(size.height, size.width, size.fit)

    def __len__(self) -> int:
        return min(len(self.clips), self._limit)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Window `index`. Raises ValueError as `GivenClips`, and as the transforms do."""
        element = self._window.window(super().__getitem__(index), 0.0)
        return self._fit.random_map(element, np.random.default_rng(0))
