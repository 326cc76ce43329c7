"""Train the feature network: name shapes, motions, speeds and the order of frames; measure noise and blur.

The synthetic world knows what its clips show, so they teach shape, motion family and speed. Clips of any video, if
given, bring real texture to the tasks that need no label: order of frames, noise, blur.
"""

import dataclasses
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from pv_vae_jax.data.synthetic import FAMILIES, SHAPES, Scene, SyntheticVideos
from pv_vae_jax.evaluation.networks.feature_net import FeatureNet, FeatureNetConfig
from pv_vae_jax.pixels import to_float
from pv_vae_jax.progress import progress_bar
from pv_vae_jax.typing import Array, Params
from studies.features.corruptions import smoothing

ORDERS = ("forward", "shuffled", "backward", "frozen")

ORDER_SHARES = (0.55, 0.15, 0.15, 0.15)  # motion can be named in clips that play forwards only

SCORED_BATCHES = 24

STRONGEST_NOISE, STRONGEST_BLUR = 0.3, 3.0  # on [-1, 1]; in pixels


@dataclasses.dataclass(frozen=True)
class FeatureTraining:
    """How the network is trained.

    Attributes:
      network: sizes of the network.
      clips: number of synthetic clips.
      frames: frames of a clip.
      sprites: largest number of sprites in a synthetic clip.
      steps, batch_size, learning_rate, weight_decay: settings of AdamW, with warm-up and cosine decay to 0.
      real_share: share of a batch that is real, where there are real clips.
      seed: seed of everything random.
    """

    network: FeatureNetConfig = FeatureNetConfig()
    clips: int = 768
    frames: int = 12
    sprites: int = 2
    steps: int = 1_000
    batch_size: int = 24
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    real_share: float = 0.4
    seed: int = 0


class Heads(nn.Module):
    """The features and the answers that they are trained by.

    Attributes:
      config: sizes of the feature network.
    """

    config: FeatureNetConfig

    @nn.compact
    def __call__(self, video: Array) -> dict[str, Array]:
        x = nn.gelu(FeatureNet(self.config, name="net")(video))
        sizes = {"shape": len(SHAPES), "family": len(FAMILIES), "order": len(ORDERS), "levels": 3}
        return {name: nn.Dense(size, name=name)(x) for name, size in sizes.items()}


def synthetic_clips(config: FeatureTraining) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Clips `(n, t, s, s, 3)` uint8 and what they show: `shape (n, 3)` present or not, `family (n,)`, `speed (n,)`."""
    sources = [
        SyntheticVideos(config.clips, config.frames, config.network.side, config.seed, n + 1)
        for n in range(config.sprites)
    ]
    video, shape, family, speed = [], [], [], []
    for i in tqdm(range(config.clips), desc="clips", unit="clip", disable=not sys.stderr.isatty()):
        source = sources[(i // len(FAMILIES)) % len(sources)]
        scene = source.scene(i)
        video.append(source[i]["video"])
        shape.append([any(s.shape == name for s in scene.sprites) for name in SHAPES])
        family.append(scene.label)
        speed.append(_speed(scene))
    labels = {"shape": np.array(shape, np.float32), "family": np.array(family), "speed": np.array(speed, np.float32)}
    return np.stack(video), labels


def _speed(scene: Scene) -> float:
    """Mean way of the sprites from frame to frame in shares of the side, on a scale where 1 is fast."""
    return 20 * float(np.mean([np.linalg.norm(np.diff(s.position, axis=0), axis=1).mean() for s in scene.sprites]))


def draw_batch(
    config: FeatureTraining,
    step: int,
    video: np.ndarray,
    labels: dict[str, np.ndarray],
    real: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Batch of a step, a function of `(seed, step)`: clips with frames in their drawn order, labels, damage to do."""
    rng = np.random.default_rng([config.seed, step])
    size, frames = config.batch_size, config.frames
    index = rng.integers(len(video), size=size)
    clips = video[index]
    known = np.ones(size, np.float32)
    if real is not None:
        known[: round(config.real_share * size)] = 0
        clips[known == 0] = real[rng.integers(len(real), size=int((known == 0).sum()))]
    order = rng.choice(len(ORDERS), size, p=ORDER_SHARES)
    for clip, kind in zip(clips, order, strict=True):
        if ORDERS[kind] == "shuffled":
            clip[:] = clip[rng.permutation(frames)]
        elif ORDERS[kind] == "backward":
            clip[:] = clip[::-1].copy()
        elif ORDERS[kind] == "frozen":
            clip[:] = clip[rng.integers(frames)].copy()
    noise, blur = (rng.uniform(0, 1.0, size) * (rng.random(size) < 0.5) for _ in range(2))
    matrices = np.stack([smoothing(config.network.side, STRONGEST_BLUR * value) for value in blur])
    batch = {"video": clips, "order": order, "known": known, "noise": noise, "blur": blur, "matrices": matrices}
    return {k: np.asarray(v, np.float32) if v.dtype == np.float64 else v for k, v in batch.items()} | {
        name: value[index] for name, value in labels.items()
    }


