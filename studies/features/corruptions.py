"""Known damage to clips, graded: what a metric should notice, and what the feature network learns to notice.

All take and return `(n, t, h, w, 3)` uint8 and depend on their seed alone.
"""

import numpy as np

# Damage -> grades, mild to strong.
GRADES = {
    "noise": (8.0, 16.0, 32.0),  # standard deviation, of 255
    "blur": (0.01, 0.02, 0.04),  # standard deviation in shares of the shorter side
    "shuffle": (0.25, 0.5, 1.0),  # share of the frames that change places
    "freeze": (0.25, 0.5, 1.0),  # share of the clip, at its end, that stands still
    "reverse": (0.5, 1.0),  # share of the clips that run backwards
}


def corrupt(video: np.ndarray, kind: str, grade: float, seed: int = 0) -> np.ndarray:
    """Apply one kind of `GRADES`.

    Raises:
      ValueError: `kind` is unknown.
    """
    functions = {"noise": add_noise, "blur": blur, "shuffle": shuffle, "freeze": freeze, "reverse": reverse}
    if kind not in functions:
        raise ValueError(f"unknown corruption {kind!r}: expected one of {', '.join(functions)}")
    return functions[kind](video, grade, seed)


def add_noise(video: np.ndarray, std: float, seed: int = 0) -> np.ndarray:
    """Gaussian noise of a standard deviation on 0..255, new in every pixel."""
    noise = np.random.default_rng(seed).normal(0, std, video.shape).astype(np.float32)
    return np.clip(np.rint(video + noise), 0, 255).astype(np.uint8)


def blur(video: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """Gaussian blur of every frame; `share` of the shorter side is its standard deviation. Draws nothing."""
    del seed
    height, width = video.shape[2:4]
    rows, columns = (smoothing(size, share * min(height, width)) for size in (height, width))
    out = np.einsum("hH,ntHwc->nthwc", rows, video.astype(np.float32), optimize=True)
    out = np.einsum("wW,nthWc->nthwc", columns, out, optimize=True)
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)


def smoothing(size: int, std: float) -> np.ndarray:
    """`(size, size)` float32 matrix of a Gaussian blur that stays inside the picture: rows add up to 1."""
    if std <= 0:
        return np.eye(size, dtype=np.float32)
    place = np.arange(size)
    weights = np.exp(-0.5 * ((place[:, None] - place) / std) ** 2)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def shuffle(video: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """Permute a random `share` of every clip's frames; the pictures stay as they are, only their order is damaged."""
    rng, out, frames = np.random.default_rng(seed), video.copy(), video.shape[1]
    count = min(max(round(share * frames), 2), frames)
    for clip, source in zip(out, video, strict=True):
        places = np.sort(rng.choice(frames, count, replace=False))
        order = rng.permutation(count)
        while (order == np.arange(count)).all():
            order = rng.permutation(count)
        clip[places] = source[places[order]]
    return out


def freeze(video: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """The last `share` of every clip repeats the frame before it; 1 leaves the first frame alone. Draws nothing."""
    del seed
    out, frames = video.copy(), video.shape[1]
    first = max(frames - max(round(share * frames), 1), 1)
    out[:, first:] = out[:, first - 1 : first]
    return out


def reverse(video: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """Play a random `share` of the clips backwards."""
    chosen = np.random.default_rng(seed).permutation(len(video))[: round(share * len(video))]
    out = video.copy()
    out[chosen] = out[chosen, ::-1]
    return out
