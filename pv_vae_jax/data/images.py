"""Image files as clips of one frame, for the stage that trains on images (extra `video`: Pillow)."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path

import numpy as np

from pv_vae_jax.data.clips import crop
from pv_vae_jax.data.listing import NoVideosError, SplitIndex, summarize
from pv_vae_jax.data.skips import SkipLog
from pv_vae_jax.data.video_files import MAX_PIXELS, BrokenVideoError

SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".webp")
FORMATS = ("JPEG", "PNG", "BMP", "WEBP")  # by content. Pillow knows others, of which EPS starts Ghostscript


def read_image(path: str | Path, *, short_side: int | None = None) -> np.ndarray:
    """`(h, w, 3)` uint8 RGB, turned as its EXIF tag says, the short side averaged down to `short_side` pixels.

    Raises:
      FileNotFoundError: no such file.
      OSError: the system cannot read it.
      BrokenVideoError: it is no image, is cut off, or has more than `MAX_PIXELS` pixels.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError("image files need Pillow: pip install pillow (the extra [video] holds it)") from error
    if not Path(path).is_file():
        raise FileNotFoundError(f"no image file {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken files are reported by us, once
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"{image.height} x {image.width} pixels, more than {MAX_PIXELS}")
                if short_side:
                    image.draft("RGB", (short_side, short_side))  # JPEG: decode at a fraction that is no smaller
                image = ImageOps.exif_transpose(image).convert("RGB")
                if short_side:
                    scale = short_side / min(image.size)
                    width, height = (max(short_side, round(side * scale)) for side in image.size)
                    image = image.resize(
                        (width, height), Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
                    )
                return np.array(image)
    except Exception as error:  # Pillow's plug-ins raise whatever parsing damaged bytes raises (struct.error, ...)
        if isinstance(error, OSError) and error.errno:  # the system's; Pillow's own have no number
            raise
        raise BrokenVideoError(f"{path}: not readable as image ({type(error).__name__}: {error})") from error


class ImageFiles:
    """Clips of one frame. A file that cannot be read is named, counted and replaced by the next that can.

    Attributes:
      class_names: in label order.
      skipped: file -> why it could not be used.
    """

    def __init__(
        self,
        folder: Path,
        listing: SplitIndex,
        *,
        size: int,
        random: bool = True,
        clips: int | None = None,
        crop: str = "centre",
        log: SkipLog | None = None,
    ):
        if not listing.items:
            raise NoVideosError(f"{folder} holds no image files ({', '.join(SUFFIXES)})")
        self.folder, self.size, self.class_names = folder, size, listing.class_names
        self.crop = crop if random else "centre"
        self.items = listing.items if random or clips is None else listing.items[:clips]
        self.skipped: dict[Path, str] = {}
        self._lock, self._log = threading.Lock(), log or SkipLog()

    def __len__(self) -> int:
        return len(self.items)

    def image(self, index: int, rng: np.random.Generator) -> dict:
        """`{"video": (1, size, size, 3) uint8, "label": int32}`.

        Raises:
          NoVideosError: no file can be read.
        """
        corner = rng.random(2) if self.crop == "random" else None
        for step in range(len(self.items)):
            item = self.items[(index + step) % len(self.items)]
            if item.path in self.skipped:
                continue
            try:
                picture = read_image(item.path, short_side=self.size)
            except (BrokenVideoError, OSError) as error:
                self._skip(item.path, error)
                continue
            return {"video": np.array(crop(picture[None], self.size, corner)), "label": np.int32(item.label)}
        raise NoVideosError(
            f"none of the {len(self.items)} images of {self.folder} can be read: {summarize(self.skipped)}"
        )

    def clip(self, index: int, rng: np.random.Generator) -> dict:
        """Images make no clips.

        Raises:
          NoVideosError: always.
        """
        raise NoVideosError(
            f"{self.folder} holds images, and this stage trains on clips: give it videos, or set its images=True"
        )

    def _skip(self, path: Path, error: Exception) -> None:
        with self._lock:
            if path not in self.skipped:
                self.skipped[path] = str(error).removeprefix(f"{path}: ")
                self._log.skip(path, self.skipped[path])