def damage(batch: dict[str, Array], key: Array) -> Array:
    """Blurred, then noisy clips `(b, t, s, s, 3)` in [-1, 1]."""
    x = to_float(batch["video"])
    x = jnp.einsum("bhH,btHWc,bwW->bthwc", batch["matrices"], x, batch["matrices"])
    x = x + STRONGEST_NOISE * batch["noise"][:, None, None, None, None] * jax.random.normal(key, x.shape)
    return jnp.clip(x, -1, 1)


def loss_of(answers: dict[str, Array], batch: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
    """Total and terms. Motion counts for clips that play forwards only, labels for synthetic ones only."""
    known = batch["known"]
    moving = known * (batch["order"] == 0)
    over = lambda value, mask: jnp.sum(value * mask) / jnp.maximum(mask.sum(), 1)  # noqa: E731
    cross = optax.softmax_cross_entropy_with_integer_labels
    level = answers["levels"]
    terms = {
        "shape": over(optax.sigmoid_binary_cross_entropy(answers["shape"], batch["shape"]).mean(axis=1), known),
        "family": over(cross(answers["family"], batch["family"]), moving),
        "speed": over(jnp.square(level[:, 0] - batch["speed"]), moving),
        "order": cross(answers["order"], batch["order"]).mean(),
        "noise": 4 * jnp.mean(jnp.square(level[:, 1] - batch["noise"])),
        "blur": 4 * jnp.mean(jnp.square(level[:, 2] - batch["blur"])),
    }
    return sum(terms.values()), terms


def train_features(config: FeatureTraining, real: np.ndarray | None = None) -> tuple[Params, dict[str, float]]:
    """Train, and score on clips that were not trained on.

    Args:
      config: settings.
      real: `(n, frames, side, side, 3)` uint8, or None for the synthetic world alone.

    Returns:
      Parameters of the feature network, and accuracies and errors on held-out synthetic clips (and the last tenth of
      the real ones).
    """
    video, labels = synthetic_clips(config)
    held_video, held_labels = synthetic_clips(dataclasses.replace(config, seed=config.seed + 10_000, clips=256))
    real_train, real_held = (None, None) if real is None else np.split(real, [len(real) - max(len(real) // 10, 1)])
    model = Heads(config.network)
    clip = jnp.zeros((1, config.frames, config.network.side, config.network.side, 3))
    params = jax.jit(model.init)(jax.random.key(config.seed), clip)["params"]
    rate = optax.warmup_cosine_decay_schedule(0, config.learning_rate, min(50, config.steps // 4 + 1), config.steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=config.weight_decay))
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, batch, number):
        key = jax.random.fold_in(jax.random.key(config.seed), number)

        def loss(params):
            return loss_of(model.apply({"params": params}, damage(batch, key)), batch)

        (_, terms), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        update, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, update), state, terms

    bar = progress_bar(range(config.steps), desc="features", unit="step")
    for number in bar:
        params, state, terms = step(params, state, draw_batch(config, number, video, labels, real_train), number)
        if number % 20 == 0:
            bar.set_postfix({name: f"{float(value):.2f}" for name, value in terms.items()})

    @jax.jit
    def answer(params, batch, number):
        return model.apply({"params": params}, damage(batch, jax.random.fold_in(jax.random.key(1), number)))

    scores: dict[str, list[float]] = {}
    for number in range(SCORED_BATCHES):
        batch = draw_batch(config, config.steps + number, held_video, held_labels, real_held)
        for name, value in _scores(jax.device_get(answer(params, batch, number)), batch).items():
            scores.setdefault(name, []).append(value)
    means = {name: [v for v in values if not np.isnan(v)] for name, values in scores.items()}
    clean = video[:256] if real_train is None else np.concatenate([video[:256], real_train[:256]])
    return standardised(model, params["net"], clean), {
        name: float(np.mean(values)) for name, values in means.items() if values
    }


def standardised(model: Heads, params: Params, video: np.ndarray) -> Params:
    """Parameters whose features have mean 0 and standard deviation 1 over clean clips: the scale of distances."""
    net = FeatureNet(model.config)
    features = jax.jit(lambda p, x: net.apply({"params": p}, to_float(x)))
    found = np.concatenate([features(params, video[i : i + 32]) for i in range(0, len(video), 32)])
    mean, std = found.mean(axis=0), np.maximum(found.std(axis=0), 1e-3)
    last = params["features"]
    return params | {"features": {"kernel": last["kernel"] / std, "bias": (last["bias"] - mean) / std}}


def _scores(answers: dict[str, np.ndarray], batch: dict[str, np.ndarray]) -> dict[str, float]:
    known = batch["known"] > 0
    moving = known & (batch["order"] == 0)
    right = answers["order"].argmax(axis=1) == batch["order"]
    mean = lambda values: float(np.mean(values)) if len(values) else float("nan")  # noqa: E731
    return {
        "shape accuracy": mean(((answers["shape"] > 0) == (batch["shape"] > 0.5))[known]),
        "family accuracy": mean((answers["family"].argmax(axis=1) == batch["family"])[moving]),
        "order accuracy, synthetic": mean(right[known]),
        "order accuracy, real": mean(right[~known]),
        "noise error": mean(np.abs(answers["levels"][:, 1] - batch["noise"])),
        "blur error": mean(np.abs(answers["levels"][:, 2] - batch["blur"])),
    }
