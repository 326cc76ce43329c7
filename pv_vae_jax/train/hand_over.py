"""What a VAE stage starts from: a model, or the training state of another stage, whole or some of its parts.

Of a file only the tensors that were asked for are read, so the encoder of a large run costs what an encoder costs.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from safetensors import SafetensorError

from pv_vae_jax import pretrained
from pv_vae_jax.config import ConfigError, VAEStageConfig
from pv_vae_jax.models.inflate import inflate_image_params
from pv_vae_jax.models.kinds import vae_config_of
from pv_vae_jax.models.vae import VAE
from pv_vae_jax.train.run import Run, read_config
from pv_vae_jax.typing import Params, WeightsError

# Fields of a VAE's configuration that decide how it is computed, and not what.
COMPUTED = ("remat", "remat_levels", "remat_blocks", "lowering", "attention", "dtype")
STATE_MARK = "_CHECKPOINT_METADATA"  # which Orbax writes last


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
    state = _training_state(Path(stage.init_from)) if stage.init_from else None
    if state is not None:
        config, images = _config_of_state(state)
        params = read_state(state, stage.init_weights, wanted)
    else:
        if stage.init_weights != "ema":
            raise ConfigError(
                f"{name}.init_weights={stage.init_weights} is for training states: a model has its moving average only"
            )
        folder = pretrained.find_model(stage.init_from or run.folder(str(before)) / "model")
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
    return _training_state(Path(path)) or pretrained.find_model(path)


def read_model(folder: Path, shapes: Params) -> Params:
    """The tensors of a model folder's VAE that `shapes` names: float32, shapes as there, no other is read.

    Raises:
      WeightsError: tensors are missing, misshapen or not finite: all are named; or the file is damaged.
    """
    path = folder / "vae.safetensors"
    try:
        return pretrained.read_params(path, shapes, whole=False)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is damaged: {error}") from error


def read_state(folder: Path, weights: str, shapes: Params) -> Params:
    """The parameters of a training state (a folder `.../checkpoints/<step>`) that `shapes` names; no other is read.

    Args:
      folder: the state.
      weights: `ema` for the moving average, `params` for what the optimiser moves.
      shapes: tree of what to read.

    Raises:
      WeightsError: tensors are missing, misshapen or not finite: all are named; or the state is damaged.
    """
    import orbax.checkpoint as ocp

    from pv_vae_jax.train.checkpoint import ignore_abandoned_reads

    ignore_abandoned_reads()
    wanted: dict[str, Any] = flatten_dict(shapes, sep="/")
    item = {weights: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.float32), shapes)}
    to_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
    place: Any = (folder / "default").absolute()  # Orbax's own type of paths takes ours
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as reader:
        try:
            there = reader.metadata(place).tree[weights]
            flat: dict[str, Any] = flatten_dict(there, sep="/")
            found = {name: tuple(leaf.shape) for name, leaf in flat.items() if name in wanted}
            faults = [f"missing {name}" for name in sorted(wanted.keys() - found.keys())]
            faults += [
                f"{name} has shape {shape}, expected {wanted[name].shape}"
                for name, shape in sorted(found.items())
                if shape != wanted[name].shape
            ]
            if faults:
                raise WeightsError(f"{folder} does not fit: " + "; ".join(faults))
            args = ocp.args.PyTreeRestore(item=item, partial_restore=True, restore_args=to_numpy)
            tree = reader.restore(place, args=args)[weights]
        except WeightsError:
            raise
        except Exception as error:  # what Orbax and TensorStore raise for damaged files is not one type
            reason = " ".join(str(error).split())[:300]
            raise WeightsError(f"the training state {folder} is damaged: {reason}") from error
    values: dict[str, Any] = flatten_dict(tree, sep="/")
    if faults := [name for name, value in values.items() if not np.isfinite(value).all()]:
        raise WeightsError(f"{folder} does not fit: " + "; ".join(f"{name} is not finite" for name in faults))
    return tree


def _training_state(path: Path) -> Path | None:
    """The state that `path` means: itself, or the newest of a stage's folder that has no model yet."""
    if (path / STATE_MARK).exists():
        return path
    steps = [p for p in path.glob("checkpoints/*") if p.name.isdigit() and (p / STATE_MARK).exists()]
    return max(steps, key=lambda step: int(step.name), default=None)


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
