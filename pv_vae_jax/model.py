"""Use checkpoints: the weights one needs to use a model, as safetensors beside a JSON config.

A folder holds `config.json` (written last: without it the folder is not a model), `vae.safetensors`, and, after
diffusion training, `latte.safetensors`. Both are tensors only, so opening one never runs code. The configuration holds
the SHA-256 of both, so that damage is noticed; older folders, without, load as well.

The training state of a VAE stage is read as a model too, so that one can look at a stage before it is finished.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from pathlib import Path

import jax
import numpy as np
from safetensors import SafetensorError

from pv_vae_jax.models.latte import Latte, LatteConfig
from pv_vae_jax.models.registry import build_vae, to_tuples, vae_config_of
from pv_vae_jax.models.vae import VAE
from pv_vae_jax.params_io import find_checkpoint, read_params, restore_params, write_params
from pv_vae_jax.storage import write_json
from pv_vae_jax.typing import VAE_STAGES, Params, WeightsError

SHIPPED = Path(__file__).parent / "weights"

# The stage whose model a work directory offers: the last that is finished.
STAGE_ORDER = ("diffusion", *reversed(VAE_STAGES))


@dataclasses.dataclass(frozen=True)
class Diffusion:
    """A latent diffusion transformer and what sampling with it needs.

    Attributes:
      model, params: the transformer.
      mean, std: `(z,)` statistics that map its space to the VAE's latents.
      latent_shape: `(g, h, w, z)` of one clip.
      class_names: in label order.
    """

    model: Latte
    params: Params
    mean: np.ndarray
    std: np.ndarray
    latent_shape: tuple[int, int, int, int]
    class_names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A trained VAE, its diffusion transformer if there is one, and facts about the training (`meta`)."""

    vae: VAE
    vae_params: Params
    diffusion: Diffusion | None = None
    meta: dict = dataclasses.field(default_factory=dict)


def load(name_or_path: str | Path) -> Pretrained:
    """Load a shipped model by name, a model folder, or the newest finished model of a work directory or a stage.

    A training state, `runs/a/video/checkpoints/9000`, or the folder of a VAE stage that is not finished, for its newest
    one, gives the VAE with the moving average of its weights.

    Raises:
      FileNotFoundError: no such model; the shipped names are listed.
      WeightsError: tensors are missing, left over, misshapen or not finite (all are named), or a file is damaged.
    """
    path = Path(name_or_path)
    state = None if (path / "model" / "config.json").exists() else find_checkpoint(path)
    folder = state or find_model(path)
    try:
        return _load_state(state) if state else _load(folder)
    except WeightsError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise WeightsError(f"the model in {folder} is damaged: {type(error).__name__}: {error}") from error
    except SafetensorError as error:
        raise WeightsError(f"the model in {folder} is damaged: {error}") from error


def _load(folder: Path) -> Pretrained:
    config = json.loads((folder / "config.json").read_text())
    hashes = dict(config.get("sha256", {}))
    vae = build_vae(vae_config_of(config["vae"]))
    vae_params = read_params(folder / "vae.safetensors", jax.eval_shape(lambda: _init_vae(vae)), hashes=hashes)
    diffusion = None
    if "latte" in config:
        latte = Latte(LatteConfig(**to_tuples(config["latte"])))
        shape = tuple(config["latents"]["shape"])
        params = read_params(
            folder / "latte.safetensors", jax.eval_shape(lambda: init_latte(latte, shape)), hashes=hashes
        )
        mean, std = (np.asarray(config["latents"][k], np.float32) for k in ("mean", "std"))
        for name, statistic in (("mean", mean), ("std", std)):
            if statistic.shape != (latte.config.latent_channels,) or not np.isfinite(statistic).all():
                raise ValueError(f"latents.{name} is not a finite number for each channel")
        diffusion = Diffusion(latte, params, mean, std, shape, tuple(config["latents"]["class_names"]))
    return Pretrained(vae, vae_params, diffusion, config.get("meta", {}))


def _load_state(state: Path) -> Pretrained:
    """The VAE in `<workdir>/<stage>/checkpoints/<step>`."""
    stage, workdir = state.absolute().parents[1].name, state.absolute().parents[2]
    if stage not in VAE_STAGES:
        raise FileNotFoundError(f"{state} is a training state of {stage}, which holds no VAE: give one of a VAE stage")
    config = json.loads((workdir / "config.json").read_text())
    vae = build_vae(vae_config_of(config["vae"]))
    params = restore_params(state, "ema", jax.eval_shape(lambda: _init_vae(vae)))
    meta = {"experiment": config["name"], "stage": stage, "images": config[stage]["images"], "steps": int(state.name)}
    return Pretrained(vae, jax.tree.map(jax.numpy.asarray, params), meta=meta)


def save(folder: str | Path, model: Pretrained, dtype: str = "float32") -> None:
    """Write a model folder: tensors first, `config.json` last, each file whole or not at all.

    `dtype` is that of the stored tensors; `float16` halves a model that is to be shipped. `load` gives float32.

    Raises:
      ValueError: a VAE of no known kind (`models.kinds`), which `load` could not build.
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


def init_latte(model: Latte, latent_shape: tuple[int, ...], key: jax.Array | None = None) -> Params:
    """Fresh parameters of a transformer for latents `(g, h, w, z)`."""
    zeros = jax.numpy.zeros
    key = jax.random.key(0) if key is None else key
    return model.init(key, zeros((1, *latent_shape)), zeros((1,)), zeros((1,), int))["params"]


def _init_vae(model: VAE) -> Params:
    side = model.config.space_factor
    return model.init(jax.random.key(0), jax.numpy.zeros((1, 1 + model.config.time_factor, side, side, 3)))["params"]


def find_model(name_or_path: str | Path) -> Path:
    """The folder of the finished model that `load` reads.

    Raises:
      FileNotFoundError: no such model; a stage that is not finished is named, or else the shipped models.
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
    near = difflib.get_close_matches(str(name_or_path), shipped, 1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise FileNotFoundError(
        f"no model at {name_or_path}{hint}: give a model folder, the work directory of a run with a finished stage, or "
        f"one of the shipped models ({', '.join(shipped) or 'none'})"
    )
