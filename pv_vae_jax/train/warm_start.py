"""Warm starts: a VAE stage starts from a model or from the training state of another stage, or from some of its parts.

Only the tensors that are needed are read from a file, so the encoder of a large run costs no more than an encoder.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pv_vae_jax.model_folder import find_model, local_or_bucket, read_model_config
from pv_vae_jax.models.inflate import inflate_image_params
from pv_vae_jax.models.registry import vae_config_of
from pv_vae_jax.params_io import find_checkpoint, read_params, restore_params
from pv_vae_jax.sharding.processes import is_primary_process
from pv_vae_jax.train.checks import PARTS
from pv_vae_jax.train.configs import VAEStageConfig
from pv_vae_jax.train.run import Run, read_config
from pv_vae_jax.typing import ConfigError, Params, WeightsError

if TYPE_CHECKING:
    from pv_vae_jax.train.vae_stage import VAEStage

# Fields of a VAE's configuration that change how it is computed, not its result.
COMPUTED = ("remat", "remat_levels", "remat_blocks", "lowering", "attention", "dtype")
# Fields that describe one part alone. The others must be the same even where the encoder alone is taken: with another
# order of levels, say, the same weights would give other latents.
FIELDS = {
    "encoder": ("encoder_widths", "encoder_blocks", "encoder_layers", "shortcut_pad"),
    "decoder": ("decoder_widths", "decoder_blocks", "decoder_layers", "shortcut_time", "upsample_halves_channels"),
    "pad": ("pad",),
}


def first_parameters(stage: VAEStage, run: Run) -> Params | None:
    """Parameters that `stage` starts from; None means from scratch. Parts that `init_parts` leaves out are missing.

    They come from `init_from`, or from the model of the stage before. If they were trained on images and this stage
    trains on clips, the parameters that images leave untrained are set first (`inflate_image_params`).

    A source that pads with gaussian draws has no pad token, such as a converted Wan network. A stage that pads with one
    starts from it all the same: the pad is missing from the result, hence drawn, and a line says so.

    Raises:
      ConfigError: `init_from` names nothing to start from, or a VAE of another architecture; or the stage takes or
        freezes a pad token that is not there.
      WeightsError: tensors are missing, misshapen (all are named) or not finite, or a file is damaged.
    """
    name, own, given = stage.name, stage.experiment.vae, stage.config
    if not given.init_from and stage.before is None:
        return None
    parts = tuple(given.init_parts) or tuple(stage.shapes)
    if absent := [part for part in parts if part not in stage.shapes]:
        known = ", ".join(part for part in PARTS if part in stage.shapes)
        raise ConfigError(f"{name}.init_parts must be among this VAE's parts ({known}), got {absent[0]!r}")
    start = local_or_bucket(given.init_from, f"{name}.init_from") if given.init_from else None
    state = start and find_checkpoint(start)
    if state is not None:
        source, hashes, (config, images) = state, {}, _config_of_state(state)
    else:
        if given.init_weights != "ema":
            raise ConfigError(
                f"{name}.init_weights={given.init_weights} needs a training state, but {name}.init_from is a model, "
                f"which holds the moving average only: set {name}.init_weights=ema"
            )
        source = find_model(given.init_from or run.folder(str(stage.before)) / "model")
        config, images, hashes = _config_of_model(source)
    if "pad" in parts and config.pad == "gaussian":
        if "pad" in given.init_parts or "pad" in given.frozen:
            raise ConfigError(
                f"{source} pads with gaussian draws, so it has no pad token for stage {name} to take or freeze: take "
                f"'pad' out of {name}.init_parts and {name}.frozen to draw and train one, or set vae.pad=gaussian"
            )
        if is_primary_process():
            print(f"stage {name}: {source} holds no pad token; one is drawn and trained", file=sys.stderr)
        parts = tuple(part for part in parts if part != "pad")
    wanted = {part: stage.shapes[part] for part in parts}
    if state is not None:
        params = restore_params(state, given.init_weights, wanted)
    else:
        params = read_params(source / "vae.safetensors", wanted, strict=False, hashes=hashes)
    left = [field for part, fields in FIELDS.items() if part not in parts for field in fields]
    free = {field: getattr(own, field) for field in (*COMPUTED, *left) if hasattr(own, field)}
    if type(config) is not type(own) or replace(config, **free) != own:
        raise ConfigError(f"stage {name} must start from a VAE of the same architecture as config.vae, got {config}")
    return inflate_image_params(params) if images and not given.images else params


def _config_of_state(state: Path) -> tuple[Any, bool]:
    """Configuration of the VAE in `<workdir>/<stage>/checkpoints/<step>`, and whether that stage trained on images."""
    stage, workdir = state.absolute().parents[1].name, state.absolute().parents[2]
    if not (workdir / "config.json").exists():
        raise ConfigError(
            f"expected the training state {state} in a work directory, but {workdir}/config.json is missing"
        )
    experiment = read_config(workdir / "config.json")
    if not isinstance(getattr(experiment, stage, None), VAEStageConfig):
        raise ConfigError(f"expected a training state of image, video or decoder, got one of {stage}: {state}")
    return experiment.vae, getattr(experiment, stage).images


def _config_of_model(folder: Path) -> tuple[Any, bool, dict[str, str]]:
    """Configuration of the VAE of a model folder, whether it trained on images, and the SHA-256 of its files."""
    try:
        tree = read_model_config(folder)
        config = vae_config_of(tree["vae"])
        meta = tree.get("meta", {})
        # Models of older versions do not record `images`; their stage's name tells.
        images = bool(meta.get("images", meta.get("stage") == "image"))
        return config, images, dict(tree.get("sha256", {}))
    except WeightsError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"the model in {folder} is damaged: {type(error).__name__}: {error}") from error
