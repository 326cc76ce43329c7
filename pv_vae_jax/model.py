"""The model that users hold: `load` gives a `Model` that encodes, decodes, predicts and samples; `save` writes it.

A model folder holds `config.json` (written last: without it the folder is not a model), `vae.safetensors`, and, after
diffusion training, `latte.safetensors`. Both are tensors only, so opening one never runs code. The configuration holds
the SHA-256 of both, so that damage is noticed; older folders, without hashes, load as well.

The training state of a VAE stage is read as a model too, so that one can look at a stage before it is finished.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Num

from pv_vae_jax.flow import classifier_free_guidance, denormalize_latents, euler
from pv_vae_jax.messages import did_you_mean
from pv_vae_jax.models.latte import Latte, LatteConfig
from pv_vae_jax.models.registry import build_vae, to_tuples, vae_config_of
from pv_vae_jax.models.vae import VAE, Posterior
from pv_vae_jax.params_io import Placement, find_checkpoint, read_params, restore_params, write_params
from pv_vae_jax.pixels import to_float
from pv_vae_jax.predictive import predict_truncated
from pv_vae_jax.storage import write_json
from pv_vae_jax.streaming import decode_chunks, encode_chunks
from pv_vae_jax.typing import DTYPES, VAE_STAGES, Array, Params, PRNGKey, ShapeError, WeightsError, check_clip_shape

SHIPPED = Path(__file__).parent / "weights"

# The stages whose models a work directory offers, latest first: `load` takes the first that is finished.
STAGE_ORDER = ("diffusion", *reversed(VAE_STAGES))

# What methods take and return. Videos are uint8 or float in [-1, 1], on the host or on a device.
Video = Num[Array | np.ndarray, "b t H W 3"]
Latents = Float[Array | np.ndarray, "b g h w z"]
Labels = Int[Array | np.ndarray, " n"] | list[int]


class Meta(dict):
    """Facts about how a model was trained, as JSON values. Hashed by content, so that `jit` can take a `Model`."""

    def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return hash(json.dumps(self, sort_keys=True, default=str))


@flax.struct.dataclass
class Diffusion:
    """A latent diffusion transformer and what sampling with it needs.

    Attributes:
      model, params: the transformer.
      mean, std: `(z,)` statistics that map its space to the VAE's latents.
      latent_shape: `(g, h, w, z)` of one clip.
      class_names: names of the classes, in label order.
    """

    model: Latte = flax.struct.field(pytree_node=False)
    params: Params
    mean: ArrayLike
    std: ArrayLike
    latent_shape: tuple[int, int, int, int] = flax.struct.field(pytree_node=False)
    class_names: tuple[str, ...] = flax.struct.field(pytree_node=False)


@flax.struct.dataclass
class Model:
    """A trained VAE, and its diffusion transformer if it has one.

    A pytree: parameters are its leaves, so it goes through `jax.jit`, `jax.grad`, `jax.vmap` and `jax.tree.map`. Each
    method is one program, compiled once for each shape, and becomes part of a `jax.jit` around it. Videos are
    `(b, 1 + T, H, W, 3)`, uint8 or float in [-1, 1]; latents are the network's own, `(b, g, h, w, z)`, not normalised.

    Videos and labels that do not fit raise a `ShapeError`, `TypeError` or `ValueError` that says what to do. Within
    `jit` shapes are still checked; values, which are unknown there, are not.

    Attributes:
      vae, vae_params: the VAE and its parameters.
      diffusion: the diffusion transformer, or None.
      meta: facts about how it was trained.
    """

    vae: VAE = flax.struct.field(pytree_node=False)
    vae_params: Params
    diffusion: Diffusion | None = None
    meta: dict = flax.struct.field(pytree_node=False, default_factory=Meta)

    def __post_init__(self):
        if not isinstance(self.meta, Meta):
            object.__setattr__(self, "meta", Meta(self.meta))

    def posterior(self, video: Video, *, chunk: int | None = None) -> Posterior:
        """The Gaussian over latents, `mean` and `logvar`; `chunk` as for `encode`."""
        return _posterior(self.vae, chunk, self.vae_params, _checked_video(self.vae, video))

    def encode(
        self, video: Video, key: PRNGKey | None = None, *, chunk: int | None = None
    ) -> Float[Array, "b g h w z"]:
        """Video to latents: the posterior's mean, or with `key` a sample of it.

        Args:
          video: `(b, 1 + T, H, W, 3)`, uint8 or float in [-1, 1].
          key: draws the sample; None gives the mean.
          chunk: latent frames to encode at a time. The numbers stay the same to rounding, and memory does not grow with
            the length of the clip. None encodes the clip in one pass.
        """
        return _encode(self.vae, chunk, self.vae_params, _checked_video(self.vae, video), key)

    def decode(self, latents: Latents, *, chunk: int | None = None) -> Float[Array, "b t H W 3"]:
        """Latents `(b, g, h, w, z)` to float32 video, roughly in [-1, 1] but not clamped; `chunk` as for `encode`."""
        _check_not_empty("latents", latents := _array(latents))
        return _decode(self.vae, chunk, self.vae_params, latents)

    def reconstruct(self, video: Video, *, chunk: int | None = None) -> Float[Array, "b t H W 3"]:
        """Encode to the posterior's mean, decode: the video's shape, float32 clamped to [-1, 1]."""
        return _reconstruct(self.vae, chunk, self.vae_params, _checked_video(self.vae, video))

    def predict(self, video: Video, observed: int = 9, key: PRNGKey | None = None) -> Float[Array, "b t H W 3"]:
        """See the first `observed` frames and draw all: the video's shape, float32 clamped to [-1, 1].

        Args:
          video: `(b, 1 + T, H, W, 3)`; frames after the observed ones only determine how many to draw.
          observed: number of frames to see, `1 + n p_t`.
          key: draws a sample of the posterior, and gaussian padding, which needs one; None takes the posterior's mean.
        """
        video, observed = _checked_video(self.vae, video), operator.index(observed)
        frames, p_t = video.shape[1], self.vae.config.time_factor
        if (observed - 1) % p_t or not 1 <= observed <= frames:
            nearest = sorted(range(1, frames + 1, p_t), key=lambda n: abs(n - observed))[:2]
            raise ShapeError(
                f"expected observed to be 1 + {p_t} n and at most the clip's {frames} frames, got {observed}: pass "
                f"{' or '.join(map(str, sorted(nearest)))}"
            )
        return _predict(self.vae, observed, self.vae_params, video, key)

    def sample(
        self, labels: Labels, key: PRNGKey, *, steps: int = 100, guidance: float = 1.0, index: Labels | None = None
    ) -> Float[Array, "n t H W 3"]:
        """Generate one clip per label: noise, Euler steps with guidance, decoder.

        Args:
          labels: `(n,)` classes; for a model without classes only their number matters.
          key: draws the noise.
          steps: Euler steps (paper: 100).
          guidance: scale of classifier-free guidance; 1 means none, and is all that a model without classes accepts.
          index: `(n,)` numbers of the clips, by default `0 .. n - 1`: the noise of a clip depends on `key` and its
            number alone, so a large set may be drawn in batches.

        Returns:
          Video clamped to [-1, 1]; NaN where a pixel is not finite.
        """
        labels = checked_labels(self, labels, guidance)
        index = np.arange(len(labels)) if index is None else _array(index)
        if index.shape != labels.shape:
            raise ShapeError(f"expected an index for each of the {len(labels)} labels, got shape {index.shape}")
        return _sample(self.vae, steps, guidance, self.vae_params, self.diffusion, key, index, labels)


def _program(*static: int) -> Callable:
    """`jax.jit` whose first arguments are static, and which is inlined into a `jit` around it."""
    return functools.partial(jax.jit, static_argnums=static, inline=True)


@_program(0, 1)
def _posterior(vae: VAE, chunk: int | None, params: Params, video: Array) -> Posterior:
    video = to_float(video) if video.dtype == "uint8" else video  # on the device: a quarter of the bytes to transfer
    if chunk is None:
        return vae.apply({"params": params}, video, method="encode")
    return encode_chunks(vae, params, video, chunk)


@_program(0, 1)
def _encode(vae: VAE, chunk: int | None, params: Params, video: Array, key: PRNGKey | None) -> Array:
    posterior = _posterior(vae, chunk, params, video)
    return posterior.mode if key is None else posterior.sample(key)  # (b, g, h, w, z)


@_program(0, 1)
def _decode(vae: VAE, chunk: int | None, params: Params, latents: Array) -> Array:
    if chunk is None:
        return vae.apply({"params": params}, latents, method="decode")
    return decode_chunks(vae, params, latents, chunk)


@_program(0, 1)
def _reconstruct(vae: VAE, chunk: int | None, params: Params, video: Array) -> Array:
    return jnp.clip(_decode(vae, chunk, params, _posterior(vae, chunk, params, video).mode), -1.0, 1.0)


@_program(0, 1)
def _predict(vae: VAE, observed: int, params: Params, video: Array, key: PRNGKey | None) -> Array:
    video = to_float(video) if video.dtype == "uint8" else video
    dropped = (video.shape[1] - observed) // vae.config.time_factor
    prediction = predict_truncated(vae, params, video, dropped, key)
    return jnp.clip(_decode(vae, None, params, prediction.latents), -1.0, 1.0)


@_program(0, 1, 2)
def _sample(
    vae: VAE, steps: int, guidance: float, params: Params, diffusion: Diffusion, key: Array, index: Array, label: Array
) -> Array:
    transformer, variables = diffusion.model, {"params": diffusion.params}
    noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), diffusion.latent_shape))(index)
    if classes := transformer.config.classes:
        conditional = functools.partial(transformer.apply, variables)
        velocity = classifier_free_guidance(conditional, label, classes, guidance)
    else:
        velocity = functools.partial(transformer.apply, variables, label=None)
    latents = denormalize_latents(euler(velocity, noise, steps), diffusion.mean, diffusion.std)  # (n, g, h, w, z)
    video = _decode(vae, None, params, latents)  # (n, 1 + T, H, W, 3)
    return jnp.where(jnp.isfinite(video), jnp.clip(video, -1.0, 1.0), jnp.nan)


def _array(x: Any) -> Any:
    """`x` itself if it is a JAX array, on a device or traced; anything else as a NumPy array."""
    return x if isinstance(x, jax.Array) else np.asarray(x)


def _checked_video(vae: VAE, video: Any) -> Any:
    """`video` as an array, after checking its shape, its type and, unless it is traced, its values."""
    video, config = _array(video), vae.config
    if video.ndim != 5 or video.shape[-1] != 3:
        one_clip = video.ndim == 4 and video.shape[-1] == 3
        advice = "add a batch axis, video[None]" if one_clip else "move its axes into this order"
        raise ShapeError(f"expected video (b, t, H, W, 3), got {video.shape}: {advice}")
    _check_not_empty("video", video)
    check_clip_shape(*video.shape[1:4], config.time_factor, config.space_factor)
    if video.dtype == "uint8":
        return video
    if not jnp.issubdtype(video.dtype, jnp.floating):
        raise TypeError(f"expected uint8 or float video, got {video.dtype}: convert pixels in [0, 255] to uint8")
    if not isinstance(video, jax.core.Tracer):
        with jax.ensure_compile_time_eval():  # within a jit as well, where a constant is known
            fits, low, high = np.asarray(_extent(video))
        if not fits:
            found = f"values from {low:.4g} to {high:.4g}" if low < -1 or high > 1 else "NaN"
            raise ValueError(
                f"expected float video in [-1, 1], got {found}: pass uint8 pixels, or pv_vae_jax.to_float of them; "
                "clamp the output of a network"
            )
    return video


@jax.jit
def _extent(video: Array) -> Array:
    """Whether all values are in [-1, 1] (NaN is not), the smallest and the largest."""
    return jnp.stack([(jnp.abs(video) <= 1).all(), video.min(), video.max()]).astype(jnp.float32)


def _check_not_empty(name: str, array: Array) -> None:
    if 0 in array.shape:
        raise ShapeError(f"expected at least one clip, got {name} of shape {array.shape}: skip empty batches")


def checked_labels(model: Model, labels: ArrayLike, guidance: float = 1.0) -> Array | np.ndarray:
    """`labels` as an array, after checking them and `guidance` against the transformer of `model`.

    Raises:
      ValueError: the model has no transformer, or no classes to guide by, or a label is out of range.
    """
    if model.diffusion is None:
        raise ValueError("this model has no diffusion transformer: load one whose stage diffusion is finished")
    classes = model.diffusion.model.config.classes
    labels = _array(labels)
    if labels.ndim != 1 or not len(labels):
        raise ShapeError(f"expected labels (n,), at least one, got shape {labels.shape}: pass one label per clip")
    if not classes and guidance != 1.0:
        raise ValueError(f"guidance {guidance} needs a class-conditional transformer; set it to 1")
    if not classes or isinstance(labels, jax.core.Tracer):
        return labels
    if not np.issubdtype(labels.dtype, np.integer) or len(wrong := np.setdiff1d(labels, np.arange(classes))):
        got = wrong.tolist() if np.issubdtype(labels.dtype, np.integer) else labels.dtype
        raise ValueError(f"labels must be whole numbers from 0 to {classes - 1}, got {got}")
    return labels


def load(name_or_path: str | Path, *, dtype: str | None = None, sharding: Placement | None = None) -> Model:
    """Load a shipped model by name, a model folder, or the newest finished model of a work directory or a stage.

    A training state, such as `runs/a/video/checkpoints/9000`, or the folder of an unfinished VAE stage, which stands
    for its newest training state, gives the VAE with the moving average of its weights.

    Args:
      name_or_path: what to load.
      dtype: what the networks compute in, `float32`, `bfloat16` or `float16`; by default what they were trained in.
        Parameters, posteriors and pixels are float32 in any case.
      sharding: where to place the parameters: a `jax.sharding.Sharding` for all of them, or a function from the tree of
        their shapes to a tree of shardings. By default they go to the default device.

    Raises:
      FileNotFoundError: there is no such model; the shipped names are listed.
      WeightsError: tensors are missing, unexpected, misshapen or not finite (all are named), or a file is damaged.
      ValueError: the networks cannot compute in `dtype`.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be {' or '.join(map(repr, DTYPES))}, got {dtype!r}")
    path = Path(name_or_path)
    state = None if (path / "model" / "config.json").exists() else find_checkpoint(path)
    folder = state or find_model(path)
    try:
        return _load_state(state, dtype, sharding) if state else _load(folder, dtype, sharding)
    except WeightsError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise WeightsError(f"the model in {folder} is damaged: {type(error).__name__}: {error}") from error


