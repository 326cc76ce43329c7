"""Compare two sets of clips: distances of features, and scores of pairs for reconstructions."""

from collections.abc import Mapping, Sequence

import numpy as np

from pv_vae_jax.evaluation import distances
from pv_vae_jax.evaluation.clip_sets import ClipSet, FolderClips, read_clips
from pv_vae_jax.evaluation.features import FeatureError
from pv_vae_jax.evaluation.image_metrics import PerceptualDistance, join_frames, score_frames, summarize_frames
from pv_vae_jax.evaluation.networks.extract import FeatureNetwork, extract, own_network
from pv_vae_jax.evaluation.networks.published import NetworkIdentity
from pv_vae_jax.evaluation.protocol import Digest, MetricProtocol, Score, card, name_of, set_card

EXTRAPOLATED_FROM = 64  # clips; fewer do not determine a line
LEAST_CLIPS = 8  # of each set that `own_distances` compares


def compare_sets(
    real: ClipSet,
    fake: ClipSet,
    network: FeatureNetwork,
    protocol: MetricProtocol,
    *,
    paired: bool = False,
    seed: int = 0,
    batch_size: int = 8,
    resamples: int = 40,
    labels: tuple[str | None, str | None] = ("real", "fake"),
) -> list[Score]:
    """Frechet and kernel distance between two sets.

    Args:
      real, fake: the sets, opened with the protocol's windows.
      network: the network that extracts features.
      protocol: number of clips, and the covariance's estimator.
      paired: clip `i` of `fake` is a reconstruction of clip `i` of `real`: the first clips are taken of both, and the
        mean squared distance of paired features is given as well.
      seed: seed of the choice of clips and of the intervals.
      batch_size: clips per batch.
      resamples: resamples for the Frechet distance's interval; 0 computes no intervals.
      labels: labels of the progress bars.

    Raises:
      FeatureError: too few clips, clips of different sizes, features that are not finite, or fewer frames than the
        network needs.
    """
    check_network(network, protocol)
    fake = check_sets(real, fake, protocol, paired)
    features, cards = [], []
    for number, (clips, label) in enumerate(zip((real, fake), labels, strict=True)):
        index = choose(len(clips), protocol.clips, paired, [seed, number])
        found, described = _features(network, clips, index, batch_size, label)
        features.append(found)
        cards.append(described)
    a, b = features
    scores, seeded = [], {"ddof": protocol.ddof, "seed": seed}

    def add(name: str, value: float, estimator: str, interval: distances.Interval | None = None, **more: int) -> None:
        made = card(protocol, network, cards[0], cards[1], seed, estimator=estimator, **more)
        scores.append(Score(name, value, interval, made))

    spans = [
        distances.frechet_interval(a, b, resamples=resamples, **seeded) if resamples else None,
        distances.kernel_interval(a, b, seed=seed) if resamples else None,
    ]
    frechet, dimension = distances.frechet_distance(a, b, ddof=protocol.ddof), {"dimension": a.shape[1]}
    gaussians = "Gaussians, symmetric eigendecomposition, float64"
    add(name_of("frechet", network), frechet, gaussians, spans[0], **dimension)
    estimator = "unbiased MMD^2, (x.y/d + 1)^3, float64, not scaled"
    add(name_of("kernel", network), distances.kernel_distance(a, b), estimator, spans[1], **dimension)
    if min(len(a), len(b)) >= EXTRAPOLATED_FROM and not paired:
        limit = distances.frechet_limit(a, b, **seeded)
        add(name_of("frechet limit", network), limit, "line in 1/n through 10 subset sizes")
    if paired:
        squared, estimator = distances.paired_squared_distance(a, b), "mean |f(x) - f(x')|^2, not a distance of sets"
        add(f"mean_paired_{network.name}_sqdist", squared, estimator)
    return scores


