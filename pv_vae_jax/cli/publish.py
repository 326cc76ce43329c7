"""Publish a model on the Hugging Face Hub, with a card that says what it is (extra `hub`).

  pv-vae publish runs/demo OWNER/NAME --license=apache-2.0
  pv-vae publish models/wan22 OWNER/NAME --trained_on "the published Wan2.2" --out published

Anybody then has it by `load("hf://OWNER/NAME")`. The card holds what the model was trained on, every score in the
report of its run with its protocol, the hash of its weights, and how to load it; of a network with Wan's layout the
folder `diffusers` holds the same weights for `AutoencoderKLWan`. With --out the files go to that folder, to be looked
at, and nothing is published. Log in with `hf auth login` first.
"""

import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from pv_vae_jax import hub
from pv_vae_jax.cli.convert import export_weights
from pv_vae_jax.model import load
from pv_vae_jax.model_folder import find_model
from pv_vae_jax.report.model_card import model_card
from pv_vae_jax.storage import as_path, atomic, local, write_text
from pv_vae_jax.typing import ConfigError, WeightsError


def define_flags(values: flags.FlagValues) -> None:
    """Flags of `pv-vae publish`."""
    flags.DEFINE_string("trained_on", "", "what it was trained on; the run's data are told anyway", flag_values=values)
    flags.DEFINE_string("license", "", "identifier of the weights' licence, such as apache-2.0", flag_values=values)
    flags.DEFINE_bool("private", False, "create it as a private repository", flag_values=values)
    flags.DEFINE_string("out", None, "new folder for the files, instead of publishing them", flag_values=values)


def run(values: flags.FlagValues, positional: Sequence[str]) -> None:
    """Publish MODEL as OWNER/NAME."""
    if len(positional) != 2 or not re.fullmatch(r"[\w.-]+/[\w.-]+", positional[1]):
        raise ConfigError(f"pv-vae publish takes MODEL and OWNER/NAME, got {' '.join(positional) or 'neither'}")
    source, repository = find_model(positional[0]), positional[1]
    run = source.parents[1] if source.name == "model" and (source.parents[1] / "config.json").exists() else None
    if not (run or values.trained_on):
        raise ConfigError(f"{source} is not in the work directory of a run: say what it was trained on, --trained_on")
    out = as_path(values.out, "--out") if values.out else None
    if out and out.exists():
        raise ConfigError(f"{values.out} exists; name another folder, or remove it first")
    with tempfile.TemporaryDirectory() as temporary:
        folder = out or Path(temporary)
        prepare(source, folder, repository, run, values.trained_on, values.license)
        if out:
            print(f"{folder}: what would be published as {repository}; its page is README.md")
        else:
            print(hub.upload(folder, repository, private=values.private))


def prepare(source: Path, folder: Path, repository: str, run: Path | None, trained_on: str, license: str) -> None:
    """Write the files to publish of the model in `source` into `folder`; the arguments are those of `model_card`."""
    model = load(source)
    folder.mkdir(parents=True, exist_ok=True)
    for name in hub.FILES:
        if (source / name).exists():
            with local(source / name) as copy, atomic(folder / name) as temporary:
                shutil.copyfile(copy, temporary)
    try:
        export_weights(source, folder / "diffusers", "diffusers")
    except WeightsError:  # a network that diffusers does not have
        diffusers = False
    else:
        diffusers = True
    card = model_card(model, repository, run=run, trained_on=trained_on, license=license, diffusers=diffusers)
    write_text(folder / "README.md", card)