def _load(folder: Path, dtype: str | None, sharding: Placement | None) -> Model:
    config = json.loads((folder / "config.json").read_text())

    def read(file: str, init: Callable[[], Params]) -> Params:
        hashes = dict(config.get("sha256", {}))
        return read_params(folder / file, jax.eval_shape(init), hashes=hashes, sharding=sharding)

    vae, diffusion = _vae(config["vae"], dtype), None
    vae_params = read("vae.safetensors", lambda: _init_vae(vae))
    if "latte" in config:
        latte = Latte(_with_dtype(LatteConfig(**to_tuples(config["latte"])), dtype))
        shape = tuple(config["latents"]["shape"])
        params = read("latte.safetensors", lambda: init_latte(latte, shape))
        mean, std = (np.asarray(config["latents"][k], np.float32) for k in ("mean", "std"))
        for name, statistic in (("mean", mean), ("std", std)):
            if statistic.shape != (latte.config.latent_channels,) or not np.isfinite(statistic).all():
                raise ValueError(f"latents.{name} must be a finite number for each channel")
        diffusion = Diffusion(latte, params, mean, std, shape, tuple(config["latents"]["class_names"]))
    return Model(vae, vae_params, diffusion, config.get("meta", {}))


def _load_state(state: Path, dtype: str | None, sharding: Placement | None) -> Model:
    """The VAE in `<workdir>/<stage>/checkpoints/<step>`."""
    stage, workdir = state.absolute().parents[1].name, state.absolute().parents[2]
    if stage not in VAE_STAGES:
        raise FileNotFoundError(
            f"{state} is a training state of {stage}, which holds no VAE: give one of {', '.join(VAE_STAGES)}"
        )
    config = json.loads((workdir / "config.json").read_text())
    vae = _vae(config["vae"], dtype)
    shapes = jax.eval_shape(lambda: _init_vae(vae))
    params = jax.device_put(restore_params(state, "ema", shapes), sharding(shapes) if callable(sharding) else sharding)
    meta = {"experiment": config["name"], "stage": stage, "images": config[stage]["images"], "steps": int(state.name)}
    return Model(vae, params, meta=meta)


