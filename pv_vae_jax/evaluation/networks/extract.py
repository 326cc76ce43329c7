"""Networks that turn clips into features, each with its name, the hash of its weights and the way pixels reach it."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from pv_vae_jax.batching import padded_batches
from pv_vae_jax.evaluation.features import check_features
from pv_vae_jax.evaluation.networks import c3d, feature_net, i3d
from pv_vae_jax.evaluation.networks.c3d import read_c3d, read_c3d_mean
from pv_vae_jax.evaluation.networks.feature_net import load_features
from pv_vae_jax.evaluation.networks.i3d import read_i3d
from pv_vae_jax.evaluation.networks.published import NetworkIdentity, identify
from pv_vae_jax.model_folder import SHIPPED
from pv_vae_jax.params_io import weights_hash
from pv_vae_jax.pixels import to_float
from pv_vae_jax.progress import progress_bar
from pv_vae_jax.sharding.mesh import make_mesh
from pv_vae_jax.typing import Array, Params

OWN = SHIPPED / "metrics" / "features"  # a level down: the folders of SHIPPED are models
RESIZES = ("half_pixel", "tf1", "antialias")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureNetwork(NetworkIdentity):
    """A network that is ready to extract features, with its identity.

    Attributes:
      least_frames: the fewest frames that the network accepts.
      apply: `(params, (b, t, h, w, 3) in [-1, 1]) -> (b, d)`.
      params: parameters of the network.
    """

    least_frames: int
    apply: Callable[[Params, Array], Array]
    params: Params


def own_network(folder: str | Path | None = None) -> FeatureNetwork:
    """The feature network that ships with the library, or another that `python -m studies.features` made."""
    model, params, found = load_features(folder or OWN)
    side = model.config.side

    def apply(params: Params, video: Array) -> Array:
        return model.apply({"params": params}, resize(video, side, "antialias"))  # pyright: ignore[reportReturnType]

    pixels = f"stretched to {side} x {side}, antialiased bilinear"
    return FeatureNetwork("own", found, None, pixels, least_frames=feature_net.LEAST_FRAMES, apply=apply, params=params)


def i3d_network(
    path: str | Path, *, resize_rule: str = "half_pixel", crop: bool = False, epsilon: float = 1e-3
) -> FeatureNetwork:
    """I3D with weights from a file (see `i3d.read_i3d`).

    Args:
      path: the weights.
      resize_rule: to 224 x 224, one of `RESIZES`; the ports of FVD take `half_pixel`, the first script `tf1`.
      crop: bring the short side to 224 and crop the centre, instead of stretching both.
      epsilon: of batch norm; anything but 1e-3 is no longer the published network.
    """
    file = identify(path)
    params = read_i3d(path)
    model = i3d.I3D(epsilon)

    def apply(params: Params, video: Array) -> Array:
        found: Any = model.apply({"params": params}, resize(video, i3d.SIDE, resize_rule, crop))
        return found.logits

    known = file.known if file.network == "i3d" and epsilon == 1e-3 else None
    way = "short side, then centre square" if crop else "stretched"
    facts = {"weights file sha256": file.sha256, "batch norm epsilon": epsilon}
    pixels = f"{way} to {i3d.SIDE} x {i3d.SIDE}, bilinear, {resize_rule}"
    return FeatureNetwork(
        "i3d", weights_hash(params), known, pixels, facts, least_frames=i3d.LEAST_FRAMES, apply=apply, params=params
    )


def c3d_network(path: str | Path, mean: str | Path) -> FeatureNetwork:
    """C3D's logits, for the inception score; weights and mean cube from files of chainer."""
    file = identify(path)
    params = {"net": read_c3d(path), "mean": read_c3d_mean(mean)}

    def apply(params: Params, video: Array) -> Array:
        pixels = c3d.c3d_input(video, params["mean"])
        return c3d.C3D().apply({"params": params["net"]}, pixels)  # pyright: ignore[reportReturnType]

    known = file.known if file.network == "c3d" else None
    pixels = f"first {c3d.FRAMES} frames, corner-aligned bilinear to {c3d.SIDE} x {c3d.SIDE}, BGR less the mean cube"
    facts = {"weights file sha256": file.sha256}
    return FeatureNetwork(
        "c3d", weights_hash(params), known, pixels, facts, least_frames=c3d.FRAMES, apply=apply, params=params
    )


