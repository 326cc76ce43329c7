"""A small video network of our own, for distances between sets of clips where no published weights are at hand.

Space and time in turn: strided 2-D convolutions of every frame, then a residual convolution along time. What each stage
sees, and how much that changes over one, two and four frames, is averaged over space and time, so any length will do.
It is no I3D, and its distances are no FVD.
"""

import dataclasses
import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pv_vae_jax.models.registry import to_tuples
from pv_vae_jax.params_io import read_params, weights_hash, write_params
from pv_vae_jax.storage import as_path, write_json
from pv_vae_jax.typing import Array, Params, ShapeError, WeightsError

LAGS = (1, 2, 4)  # frames; in a shuffled clip changes are as large over one frame as over four

LEAST_FRAMES = max(LAGS) + 1

FLOOR = 0.01  # of what is averaged


@dataclasses.dataclass(frozen=True)
class FeatureNetConfig:
    """Sizes of the network.

    Attributes:
      widths: channels of each stage; the first is the stem. Every stage halves the sides.
      features: numbers of a clip.
      side: pixels of the square that clips are resized to.
    """

    widths: tuple[int, ...] = (16, 32, 64, 128)
    features: int = 128
    side: int = 32


class FeatureNet(nn.Module):
    """The network.

    Attributes:
      config: its sizes.
    """

    config: FeatureNetConfig

    @nn.compact
    def __call__(self, video: Array) -> Array:
        """Features `(b, d)` of clips `(b, t, side, side, 3)` in [-1, 1], `t >= 5`.

        Raises:
          ShapeError: another size, or fewer frames.
        """
        config = self.config
        if video.shape[2:] != (config.side, config.side, 3) or video.shape[1] < LEAST_FRAMES:
            raise ShapeError(
                f"the feature network takes {LEAST_FRAMES} frames or more of {config.side} x {config.side}, "
                f"got {video.shape[1:-1]}"
            )
        b, t = video.shape[:2]
        x, pooled = video, []
        for i, width in enumerate(config.widths):
            kernel = (5, 5) if i == 0 else (3, 3)
            x = x.reshape(b * t, *x.shape[2:])
            x = nn.Conv(width, kernel, 2, "SAME", name=f"space{i}")(x)
            x = x.reshape(b, t, *x.shape[1:])
            if i:
                x = x + TimeConv(width, name=f"time{i}")(nn.gelu(nn.LayerNorm(name=f"norm{i}")(x)))
            x = nn.gelu(x)
            # Logarithms: contrast is a factor, and a clip that stands still must differ from one that hardly moves.
            changes = (jnp.abs(x[:, lag:] - x[:, :-lag]) for lag in LAGS)
            for size in (jnp.abs(x), *changes):
                pooled.append(jnp.log(size.mean(axis=(1, 2, 3)) + FLOOR) - jnp.log(10 * FLOOR))
        return nn.Dense(config.features, name="features")(jnp.concatenate(pooled, axis=-1))


class TimeConv(nn.Module):
    """Convolution of width 3 along time, the ends repeated: a still clip has no border in time.

    Attributes:
      features: output channels.
    """

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (3 * x.shape[-1], self.features), jnp.float32)
        before = jnp.concatenate([x[:, :1], x[:, :-1]], axis=1)
        after = jnp.concatenate([x[:, 1:], x[:, -1:]], axis=1)
        return jnp.concatenate([before, x, after], axis=-1) @ kernel


def save_features(folder: str | Path, config: FeatureNetConfig, params: Params, meta: dict) -> None:
    """Write `features.safetensors` (float16), then `config.json` with sizes, hash and `meta`; whole or not at all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    write_params(folder / "features.safetensors", params, "float16")
    stored = jax.tree.map(lambda p: np.asarray(p, np.float16), params)
    tree = {"network": dataclasses.asdict(config), "hash": weights_hash(stored), "meta": meta}
    write_json(folder / "config.json", tree)


def load_features(folder: str | Path) -> tuple[FeatureNet, Params, str]:
    """Network, float32 parameters and hash of a folder that `save_features` wrote.

    Raises:
      FileNotFoundError: no such folder.
      WeightsError: tensors do not fit the sizes, or their hash is not the one that was written with them.
    """
    folder = as_path(folder, "the feature network")
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no feature network in {folder}: it would hold config.json and features.safetensors")
    tree = json.loads((folder / "config.json").read_text())
    model = FeatureNet(FeatureNetConfig(**to_tuples(tree["network"])))
    clip = jax.ShapeDtypeStruct((1, LEAST_FRAMES, model.config.side, model.config.side, 3), jnp.float32)
    shapes = jax.eval_shape(lambda video: model.init(jax.random.key(0), video), clip)["params"]
    params = jax.tree.map(np.asarray, read_params(folder / "features.safetensors", shapes))
    if (found := weights_hash(params)) != tree["hash"]:
        raise WeightsError(
            f"the weights of {folder} have hash {found}, their config says {tree['hash']}: copy it again"
        )
    return model, params, found
