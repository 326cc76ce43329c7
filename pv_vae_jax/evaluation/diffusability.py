"""How easy latents are to diffuse, measured without training: plain functions over posterior means `(n, g, h, w, z)`.

None of them is proof by itself: a study of 86 image tokenizers at equal reconstruction (arXiv 2606.03578) found the
velocity's irreducible variance and the label agreement closest to the quality of what is generated, and high
frequencies further behind. Compare VAEs on the same clips and at about equal PSNR.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import scipy.fft
import scipy.stats

from pv_vae_jax.evaluation.distances import score_interval

LEAST_SAMPLES = 2  # for each row of a factor: with one, it is near singular and white noise is read 15 % too low


def without_first(means: np.ndarray) -> np.ndarray:
    """`means` without latent frame 0, which stands for one video frame; all of them if there is no other."""
    return means[:, 1:] if means.shape[1] > 1 else means


def standardized(means: np.ndarray) -> np.ndarray:
    """Channels at mean 0 and variance 1 over all clips, times and places, float64; constant channels become 0."""
    z, places = np.asarray(means, np.float64), (0, 1, 2, 3)
    mean = z.mean(axis=places)
    std = np.sqrt(np.mean((z - mean) ** 2, axis=places))
    return (z - mean) / np.where(std > 1e-12 * np.abs(mean), std, np.inf)  # else what rounding leaves of a constant


def velocity_irreducible_variance(
    means: np.ndarray, labels: np.ndarray, *, by_axis: bool = False, iterations: int = 3
) -> float:
    """What is left of the flow-matching loss when the network is perfect, per latent value (arXiv 2606.03578, eq. 5).

    Clips of one class are taken for a Gaussian. With `lambda_i` the `d = g h w z` eigenvalues of its covariance,
    `E |v - E[v | x_t]|^2`, integrated over uniform t, is `(pi / 2) sum_i sqrt(lambda_i)`. This is the mean over
    classes, **divided by d**: of channels that are standardised over the set, white noise that no class explains has
    pi / 2 = 1.571, and latents that the class decides have 0. So it has the unit of a loss per latent value, and VAEs
    with latents of different size compare as their losses would. It sinks where channels repeat each other: times
    `sqrt(d)` it would stay. Lower is easier.

    The covariance is a Kronecker product, fitted by alternating maximum likelihood (flip-flop) and scaled to the total
    variance. Its factors are (space and time) x channels, as in the paper, which wants many clips: white noise is read
    7 % too low with the fewest that are accepted, 3 % with twice and 1 % with eight times as many.

    Args:
      means: `(n, g, h, w, z)`.
      labels: `(n,)` class of each clip.
      by_axis: one factor each for time, height, width and channels. Few clips will do, and no motion across places is
        seen. Not to be compared with the other.
      iterations: rounds of the flip-flop.

    Raises:
      ValueError: a class has too few clips to fit the largest factor.
    """
    z, labels = standardized(means), np.asarray(labels)
    if not by_axis:
        z = z.reshape(len(z), -1, z.shape[-1])  # n (g h w) z
    size, largest = math.prod(z.shape[1:]), max(z.shape[1:])
    least = 1 + math.ceil(LEAST_SAMPLES * largest**2 / size)
    names, counts = np.unique(labels, return_counts=True)
    if counts.min() < least:
        raise ValueError(f"needs {least} clips of each class, not {counts.min()}")
    found = []
    for name in names:
        x = z[labels == name]
        x = x - x.mean(axis=0)
        total = np.sum(x**2) / (len(x) - 1)
        # Of a Kronecker product, the sum of all roots is the product of the factors' sums.
        spread = [np.sqrt(values).sum() / np.sqrt(max(values.sum(), 1e-30)) for values in _factors(x, iterations)]
        found.append(np.pi / 2 * np.sqrt(total) * math.prod(spread) / size)
    return float(np.mean(found))


def _factors(x: np.ndarray, iterations: int) -> list[np.ndarray]:
    """Eigenvalues of the factors, one for each axis but the first, of the covariance of centred samples `x`."""
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # axis -> eigenvalues of its factor, and the inverse root
    for axis in [*range(1, x.ndim)] * iterations:
        y = x
        for other in found.keys() - {axis}:
            root, parts = found[other][1], (math.prod(x.shape[:other]), x.shape[other], -1)
            y = y @ root if other == x.ndim - 1 else (root.T @ y.reshape(parts)).reshape(x.shape)
        y = np.moveaxis(y, axis, 0).reshape(x.shape[axis], -1)
        values, basis = np.linalg.eigh(y @ y.T / y.shape[1])
        values[values <= 1e-10 * values[-1]] = 0  # directions without variance, which are left as they are
        found[axis] = values, basis / np.sqrt(np.where(values > 0, values, np.inf))
    return [values for values, _ in found.values()]


def label_agreement(means: np.ndarray, labels: np.ndarray, *, neighbours: int = 5) -> np.ndarray:
    """Share of each clip's nearest latents that have its label (latent neighbour consistency, arXiv 2606.03578).

    Nearest by cosine, of standardised latents averaged over space (the paper, of images: over the foreground). Time
    stays, since classes of clips are often motions. Higher is easier: from `label_chance` to 1.

    Args:
      means: `(n, g, h, w, z)`.
      labels: `(n,)` class of each clip.
      neighbours: how many are looked at, all others at most; 5 in the paper.

    Returns:
      `(n,)` shares.

    Raises:
      ValueError: all clips have one label, or each its own.
    """
    labels, n = np.asarray(labels), len(means)
    if label_chance(labels) in (0, 1):
        raise ValueError("needs several classes and clips of each")
    z = standardized(means).mean(axis=(2, 3)).reshape(n, -1)  # n (g z)
    z = z - z.mean(axis=0)
    z = z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    near = np.where(np.eye(n, dtype=bool), -np.inf, z @ z.T)
    nearest = np.argsort(-near, axis=1, kind="stable")[:, : min(neighbours, n - 1)]
    return np.mean(labels[nearest] == labels[:, None], axis=1)


def label_chance(labels: np.ndarray) -> float:
    """The `label_agreement` of neighbours drawn at random; 1 for a single clip."""
    counts = np.unique(labels, return_counts=True)[1]
    return float(np.sum(counts * (counts - 1)) / (len(labels) * (len(labels) - 1))) if len(labels) > 1 else 1.0


def high_frequency_share(means: np.ndarray, axis: str = "space", *, above: float = 0.5) -> np.ndarray:
    """Share of each clip's energy in the upper frequencies of the discrete cosine transform.

    In space, the spectral energy concentration of arXiv 2606.03578 (eq. 9): frequencies with `u + v > above (h + w -
    2)`. In time, ours: `k > above (frames - 1)` over latent frames without frame 0. Two things differ from the paper:
    channels are standardised, since their mean would count as a low frequency, and shares are of clips, not of the
    whole set. Lower is easier, though it can be had without any gain.

    Args:
      means: `(n, g, h, w, z)`.
      axis: `space` or `time`.
      above: share of the highest frequency, over which a frequency counts as high.

    Returns:
      `(n,)`.

    Raises:
      ValueError: there is one frequency only.
    """
    z, axes = (standardized(means), (2, 3)) if axis == "space" else (standardized(without_first(means)), (1,))
    frequency = np.sum(np.indices(z.shape[1:4])[np.array(axes) - 1], axis=0)  # g h w
    if not frequency.any():
        raise ValueError(f"needs several latents in {axis}")
    energy = np.sum(np.asarray(scipy.fft.dctn(z, axes=axes, norm="ortho")) ** 2, axis=-1)  # n g h w
    high = energy[:, frequency > above * frequency.max()].sum(axis=1)
    return high / np.maximum(energy.sum(axis=(1, 2, 3)), 1e-30)


def straightness(means: np.ndarray) -> np.ndarray:
    """Mean cosine of the angle between one step and the next of each clip's path through latent space.

    The curvature of Henaff, Goris and Simoncelli (Nature Neuroscience 2019) is the mean of the angle itself. 1 is a
    straight line, 0 a random walk, -1/2 independent frames; where a clip stands still, the cosine counts as 0. Channels
    are standardised, latent frame 0 is left out.

    Args:
      means: `(n, g, h, w, z)`.

    Returns:
      `(n,)`.

    Raises:
      ValueError: there are fewer than four latent frames, so no two steps between groups.
    """
    if means.shape[1] < 4:
        raise ValueError("needs 4 latent frames")
    steps = np.diff(without_first(standardized(means)), axis=1).reshape(len(means), means.shape[1] - 2, -1)
    steps = steps / np.maximum(np.linalg.norm(steps, axis=-1, keepdims=True), 1e-12)
    return np.mean(np.sum(steps[:, 1:] * steps[:, :-1], axis=-1), axis=1)


@dataclasses.dataclass(frozen=True)
class ChannelSpectrum:
    """Eigenvalues of the channels' covariance.

    Attributes:
      shares: `(z,)` of the variance, descending.
      effective: number of equal eigenvalues with the same `(sum)^2 / sum of squares`: 1 for one direction, z for all.
      rank: effective rank, `exp` of the entropy of the shares (Roy and Vetterli, EUSIPCO 2007).
    """

    shares: np.ndarray
    effective: float
    rank: float


def channel_spectrum(means: np.ndarray) -> ChannelSpectrum:
    """Spectrum over all places, times and clips. Latents that never vary have shares of 0."""
    z = without_first(np.asarray(means, np.float64)).reshape(-1, means.shape[-1])
    values = np.maximum(np.linalg.eigvalsh(np.atleast_2d(np.cov(z.T, ddof=0)))[::-1], 0)
    total = values.sum()
    if total <= 1e-24 * np.square(z).max():  # what rounding leaves of a constant
        return ChannelSpectrum(np.zeros_like(values), 0.0, 0.0)
    shares = values / total
    rank = np.exp(scipy.stats.entropy(shares))
    return ChannelSpectrum(shares, float(1 / np.sum(shares**2)), float(rank))


def rate(means: np.ndarray, logvar: np.ndarray) -> np.ndarray:
    """Nats that the posterior tells of each clip: its KL divergence from one Gaussian for each channel.

    That Gaussian has the mean and the variance of the channel's samples over the set, so it is the standard normal of
    latents that are normalised as diffusion sees them, and the rate does not depend on a VAE's scale. A channel of
    signal S and noise N costs `log(1 + S / N) / 2` a value. It is an upper bound of the information in the latents;
    the KL term of training, from the standard normal of the VAE's own latents, is at least as much.

    Args:
      means, logvar: `(n, g, h, w, z)` of the posterior.

    Returns:
      `(n,)` nats of each clip.
    """
    mean, logvar = np.asarray(means, np.float64), np.asarray(logvar, np.float64)
    variance, places = np.exp(logvar), (0, 1, 2, 3)
    centred = mean - mean.mean(axis=places)
    whole = np.maximum(np.mean(centred**2 + variance, axis=places), 1e-30)  # of samples: E[var] + Var[mean]
    return 0.5 * np.sum((variance + centred**2) / whole - 1 - logvar + np.log(whole), axis=(1, 2, 3, 4))


# Name -> in words, what it needs of `latent_sets.read_latents` besides the means, and a function of these that gives
# one number for each clip or for all.
MEASURES: dict[str, tuple[str, str, Callable]] = {
    "velocity_variance": ("velocity irreducible variance (noise 1.571)", "label", velocity_irreducible_variance),
    "velocity_variance_by_axis": ("the same by axis", "label", partial(velocity_irreducible_variance, by_axis=True)),
    "label_agreement": ("neighbours of one label", "label", label_agreement),
    "label_chance": ("the same by chance", "label", lambda z, label: label_chance(label)),
    "high_frequencies_space": ("high frequencies in space", "", high_frequency_share),
    "high_frequencies_time": ("high frequencies in time", "", partial(high_frequency_share, axis="time")),
    "straightness": ("straightness (line 1, random walk 0)", "", straightness),
    "effective_rank": ("effective rank of channels", "", lambda z: channel_spectrum(z).rank),
    "rate_nats": ("rate, nats per clip", "logvar", rate),
}


def measure_latents(latents: dict[str, np.ndarray]) -> dict[str, dict]:
    """All `MEASURES` with bootstrap intervals over clips, of which there must be two; class by class if labels count.

    Args:
      latents: `mean`, and if they are known `logvar` and `label`, as from `latent_sets.read_latents`.

    Returns:
      Name -> `{"value", "low", "high"}`, or `{"left_out": why}`, as JSON.
    """
    found, clips = {}, np.arange(len(latents["mean"]))[:, None]
    for name, (_, needs, function) in MEASURES.items():
        try:
            arrays = [latents[array] for array in ("mean", needs) if array]
            score = partial(_score, function, arrays)
            if np.ndim(values := function(*arrays)):
                score = partial(_score, np.mean, [values])
            if len(clips) < 2:
                raise ValueError("needs 2 clips")
            interval = score_interval(clips, score, latents["label"] if needs == "label" else None, resamples=20)
            found[name] = {"value": score(clips), "low": interval.low, "high": interval.high}
        except (KeyError, ValueError) as error:
            found[name] = {"left_out": f"needs {needs}" if isinstance(error, KeyError) else str(error)}
    return found


def _score(function: Callable[..., float], arrays: Sequence[np.ndarray], clips: np.ndarray) -> float:
    return float(function(*(array[clips[:, 0].astype(int)] for array in arrays)))