def compare_pairs(
    real: ClipSet,
    fake: ClipSet,
    protocol: MetricProtocol,
    *,
    perceptual: PerceptualDistance | None = None,
    perceptual_network: NetworkIdentity | None = None,
    seed: int = 0,
) -> list[Score]:
    """PSNR, SSIM and, with a `perceptual` function of two clips `(t, h, w, 3)` uint8, its mean over frames.

    The cards hold the means by frame as well.

    Raises:
      FeatureError: as `compare_sets`.
    """
    fake = check_sets(real, fake, protocol, True)
    index = choose(len(real), protocol.clips, True, [seed])
    digests = Digest(), Digest()
    streams = [d.watch(read_clips(c, index)) for d, c in zip(digests, (real, fake), strict=True)]
    rows = []
    for a, b in zip(*streams, strict=True):
        if a.shape != b.shape:
            raise FeatureError(f"expected pairs of clips of one shape, got {a.shape} and {b.shape}")
        rows.append(score_frames(a[None], b[None], 255.0, perceptual))
    frames = join_frames(rows)
    cards = [set_card(clips, digest) for clips, digest in zip((real, fake), digests, strict=True)]
    looks = name_of(perceptual_network.name, perceptual_network) if perceptual_network else ""
    rules = {
        "psnr": ("PSNR dB", "per frame, at most 100 dB, mean over frames, then clips; uint8", None),
        "ssim": ("SSIM", "11 x 11 Gaussian, sigma 1.5, population covariance, valid region, RGB; uint8", None),
        "perceptual": (looks, "mean over frames, then clips; [-1, 1]", perceptual_network),
    }
    scores = []
    for key, summary in summarize_frames(frames).items():
        name, rule, network = rules[key]
        values = frames[key].mean(axis=1)  # n
        interval = distances.mean_interval(values, seed=seed) if len(values) > 1 else None
        made = card(protocol, network, cards[0], cards[1], seed, estimator=rule, by_frame=summary["by_frame"])
        scores.append(Score(name, float(values.mean()), interval, made))
    return scores