def resize(video: Array, side: int, rule: str, crop: bool = False) -> Array:
    """Bilinear resize of `(b, t, h, w, 3)` to squares.

    Args:
      video: clips.
      side: of the result.
      rule: `half_pixel` (centres of pixels, no antialiasing: torch), `tf1` (the first TensorFlow's, corners of pixels),
        `antialias`.
      crop: resize the short side and crop the centre, instead of stretching.

    Raises:
      ValueError: unknown rule.
    """
    if rule not in RESIZES:
        raise ValueError(f"unknown resize rule {rule!r}; there are {', '.join(RESIZES)}")
    height, width = video.shape[2:4]
    rows = columns = side
    if crop:
        scale = side / min(height, width)
        rows, columns = max(side, round(height * scale)), max(side, round(width * scale))
    if rule == "tf1":
        x = jnp.einsum("bthwc,hH,wW->btHWc", video, _tf1(height, rows), _tf1(width, columns), precision="highest")
    else:
        shape = (*video.shape[:2], rows, columns, 3)
        highest = jax.lax.Precision.HIGHEST
        x = jax.image.resize(video, shape, "bilinear", antialias=rule == "antialias", precision=highest)
    top, left = (rows - side) // 2, (columns - side) // 2
    return x[:, :, top : top + side, left : left + side]


def _tf1(old: int, new: int) -> np.ndarray:
    """`(old, new)` weights: pixel i of the result lies at `i old / new` of the source."""
    place = np.arange(new) * (old / new)
    low = np.minimum(place.astype(int), old - 1)
    high = np.minimum(low + 1, old - 1)
    weights = np.zeros((old, new), np.float32)
    np.add.at(weights, (low, np.arange(new)), 1 - (place - low))
    np.add.at(weights, (high, np.arange(new)), place - low)
    return weights


def extract(
    network: FeatureNetwork,
    clips: Iterable[np.ndarray],
    *,
    count: int | None = None,
    batch_size: int = 8,
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
    label: str | None = None,
) -> np.ndarray:
    """Features `(n, d)` float32, batch by batch: memory holds one batch of clips and all features.

    Batches are spread over the devices; a clip's features do not depend on its batch, so their number does not matter.

    Args:
      network: what looks.
      clips: `(t, h, w, 3)` uint8 each, all of one shape.
      count: how many there are, for the progress bar.
      batch_size: clips at once, rounded up to a multiple of the devices.
      devices: all of this process by default.
      label: of the progress bar; None shows none.

    Raises:
      FeatureError: features that are not finite.
    """
    devices = jax.local_devices() if devices is None else list(devices)
    mesh = make_mesh(data=len(devices), fsdp=1, devices=devices)
    spread = NamedSharding(mesh, PartitionSpec("data"))
    params = jax.device_put(network.params, NamedSharding(mesh, PartitionSpec()))
    batch_size = -(-batch_size // len(devices)) * len(devices)
    found = []
    bar = progress_bar(total=count, desc=label, unit="clip", disable=label is None)
    with jax.set_mesh(mesh), bar:  # a training stage around it has another mesh
        for batch, count_real in padded_batches(clips, batch_size):
            features = _features(network.apply, params, jax.device_put(batch, spread))
            found.append(np.asarray(features)[:count_real])
            bar.update(count_real)
    features = np.concatenate(found) if found else np.zeros((0, 0), np.float32)
    check_features(features)
    return features


@functools.partial(jax.jit, static_argnums=0)
def _features(apply: Callable, params: Params, video: Array) -> Array:
    return apply(params, to_float(video))
