"""Image files as videos of one frame, for training on images (extra `video`: Pillow)."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from pv_vae_jax.data.clips import LazyClip, Reader, SkipLog
from pv_vae_jax.data.listing import SplitIndex
from pv_vae_jax.data.video_reading import MAX_PIXELS, BrokenVideoError

FORMATS = ("JPEG", "PNG", "BMP", "WEBP")  # by content. Among the others that Pillow reads, EPS starts Ghostscript


def read_image(path: str | Path, *, short_side: int | None = None) -> np.ndarray:
    """Read an image file, rotated by its EXIF tag and resized to `short_side` pixels by area averaging.

    Returns:
      `(h, w, 3)` uint8 RGB.

    Raises:
      FileNotFoundError: there is no such file.
      OSError: the system cannot read it.
      BrokenVideoError: the file is not an image, is truncated, or has more than `MAX_PIXELS` pixels.
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
        if isinstance(error, OSError) and error.errno:  # a system error; Pillow's own have no number
            raise
        raise BrokenVideoError(f"{path}: not readable as image ({type(error).__name__}: {error})") from error


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width of an image file from its header, before any rotation. Raises as `read_image`."""
    try:
        from PIL import Image

        with Image.open(path, formats=FORMATS) as image:
            return image.height, image.width
    except Exception:  # any, as in `read_image`, which says what is wrong
        return read_image(path).shape[:2]


class ImageFiles(Reader):
    """Image files as videos of one frame, resized to the short side `size`.

    Attributes:
      entries: files of the split.
    """

    unit, images, draws_start = "images", True, False

    def __init__(
        self, folder: Path, split: str, index: SplitIndex, *, size: int, span: int = 1, log: SkipLog | None = None
    ):
        super().__init__(folder, index.class_names, size, log)
        self.entries = index.items

    def __len__(self) -> int:
        return len(self.entries)

    def open(self, index: int) -> LazyClip:
        """File `index`."""
        entry = self.entries[index]
        return LazyClip(1, entry.label, lambda start, count, stride: read_image(entry.path, short_side=self.size)[None])

    def name(self, index: int) -> Path:
        """Path of file `index`."""
        return self.entries[index].path