def own_distances(real: np.ndarray, sets: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Distances of sets of clips from `real`, all `(n, t, h, w, 3)` uint8, by the network that ships with the library.

    Equally many of each count, the first ones, so that the numbers compare.

    Returns:
      Set -> name of a score -> its value; nothing if there are fewer than `LEAST_CLIPS`, or too few frames.
    """
    network, count = own_network(), min([len(real), *map(len, sets.values())])
    if not sets or count < LEAST_CLIPS or real.shape[1] < network.least_frames:
        return {}
    features = {name: extract(network, clips[:count], count=count, label=name) for name, clips in sets.items()}
    expected = extract(network, real[:count], count=count, label="test clips")
    metrics = {"frechet": distances.frechet_distance, "kernel": distances.kernel_distance}
    return {
        name: {name_of(metric, network): float(of(expected, found)) for metric, of in metrics.items()}
        for name, found in features.items()
    }


def score_inception(
    fake: ClipSet,
    network: FeatureNetwork,
    protocol: MetricProtocol,
    *,
    splits: int = 10,
    seed: int = 0,
    batch_size: int = 8,
    label: str | None = "fake",
) -> Score:
    """Inception score of one set.

    Raises:
      FeatureError: as `compare_sets`, or fewer clips than twice the splits.
    """
    check_network(network, protocol, splits)
    index = choose(_enough(fake, protocol, "fake"), protocol.clips, False, [seed, 1])
    logits, described = _features(network, fake, index, batch_size, label)
    found = distances.inception_score(logits, splits=splits)
    interval = distances.score_interval(logits, lambda x: distances.inception_score(x, splits=splits).mean, seed=seed)
    facts = {"splits": splits, "shuffled": 42, "standard deviation over splits": found.std}
    made = card(protocol, network, {}, described, seed, estimator="exp mean KL from log-softmax", **facts)
    return Score(name_of("inception", network), found.mean, interval, made)


def _features(
    network: FeatureNetwork, clips: ClipSet, index: np.ndarray, batch_size: int, label: str | None
) -> tuple[np.ndarray, dict]:
    """Features `(n, d)` of the clips `index` of a set, and what a card says about these clips."""
    digest = Digest()
    stream = digest.watch(read_clips(clips, index))
    return extract(network, stream, count=len(index), batch_size=batch_size, label=label), set_card(clips, digest)


def check_network(network: FeatureNetwork, protocol: MetricProtocol, splits: int | None = None) -> None:
    """Raise `FeatureError` unless a protocol's clips are long enough for `network`, and many enough for `splits`."""
    if protocol.frames < network.least_frames:
        raise FeatureError(
            f"{network.name} needs clips of at least {network.least_frames} frames, got {protocol.frames}"
        )
    if splits is not None:
        distances.check_splits(splits, protocol.clips)


def check_sets(real: ClipSet, fake: ClipSet, protocol: MetricProtocol, paired: bool) -> ClipSet:
    """`fake`, in the order of `real` if `paired`.

    Raises:
      FeatureError: a set has fewer clips than the protocol asks for, they are of two sizes, or are no pairs.
    """
    for clips, name in ((real, "real"), (fake, "fake")):
        _enough(clips, protocol, name)
    if paired:
        fake = in_pairs(real, fake)
    if tuple(real.size) != tuple(fake.size):
        sizes = " and ".join(" x ".join(map(str, c.size)) for c in (real, fake))
        raise FeatureError(
            f"expected real and generated clips of one size, got {sizes}: resizing one of them would be part of "
            "the distance. Resize both to one size first (--size=N for folders of videos)"
        )
    return fake


def in_pairs(real: ClipSet, fake: ClipSet) -> ClipSet:
    """`fake` with clip `i` the partner of clip `i` of `real`.

    Of two folders, partners have one name, or that of the reconstruction goes on after a separator, as
    `bird_out.mp4` does after `bird.mp4`. Clips of arrays are paired by their places.

    Raises:
      FeatureError: a clip has no partner, or several.
    """
    for clips in (real, fake):
        if clips.short:
            raise FeatureError(
                f"{clips.path} has {clips.short} videos too short for a clip; left out, they would shift the pairs: "
                "remove them and their partners, or give fewer --frames"
            )
    if len(real) != len(fake):
        raise FeatureError(f"--paired needs two sets of equal length, got {len(real)} and {len(fake)} clips")
    if not (isinstance(real, FolderClips) and isinstance(fake, FolderClips)):
        return fake
    paths = [[clips.pair_name(i) for i in range(len(clips))] for clips in (real, fake)]
    names = [[path.name for path in part] for part in paths]
    if any(len(set(part)) < len(part) for part in names):  # then folders tell them apart
        names = [[path.as_posix() for path in part] for part in paths]
    place, partner = {name: i for i, name in enumerate(names[0])}, dict[int, int]()
    rule = "its name must be that of a video, or go on after it with a separator, as bird_out.mp4 does after bird.mp4"
    for i, name in enumerate(names[1]):
        # The longest name that fits: of a.mp4 and a_2.mp4, a_2_out.mp4 belongs to the latter.
        ends = (n for n in range(len(name), 0, -1) if n == len(name) or not name[n].isalnum())
        owner = next((place[name[:n]] for n in ends if name[:n] in place), None)
        if owner is None:
            raise FeatureError(f"{fake.name(i)} reconstructs no clip of {real.path}: {rule}")
        if owner in partner:
            raise FeatureError(f"{real.name(owner)} has two, {fake.name(partner[owner])} and {fake.name(i)}: {rule}")
        partner[owner] = i
    return fake.in_order([partner[i] for i in range(len(real))])


def choose(available: int, count: int, paired: bool, seed: Sequence[int]) -> np.ndarray:
    """Ascending indices of the clips to score: drawn without replacement, or the first ones of a paired set."""
    if paired or available == count:
        return np.arange(count)
    return np.sort(np.random.default_rng(list(seed)).choice(available, count, replace=False))


def _enough(clips: ClipSet, protocol: MetricProtocol, name: str) -> int:
    if protocol.clips < 2:
        raise FeatureError("a set needs at least 2 clips: set --clips=2 or more")
    if len(clips) < protocol.clips:
        raise FeatureError(
            f"protocol {protocol.name} needs {protocol.clips} clips, got {len(clips)} in the {name} set. --clips=N "
            "scores fewer; numbers at different N cannot be compared: at small N these distances are mostly bias"
        )
    return len(clips)
