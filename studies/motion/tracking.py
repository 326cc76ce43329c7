"""The disc of the plain world, found in the pixels of a clip: where it is, and whether it is one."""

import dataclasses

import numpy as np
from scipy import ndimage

from pv_vae_jax.data.synthetic import CONTRAST, ZOOM

GROUND = 128  # the grey that the plain world is drawn on
FAINTEST = CONTRAST * np.sqrt(3)  # least distance of a disc's colour from the ground, in units of the whole range
SMALLEST = ZOOM * 0.12  # least radius of a disc, in units of the side


@dataclasses.dataclass(frozen=True)
class Tracks:
    """What moves in clips.

    Attributes:
      place: `(n, t, 2)` centre (y, x) in pixels, of the largest object of a frame; NaN where there is none.
      objects: `(n, t)` number of objects.
    """

    place: np.ndarray
    objects: np.ndarray

    @property
    def whole(self) -> np.ndarray:
        """`(n,)` bool: the clip shows one object in every frame."""
        return (self.objects == 1).all(axis=1)


def track(video: np.ndarray) -> Tracks:
    """Find the objects of `(n, t, H, W, 3)` uint8 clips: what differs from the ground, at least a quarter of a disc.

    A pixel belongs to an object if it differs by half of what the faintest disc does. The centre is the mean over the
    object and two pixels around it, weighted by the difference, so that soft edges count as far as they are covered.
    """
    n, t, height, width, _ = video.shape
    away = np.linalg.norm((video.astype(np.float32) - GROUND) / 255, axis=-1).reshape(n * t, height, width)
    flat = np.zeros((3, 3, 3), bool)
    flat[1] = True  # neighbours in a frame, not in time
    labels, count = ndimage.label(away > FAINTEST / 2, structure=flat)
    frame_of = np.zeros(count + 1, int)
    frame_of[labels] = np.arange(n * t)[:, None, None]
    around = ndimage.grey_dilation(labels, size=(1, 5, 5))
    weight = np.maximum(away - FAINTEST / 4, 0)  # without the noise of the ground
    y, x = np.mgrid[0:height, 0:width] + 0.5
    total = lambda where, value: np.bincount(where.ravel(), weights=value.ravel(), minlength=count + 1)  # noqa: E731
    near, own = (np.stack([total(where, weight * value) for value in (1, y, x)]) for where in (around, labels))
    mass, my, mx = np.where(near[0] > 0, near, own)  # neighbours on all sides may leave an object nothing around it
    inner = total(labels, away)
    large = inner >= 0.25 * FAINTEST * np.pi * (SMALLEST * min(height, width)) ** 2
    large[0] = False  # the ground
    objects = np.bincount(frame_of[large], minlength=n * t)
    place = np.full((n * t, 2), np.nan)
    for i in np.flatnonzero(large)[np.argsort(inner[large])]:  # the largest last
        place[frame_of[i]] = my[i] / mass[i], mx[i] / mass[i]
    return Tracks(place.reshape(n, t, 2), objects.reshape(n, t))
