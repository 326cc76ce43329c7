"""Exact scores of clips of the plain world: do they keep their law, how long, and with how many objects."""

import dataclasses

import numpy as np
from scipy.stats import ks_2samp

from pv_vae_jax.data.synthetic import ZOOM
from studies.motion.laws import fit, world_units
from studies.motion.tracking import Tracks, track

PIXEL = 1.0  # a clip keeps its law if no frame lies farther from it
WALK_SHARE = 0.98  # of reconstructed walks, the middle that counts as a walk, for each of its numbers


@dataclasses.dataclass(frozen=True)
class WalkBand:
    """What clips of `walk` have: the range of each number of `walk_numbers`, and the lengths of their steps.

    Of reconstructions, for no latents hold such steps as they are: a decoder smooths them, and none of its clips, of
    real latents or of drawn ones, moves like a real one.
    """

    low: np.ndarray
    high: np.ndarray
    lengths: np.ndarray


def walk_numbers(place: np.ndarray) -> np.ndarray:
    """`(n, 3)` of tracks `(n, t, 2)`: root mean square of a step, longest step, correlation of a step with the next."""
    step = np.diff(place, axis=1)
    length = np.linalg.norm(step, axis=-1)
    power = np.maximum(np.square(step).sum((1, 2)), 1e-12)
    echo = (step[:, 1:] * step[:, :-1]).sum((1, 2)) / power
    return np.stack([np.sqrt(np.square(length).mean(1)), length.max(1), echo], axis=1)


def walk_band(video: np.ndarray) -> WalkBand:
    """The band of clips `(n, t, H, W, 3)` uint8 of `walk`. If none has one object throughout, no clip is like them."""
    tracks = track(video)
    place = tracks.place[tracks.whole]
    if not len(place):
        return WalkBand(np.full(3, np.inf), np.full(3, -np.inf), np.zeros(0))
    low, high = np.quantile(walk_numbers(place), [(1 - WALK_SHARE) / 2, (1 + WALK_SHARE) / 2], axis=0)
    return WalkBand(low, high, np.linalg.norm(np.diff(place, axis=1), axis=-1).ravel())


def score_clips(video: np.ndarray, labels: np.ndarray, families: tuple[str, ...], band: WalkBand | None = None) -> dict:
    """Scores of `(n, t, H, W, 3)` uint8 clips that were asked to show `families[labels]`.

    Args:
      video: the clips.
      labels: `(n,)`.
      families: laws of motion; `walk` must be the only one.
      band: of reconstructed clips, for `walk`.

    Returns:
      `kept`, the primary score: the share of clips that show one object in all frames and keep their law within a
        pixel; for `walk`, whose steps are like those of the band. `frames`: mean number of first frames in which one
        object keeps the law. `one_object`: share of clips with one object throughout; `appear`, `vanish`: mean number
        of frames of a clip with more than one, and with none. With several laws `class`, the share whose nearest law is
        the one asked for, and `kept_by`; for `walk`, `steps`: the distance (Kolmogorov) between the distributions of
        the lengths of steps.
    """
    tracks, size = track(video), min(video.shape[2:4])
    scores = {
        "clips": len(video),
        "one_object": float(tracks.whole.mean()),
        "appear": float((tracks.objects > 1).sum(1).mean()),
        "vanish": float((tracks.objects == 0).sum(1).mean()),
    }
    if families == ("walk",):
        assert band is not None, "walk is scored by reconstructed clips"
        return scores | _score_walk(tracks, band)
    first = np.where(tracks.whole, video.shape[1], np.argmax(tracks.objects != 1, axis=1))  # frames with one object
    place = world_units(np.where(np.isnan(tracks.place), size / 2, tracks.place), size)
    away = np.stack([_pixels(place, fit(place, name), size) for name in families])  # law n t
    asked = np.zeros(len(video), int)
    for i, name in enumerate(families):
        mine = labels == i
        kept = tracks.whole & mine & (away[i].max(1) <= PIXEL)
        asked[kept] = video.shape[1]
        broken = mine & ~kept
        asked[broken] = _kept_frames(place[broken], name, first[broken], size)
    kept = asked == video.shape[1]
    return scores | {
        "kept": float(kept.mean()),
        "frames": float(asked.mean()),
        "class": float((tracks.whole & (away.mean(2).argmin(0) == labels)).mean()),
        "kept_by": {name: float(kept[labels == i].mean()) for i, name in enumerate(families) if (labels == i).any()},
    }


def _pixels(place: np.ndarray, path: np.ndarray, size: int) -> np.ndarray:
    """`(n, t)` distances in pixels of two tracks in units of the world."""
    return np.linalg.norm(place - path, axis=-1) * size * ZOOM


def _kept_frames(place: np.ndarray, law: str, first: np.ndarray, size: int) -> np.ndarray:
    """`(n,)` number of first frames, at most `first` and not all, that some member of the law follows within a pixel.

    By bisection, for what fits many frames fits fewer.
    """
    t = np.arange(place.shape[1])
    low, high = np.zeros(len(place), int), np.minimum(first, len(t) - 1) + 1  # `low` frames fit, `high` do not
    while (between := high - low > 1).any():
        middle = np.maximum((low + high) // 2, 1)
        away = _pixels(place, fit(place, law, middle), size)
        good = np.where(t < middle[:, None], away, 0).max(1) <= PIXEL
        low, high = np.where(between & good, middle, low), np.where(between & ~good, middle, high)
    return low


def _score_walk(tracks: Tracks, band: WalkBand) -> dict:
    place = tracks.place[tracks.whole]
    if not (len(place) and len(band.lengths)):
        return {"kept": 0.0, "steps": 1.0}
    numbers = walk_numbers(place)
    kept = ((numbers >= band.low) & (numbers <= band.high)).all(1)
    lengths = np.linalg.norm(np.diff(place, axis=1), axis=-1).ravel()
    apart = ks_2samp(lengths, band.lengths).statistic
    return {"kept": float(kept.sum() / len(tracks.whole)), "steps": float(apart)}


def shuffled(video: np.ndarray, seed: int = 0) -> np.ndarray:
    """The same clips with their frames in a drawn order, another one for each: the floor."""
    rng = np.random.default_rng(seed)
    return np.stack([clip[rng.permutation(len(clip))] for clip in video])
