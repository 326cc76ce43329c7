"""The model that users hold: `load` gives a `Model` that encodes, decodes, predicts and samples; `save` writes it.

A model folder holds `config.json` (written last: without it the folder is not a model), `vae.safetensors`, and, after
diffusion training, `latte.safetensors`. Both are tensors only, so opening one never runs code. The configuration holds
the SHA-256 of both, so that damage is noticed; older folders, without hashes, load as well.

The training state of a VAE stage is read as a model too, so that one can look at a stage before it is finished.
"""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Num

from pv_vae_jax import model_inputs, params_io
from pv_vae_jax.flow import classifier_free_guidance, denormalize_latents, euler
from pv_vae_jax.model_folder import find_model, local_or_bucket, read_model_config, shipped_models
from pv_vae_jax.models.latte import Latte, LatteConfig
from pv_vae_jax.models.registry import build_vae, to_tuples, vae_config_of
from pv_vae_jax.models.vae import VAE, Posterior
from pv_vae_jax.pixels import to_float
from pv_vae_jax.predictive import predict_truncated
from pv_vae_jax.storage import as_path, atomic
from pv_vae_jax.streaming import decode_chunks, encode_chunks
from pv_vae_jax.typing import DTYPES, VAE_STAGES, Array, ConfigError, Params, PRNGKey, ShapeError, WeightsError

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
        return _posterior(self.vae, _chunk(chunk), self.vae_params, model_inputs.checked_video(self.vae, video))

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
        return _encode(self.vae, _chunk(chunk), self.vae_params, model_inputs.checked_video(self.vae, video), key)

    def decode(self, latents: Latents, *, chunk: int | None = None) -> Float[Array, "b t H W 3"]:
        """Latents `(b, g, h, w, z)` to float32 video, roughly in [-1, 1] but not clamped; `chunk` as for `encode`."""
        return _decode(self.vae, _chunk(chunk), self.vae_params, model_inputs.checked_latents(self.vae, latents))

    def reconstruct(self, video: Video, *, chunk: int | None = None) -> Float[Array, "b t H W 3"]:
        """Encode to the posterior's mean, decode: the video's shape, float32 clamped to [-1, 1]."""
        return _reconstruct(self.vae, _chunk(chunk), self.vae_params, model_inputs.checked_video(self.vae, video))

    def predict(self, video: Video, observed: int = 9, key: PRNGKey | None = None) -> Float[Array, "b t H W 3"]:
        """See the first `observed` frames and draw all: the video's shape, float32 clamped to [-1, 1].

        Args:
          video: `(b, 1 + T, H, W, 3)`; frames after the observed ones only determine how many to draw.
          observed: number of frames to see, `1 + n p_t`.
          key: draws a sample of the posterior, and gaussian padding, which needs one; None takes the posterior's mean.
        """
        whole: Any = model_inputs.checked_video(self.vae, video)
        observed = model_inputs.checked_count("observed", observed)
        frames, p_t = whole.shape[1], self.vae.config.time_factor
        if (observed - 1) % p_t or not 1 <= observed <= frames:
            nearest = sorted(range(1, frames + 1, p_t), key=lambda n: abs(n - observed))[:2]
            raise ShapeError(
                f"expected observed to be 1 + {p_t} n and at most the clip's {frames} frames, got {observed}: pass "
                f"{' or '.join(map(str, sorted(nearest)))}"
            )
        return _predict(self.vae, observed, self.vae_params, whole, key)

    def sample(
        self, labels: Labels, key: PRNGKey, *, steps: int = 100, guidance: ArrayLike = 1.0, index: Labels | None = None
    ) -> Float[Array, "n t H W 3"]:
        """Generate one clip per label: noise, Euler steps with guidance, decoder.

        Args:
          labels: `(n,)` classes; for a model without classes only their number matters.
          key: draws the noise.
          steps: Euler steps (paper: 100).
          guidance: scale of classifier-free guidance, at least 0; 1 means none, and is all that a model without classes
            accepts. It may be traced.
          index: `(n,)` numbers of the clips, by default `0 .. n - 1`: the noise of a clip depends on `key` and its
            number alone, so a large set may be drawn in batches.

        Returns:
          Video clamped to [-1, 1]; NaN where a pixel is not finite.
        """
        label = model_inputs.checked_labels(self.diffusion and self.diffusion.model, labels, guidance)
        number, steps = model_inputs.checked_index(index, len(label)), model_inputs.checked_count("steps", steps)
        scale: Any = model_inputs.checked_guidance(guidance)
        key = model_inputs.checked_key(key)
        guided = isinstance(scale, jax.core.Tracer) or scale != 1.0  # two networks, another program
        diffusion: Any = self.diffusion  # `checked_labels` refuses a model without
        return _sample(self.vae, steps, guided, self.vae_params, diffusion, key, number, label, scale)


