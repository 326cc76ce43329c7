"""Where models are: the shipped ones, and those in model folders and work directories."""

import json
from pathlib import Path

from pv_vae_jax import hub
from pv_vae_jax.messages import did_you_mean
from pv_vae_jax.params_io import find_checkpoint
from pv_vae_jax.storage import as_path
from pv_vae_jax.typing import VAE_STAGES, ConfigError, WeightsError

SHIPPED = Path(__file__).parent / "weights"

# The stages whose models a work directory offers, latest first: `load` takes the first that is finished.
STAGE_ORDER = ("diffusion", *reversed(VAE_STAGES))


def local_or_bucket(name_or_path: str | Path, name: str = "the model") -> Path:
    """The path that `name_or_path` means; a model on the Hugging Face Hub is downloaded first.

    `name` says in messages what the path is of.
    """
    return hub.download(name_or_path) if hub.is_address(name_or_path) else as_path(name_or_path, name)


def find_model(name_or_path: str | Path) -> Path:
    """The folder of the finished model that `load` reads; a model on the hub, `hf://OWNER/NAME`, is downloaded.

    Raises:
      FileNotFoundError: there is no such model; the message names an unfinished stage, or else the shipped models.
      WeightsError: a file of the model is missing.
      ConfigError: a shipped model has the name of a folder here.
    """
    path, shipped = local_or_bucket(name_or_path), shipped_models()
    own = [path, path / "model"] + [path / stage / "model" for stage in STAGE_ORDER]
    if str(name_or_path) in shipped:
        if path.is_dir():
            raise ConfigError(
                f"{path} is a shipped model and a folder here: write ./{path} for the folder, or rename it"
            )
        return SHIPPED / path
    for folder in own:
        config, weights = ((folder / name).exists() for name in ("config.json", "vae.safetensors"))
        if config and weights:
            return folder
        if config and folder.name == "model":  # written last: the model was whole, and no earlier one stands in for it
            raise WeightsError(f"the model in {folder} is damaged: vae.safetensors is missing. Copy the model again")
    for state in filter(None, (find_checkpoint(path / stage) for stage in reversed(VAE_STAGES))):
        raise FileNotFoundError(
            f"no model at {path}: its stage {state.parents[1].name} is not finished. The command that began it goes on "
            f"from step {state.name}; give {state} to take the weights of that step"
        )
    for folder in own:
        missing = "config.json" if (folder / "vae.safetensors").exists() else ""
        if not missing and (folder / "config.json").exists():
            tree = read_model_config(folder)
            missing = "vae.safetensors" if "vae" in tree and "data" not in tree else ""  # a run has "data"
        if missing:
            raise WeightsError(f"the model in {folder} is damaged: {missing} is missing. Copy the model again")
    if (path / "config.json").exists() and "data" in read_model_config(path):
        raise FileNotFoundError(
            f"no model at {path}: this run has neither finished a stage nor saved a state of one yet. Wait for it, or "
            "go on with the command that began it"
        )
    hint = did_you_mean(str(name_or_path), shipped, else_list=False)
    raise FileNotFoundError(
        f"no model at {name_or_path}{f' ({hint})' if hint else ''}: give a model folder, the work directory of a run "
        f"with a finished stage, or one of the shipped models ({', '.join(shipped) or 'none'})"
    )


def shipped_models() -> list[str]:
    """Names of the models that the package holds."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))


def read_model_config(folder: Path) -> dict:
    """The `config.json` of a model folder, or of a work directory.

    Raises:
      WeightsError: the file is missing, or does not hold a JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise WeightsError(f"{path} is missing or not a file: copy the model again")
    try:
        tree = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is damaged ({error}): copy the model again") from error
    if not isinstance(tree, dict):
        raise WeightsError(f"{path} is damaged (expected a JSON object, got {tree!r:.50}): copy the model again")
    return tree