def save(folder: str | Path, model: Model, dtype: str = "float32") -> None:
    """Write a model folder: tensors first, `config.json` last, each file atomically.

    `dtype` is that of the stored tensors; `float16` halves the size of a model to be shipped. `load` gives float32.

    Raises:
      ValueError: the VAE is of a kind that `models.registry` does not know, so `load` could not build it.
    """
    build_vae(model.vae.config)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    config = {"meta": model.meta, "vae": dataclasses.asdict(model.vae.config)}
    config["sha256"] = {"vae.safetensors": write_params(folder / "vae.safetensors", model.vae_params, dtype)}
    if model.diffusion is not None:
        d = model.diffusion
        config["latte"] = dataclasses.asdict(d.model.config)
        config["latents"] = {
            "shape": list(d.latent_shape),
            "mean": np.asarray(d.mean).tolist(),
            "std": np.asarray(d.std).tolist(),
            "class_names": list(d.class_names),
        }
        config["sha256"]["latte.safetensors"] = write_params(folder / "latte.safetensors", d.params, dtype)
    write_json(folder / "config.json", config)


def init_latte(model: Latte, latent_shape: tuple[int, ...], key: PRNGKey | None = None) -> Params:
    """Fresh parameters of a transformer for latents `(g, h, w, z)`."""
    key = jax.random.key(0) if key is None else key
    return model.init(key, jnp.zeros((1, *latent_shape)), jnp.zeros((1,)), jnp.zeros((1,), int))["params"]