def _chunk(chunk: int | None) -> int | None:
    return None if chunk is None else model_inputs.checked_count("chunk", chunk)


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
    vae: VAE,
    steps: int,
    guided: bool,
    params: Params,
    diffusion: Diffusion,
    key: PRNGKey,
    index: Array,
    label: Array,
    guidance: Array,
) -> Array:
    transformer, variables = diffusion.model, {"params": diffusion.params}
    noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), diffusion.latent_shape, "float32"))(index)
    if classes := transformer.config.classes:
        conditional = functools.partial(transformer.apply, variables)
        velocity = classifier_free_guidance(conditional, label, classes, guidance if guided else 1.0)
    else:
        velocity = functools.partial(transformer.apply, variables, label=None)
    latents = denormalize_latents(euler(velocity, noise, steps), diffusion.mean, diffusion.std)  # (n, g, h, w, z)
    video = _decode(vae, None, params, latents)  # (n, 1 + T, H, W, 3)
    return jnp.where(jnp.isfinite(video), jnp.clip(video, -1.0, 1.0), jnp.nan)


def load(name_or_path: str | Path, *, dtype: str | None = None, sharding: params_io.Placement | None = None) -> Model:
    """Load a shipped model by name, a model folder, or the newest finished model of a work directory or a stage.

    A training state, such as `runs/a/video/checkpoints/9000`, or the folder of an unfinished VAE stage, which stands
    for its newest training state, gives the VAE with the moving average of its weights. `hf://OWNER/NAME` and
    `hf://OWNER/NAME@REVISION` are models on the Hugging Face Hub (extra `hub`).

    Args:
      name_or_path: what to load.
      dtype: what the networks compute in, `float32`, `bfloat16` or `float16`; by default what they were trained in.
        Given one, kernels are held in it too, at half the memory; to train the model further, leave it out.
        Posteriors and pixels are float32 in any case.
      sharding: where to place the parameters: a `jax.sharding.Sharding` for all of them, or a function from the tree of
        their shapes to a tree of shardings. By default they go to the default device.

    Raises:
      FileNotFoundError: there is no such model; the shipped names are listed.
      WeightsError: tensors are missing, unexpected, misshapen or not finite (all are named), or a file is damaged.
      ValueError: the networks cannot compute in `dtype`.
      TypeError: `sharding` is not a placement.
      ConfigError: the name is empty, or that of a shipped model and of a folder here.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be {' or '.join(map(repr, DTYPES))}, got {dtype!r}")
    params_io.check_placement(sharding)
    if not str(name_or_path):
        raise ConfigError(f"the name of the model is empty: name a folder, or one of {', '.join(shipped_models())}")
    path = local_or_bucket(name_or_path)
    state = None if (path / "model" / "config.json").exists() else params_io.find_checkpoint(path)
    return _load_state(state, dtype, sharding) if state else _load(find_model(name_or_path), dtype, sharding)


@contextlib.contextmanager
def _damage(folder: Path) -> Iterator[None]:
    """Turn what goes wrong with the configuration of the model in `folder` into a `WeightsError`."""
    try:
        yield
    except WeightsError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise WeightsError(
            f"the model in {folder} is damaged: {type(error).__name__}: {error}. Copy the model again"
        ) from error


def _load(folder: Path, dtype: str | None, sharding: params_io.Placement | None) -> Model:
    diffusion = None
    with _damage(folder):
        config = read_model_config(folder)
        vae, hashes, meta = _vae(config["vae"], dtype), dict(config.get("sha256", {})), Meta(config.get("meta", {}))
        if "latte" in config:
            latte = Latte(_with_dtype(LatteConfig(**to_tuples(config["latte"])), dtype))
            facts = config["latents"]
            shape, names = tuple(facts["shape"]), tuple(facts["class_names"])
            mean, std = (np.asarray(facts[k], np.float32) for k in ("mean", "std"))
            diffusion = Diffusion(latte, None, mean, std, shape, names)
            _check_diffusion(diffusion)
    # Outside, since the settings of a program may keep a network from being built or placed, which is no damage.
    shapes = _vae_shapes(vae)  # pyright: ignore[reportArgumentType]  # Linen's modules have a hash
    vae_params = params_io.read_params(folder / "vae.safetensors", shapes, hashes=hashes, sharding=sharding)
    if diffusion is not None:
        shapes = _latte_shapes(diffusion.model, diffusion.latent_shape)  # pyright: ignore[reportArgumentType]
        params = params_io.read_params(folder / "latte.safetensors", shapes, hashes=hashes, sharding=sharding)
        diffusion = dataclasses.replace(diffusion, params=cast_kernels(params, dtype))
    return Model(vae, cast_kernels(vae_params, dtype), diffusion, meta)


def cast_kernels(params: Params, dtype: str | None) -> Params:
    """`params` with kernels in `dtype`, to which their layers cast them before use; those of float32 layers stay."""

    def cast(path: tuple, p: Array) -> Array:
        names = {part.key for part in path}
        return p.astype(dtype) if "kernel" in names and not names & FLOAT32_LAYERS else p

    return params if dtype is None else jax.tree.map_with_path(cast, params)


# First and last layers that compute in float32, or add kernels before they are cast.
FLOAT32_LAYERS = {"dense1", "dense2", "output", "moments", "head", "latents", "first", "later"}


def _check_diffusion(diffusion: Diffusion) -> None:
    """Raise `ValueError` unless shape, statistics and class names suit the transformer."""
    config, names, shape = diffusion.model.config, diffusion.class_names, diffusion.latent_shape
    if len(shape) != 4 or min(shape) < 1 or shape[-1] != config.latent_channels:
        raise ValueError(f"diffusion.latent_shape must be (g, h, w, {config.latent_channels}), got {shape}")
    for name, least in (("mean", -np.inf), ("std", 0.0)):
        statistic = np.asarray(getattr(diffusion, name), np.float32)
        if statistic.shape != (config.latent_channels,):
            raise ValueError(f"diffusion.{name} must have {config.latent_channels} numbers, got {statistic.shape}")
        if (wrong := statistic[~(np.isfinite(statistic) & (statistic > least))]).size:
            raise ValueError(f"diffusion.{name} must be finite{', above 0' * (name == 'std')}, got {wrong[0]}")
    if not all(isinstance(name, str) for name in names) or config.classes not in (0, len(names)):
        raise ValueError(
            f"diffusion.class_names must name the {config.classes} classes of the transformer, got {names}"
        )


def _load_state(state: Path, dtype: str | None, sharding: params_io.Placement | None) -> Model:
    """The VAE in `<workdir>/<stage>/checkpoints/<step>`."""
    stage, workdir = state.absolute().parents[1].name, state.absolute().parents[2]
    if stage not in VAE_STAGES:
        raise FileNotFoundError(
            f"{state} is a training state of {stage}, which holds no VAE: give one of {', '.join(VAE_STAGES)}"
        )
    with _damage(state):
        config = read_model_config(workdir)
        vae, images = _vae(config["vae"], dtype), config[stage]["images"]
        meta = {"experiment": config["name"], "stage": stage, "images": images, "steps": int(state.name)}
    shapes = _vae_shapes(vae)  # pyright: ignore[reportArgumentType]
    params = params_io.restore_params(state, "ema", shapes)
    params = jax.device_put(params, sharding(shapes) if callable(sharding) else sharding)
    return Model(vae, cast_kernels(params, dtype), meta=meta)


def save(folder: str | Path, model: Model, dtype: str = "float32") -> None:
    """Write a model folder: tensors first, `config.json` last, each file atomically.

    `dtype` is that of the stored tensors; `float16` halves the size of a model to be shipped. `load` gives float32.

    What cannot be saved is refused, and if writing fails, as on a full disk, a model that was in `folder` stays.

    Raises:
      ValueError: the VAE is of a kind that `models.registry` does not know, so `load` could not build it; `dtype` is
        unknown; or `meta` or what belongs to the diffusion transformer cannot be stored.
      WeightsError: parameters are not finite, or too large for `dtype`: the first are named.
      ConfigError: `folder` is empty or an address other than gs://....
    """
    folder = as_path(folder, "the model folder")
    build_vae(model.vae.config)
    config: dict[str, Any] = {"meta": model.meta, "vae": dataclasses.asdict(model.vae.config), "sha256": {}}
    tensors = {"vae.safetensors": model.vae_params}
    if model.diffusion is not None:
        d = model.diffusion
        _check_diffusion(d)
        config["latte"] = dataclasses.asdict(d.model.config)
        config["latents"] = {
            "shape": list(d.latent_shape),
            "mean": np.asarray(d.mean).tolist(),
            "std": np.asarray(d.std).tolist(),
            "class_names": list(d.class_names),
        }
        tensors["latte.safetensors"] = d.params
    for file, params in tensors.items():
        params_io.check_storable(file, params, dtype)
    try:
        json.dumps(config, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"meta must hold finite JSON values, got {model.meta}: {error}; convert it") from error
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as files:  # which puts them in place last first: config.json after the tensors
        record = files.enter_context(atomic(folder / "config.json"))
        for file, params in tensors.items():
            config["sha256"][file] = params_io.write_params(files.enter_context(atomic(folder / file)), params, dtype)
        record.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        (folder / "config.json").unlink(missing_ok=True)
        if model.diffusion is None:
            (folder / "latte.safetensors").unlink(missing_ok=True)


def init_latte(model: Latte, latent_shape: tuple[int, ...], key: PRNGKey | None = None) -> Params:
    """Fresh parameters of a transformer for latents `(g, h, w, z)`."""
    key = jax.random.key(0) if key is None else key
    return model.init(key, jnp.zeros((1, *latent_shape)), jnp.zeros((1,)), jnp.zeros((1,), int))["params"]


def _vae(tree: dict, dtype: str | None) -> VAE:
    """The network that `tree`, from JSON, describes."""
    return build_vae(_with_dtype(vae_config_of(tree), dtype))


def _with_dtype(config: Any, dtype: str | None) -> Any:
    return config if dtype is None else dataclasses.replace(config, dtype=dtype)


@functools.lru_cache(maxsize=16)  # tracing takes longer than reading a small file, and models of one kind come often
def _vae_shapes(model: VAE) -> Params:
    clip = jnp.zeros((1, 1 + model.config.time_factor, *2 * (model.config.space_factor,), 3))
    return jax.eval_shape(lambda: model.init(jax.random.key(0), clip)["params"])


@functools.lru_cache(maxsize=16)
def _latte_shapes(model: Latte, latent_shape: tuple[int, ...]) -> Params:
    return jax.eval_shape(lambda: init_latte(model, latent_shape))
