"""What a VAE stage starts from: a model, or the training state of another stage, whole or some of its parts.

Of a file only the tensors that were asked for are read, so the encoder of a large run costs what an encoder costs.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from pv_vae_jax.model import find_model
from pv_vae_jax.models.inflate import inflate_image_params
from pv_vae_jax.models.registry import vae_config_of
from pv_vae_jax.models.vae import VAE
from pv_vae_jax.params_io import find_checkpoint, read_params, restore_params
from pv_vae_jax.train.configs import VAEStageConfig
from pv_vae_jax.train.run import Run, read_config
from pv_vae_jax.typing import ConfigError, Params, WeightsError

# Fields of a VAE's configuration that decide how it is computed, and not what.
COMPUTED = ("remat", "remat_levels", "remat_blocks", "lowering", "attention", "dtype")


def first_parameters(run: Run, name: str, before: str | None, model: VAE, shapes: Params) -> Params | None:
    """Parameters that stage `name` starts from; `None` for scratch. Parts that `init_parts` leaves out are not in it.

    They come from `<stage>.init_from`, or from stage `before`. Where images taught them and this stage is on clips,
    what images leave untrained is set first (`inflate_image_params`); what clips taught is taken as it is.

    Args:
      run: the run of this stage.
      name: `image`, `video` or `decoder`.
      before: the stage before it, which is finished, or `None`.
      model: the VAE to be trained.
      shapes: of all its parameters, as `jax.eval_shape` gives them.

    Raises:
      ConfigError: `init_from` holds nothing to start from, or a VAE of another architecture.
      WeightsError: tensors are missing, misshapen (all are named) or not finite, or a file is damaged.
    """
    stage: VAEStageConfig = getattr(run.experiment, name)
    if not stage.init_from and before is None:
        return None
    parts = tuple(stage.init_parts) or tuple(shapes)
    if absent := [part for part in parts if part not in shapes]:
        raise ConfigError(f"{name}.init_parts names {absent[0]}, which this VAE has not: it has {', '.join(shapes)}")
    wanted = {part: shapes[part] for part in parts}
    state = find_checkpoint(Path(stage.init_from)) if stage.init_from else None
    if state is not None:
        config, images = _config_of_state(state)
        params = restore_params(state, stage.init_weights, wanted)
    else:
        if stage.init_weights != "ema":
            raise ConfigError(
                f"{name}.init_weights={stage.init_weights} is for training states: a model has its moving average only"
            )
        folder = find_model(stage.init_from or run.folder(str(before)) / "model")
        config, images = _config_of_model(folder)
        params = read_model(folder, wanted)
    if not stage.init_parts:
        # What only decides how a network is computed may differ.
        free = {field: getattr(model.config, field) for field in COMPUTED if hasattr(model.config, field)}
        if type(config) is not type(model.config) or replace(config, **free) != model.config:
            raise ConfigError(f"stage {name} starts from a VAE of another architecture: {config}")
    return inflate_image_params(params) if images and not stage.images else params


def find_start(path: str | Path) -> Path:
    """The training state or the model that `init_from` means.

    Raises:
      FileNotFoundError: it is neither; the shipped models are named.
    """
    return find_checkpoint(Path(path)) or find_model(path)


def read_model(folder: Path, shapes: Params) -> Params:
    """The tensors of a model folder's VAE that `shapes` names: float32, shapes as there, no other is read.

    Raises:
      WeightsError: tensors are missing, misshapen or not finite: all are named; or the file is damaged.
    """
    path = folder / "vae.safetensors"
    try:
        return read_params(path, shapes, strict=False)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is damaged: {error}") from error


def _config_of_state(state: Path) -> tuple[Any, bool]:
    """Configuration of the VAE in `<workdir>/<stage>/checkpoints/<step>`, and whether that stage trained on images."""
    stage, workdir = state.absolute().parents[1].name, state.absolute().parents[2]
    if not (workdir / "config.json").exists():
        raise ConfigError(f"the training state {state} lies in no work directory: {workdir}/config.json is not there")
    experiment = read_config(workdir / "config.json")
    if not isinstance(getattr(experiment, stage, None), VAEStageConfig):
        raise ConfigError(f"{state} is a state of stage {stage}, which has no VAE: name one of image, video, decoder")
    return experiment.vae, getattr(experiment, stage).images


def _config_of_model(folder: Path) -> tuple[Any, bool]:
    try:
        tree = json.loads((folder / "config.json").read_text())
        cls, fields = vae_config_of(tree["vae"])
        settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        config = cls(**settings)
        meta = tree.get("meta", {})
        # Before `images` was noted, the name of the stage told.
        return config, bool(meta.get("images", meta.get("stage") == "image"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"the model in {folder} is damaged: {type(error).__name__}: {error}") from error