def find_model(name_or_path: str | Path) -> Path:
    """The folder of the finished model that `load` reads.

    Raises:
      FileNotFoundError: there is no such model; the message names an unfinished stage, or else the shipped models.
    """
    path = Path(name_or_path)
    candidates = [SHIPPED / path, path, path / "model"] + [path / stage / "model" for stage in STAGE_ORDER]
    for folder in candidates:
        if (folder / "config.json").exists() and (folder / "vae.safetensors").exists():
            return folder
    for state in filter(None, (find_checkpoint(path / stage) for stage in reversed(VAE_STAGES))):
        raise FileNotFoundError(
            f"no model at {path}: its stage {state.parents[1].name} is not finished. The command that began it goes on "
            f"from step {state.name}; give {state} to take the weights of that step"
        )
    shipped = sorted(p.parent.name for p in SHIPPED.glob("*/config.json"))
    hint = did_you_mean(str(name_or_path), shipped, else_list=False)
    raise FileNotFoundError(
        f"no model at {name_or_path}{f' ({hint})' if hint else ''}: give a model folder, the work directory of a run "
        f"with a finished stage, or one of the shipped models ({', '.join(shipped) or 'none'})"
    )


def _vae(tree: dict, dtype: str | None) -> VAE:
    """The network that `tree`, from JSON, describes."""
    return build_vae(_with_dtype(vae_config_of(tree), dtype))


def _with_dtype(config: Any, dtype: str | None) -> Any:
    return config if dtype is None else dataclasses.replace(config, dtype=dtype)


def _init_vae(model: VAE) -> Params:
    side = model.config.space_factor
    return model.init(jax.random.key(0), jnp.zeros((1, 1 + model.config.time_factor, side, side, 3)))["params"]
