"""Image files as videos of one frame, for training on images (extra `video`: Pillow)."""

import warnings
from pathlib import Path

import numpy as np

from pv_vae_jax.data.clips import LazyClip, Reader
from pv_vae_jax.data.exhaustion import raise_if_exhausted
from pv_vae_jax.data.frame_size import FrameSize
from pv_vae_jax.data.listing import SplitIndex
from pv_vae_jax.data.skip_log import SkipLog
from pv_vae_jax.data.video_container import MAX_PIXELS, BrokenVideoError
from pv_vae_jax.data.video_pixels import on_black

FORMATS = ("JPEG", "PNG", "BMP", "WEBP")  # by content. Among the others that Pillow reads, EPS starts Ghostscript


def read_image(path: str | Path, *, short_side: int | None = None, resize: FrameSize | None = None) -> np.ndarray:
    """Read an image file, turned as its EXIF tag says, alpha on black, resized by area averaging.

    Args:
      path: image file.
      short_side: length in pixels to which the shorter side is resized.
      resize: instead of `short_side`, a size: the image is resized to its `scaled`, and `cut` is left to the caller.

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
    size = resize or (FrameSize(short_side, short_side) if short_side else None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken files are reported by us, once
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"{image.height} x {image.width} pixels, more than {MAX_PIXELS}")
                if size:  # JPEG: decode at a fraction that is no smaller, whatever the rotation
                    image.draft("RGB", (side := max(size.height, size.width), side))
                image = ImageOps.exif_transpose(image)
                if image.mode[0] in "IF":  # grey of 16 bits, which Pillow would clip to 8
                    grey = np.clip(np.asarray(image, np.float32) / 257, 0, 255)
                    image = Image.fromarray(np.rint(grey).astype(np.uint8))
                elif image.has_transparency_data:
                    image = Image.fromarray(on_black(np.asarray(image.convert("RGBA"))))
                image = image.convert("RGB")
                if size:
                    height, width = size.scaled(image.height, image.width)
                    shrinks = height <= image.height and width <= image.width
                    rule = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
                    image = image.resize((width, height), rule)
                return np.array(image)
    except Exception as error:  # Pillow's plug-ins raise whatever parsing damaged bytes raises (struct.error, ...)
        raise_if_exhausted(error, path)
        if isinstance(error, OSError) and error.errno:  # a system error; Pillow's own have no number
            raise
        raise BrokenVideoError(f"{path}: not readable as image ({type(error).__name__}: {error})") from error


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width of an image file from its header, turned as its EXIF tag says. Raises as `read_image`."""
    try:
        from PIL import ExifTags, Image

        with Image.open(path, formats=FORMATS) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) > 4
            return (image.width, image.height) if turned else (image.height, image.width)
    except Exception:  # any, as in `read_image`, which says what is wrong
        return read_image(path).shape[:2]


class ImageFiles(Reader):
    """Image files as videos of one frame, resized to `size`.

    Attributes:
      entries: files of the split.
    """

    unit, images = "images", True

    def __init__(
        self, folder: Path, split: str, index: SplitIndex, *, size: FrameSize, span: int = 1, log: SkipLog | None = None
    ):
        super().__init__(folder, index.class_names, size, log)
        self.entries, self.passed_over = index.items, index.passed_over

    def __len__(self) -> int:
        return len(self.entries)

    def open(self, index: int) -> tuple[LazyClip, int]:
        """File `index` and its label."""
        entry = self.entries[index]
        read = lambda start, count, stride: read_image(entry.path, resize=self.size)[None]  # noqa: E731
        return LazyClip(1, None, read), entry.label

    def name(self, index: int) -> Path:
        """Path of file `index`."""
        return self.entries[index].path
