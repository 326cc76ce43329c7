"""Models on the Hugging Face Hub: `hf://OWNER/NAME`, or `hf://OWNER/NAME@REVISION` (extra `hub`)."""

import re
from pathlib import Path
from types import ModuleType

from pv_vae_jax.typing import ConfigError

FILES = ["config.json", "vae.safetensors", "latte.safetensors"]  # a model folder; tensors and JSON, no code
_ADDRESS = re.compile(r"hf:/+([\w.-]+/[\w.-]+)(?:@(\S+))?")  # as a `Path` it has lost a slash


def is_address(name: str | Path) -> bool:
    """Whether `name` is the address of a model on the hub."""
    return str(name).startswith("hf:/")


def download(address: str | Path) -> Path:
    """The folder of a published model in the cache of huggingface_hub, which downloads what it does not hold yet.

    Raises:
      ConfigError: the address has another form.
      FileNotFoundError: there is no such model or revision.
      OSError: the hub does not answer, and the cache does not have it.
      ImportError: huggingface_hub is not installed.
    """
    match = _ADDRESS.fullmatch(str(address))
    if match is None:
        raise ConfigError(f"expected hf://OWNER/NAME or hf://OWNER/NAME@REVISION, got {address}")
    library = _library()
    try:
        return Path(library.snapshot_download(match[1], revision=match[2], allow_patterns=FILES))
    except Exception as error:  # of the hub, of the network: they have no common type
        _refuse_name(address, error)
        absent = type(error).__name__ in ("RepositoryNotFoundError", "RevisionNotFoundError")
        raise (FileNotFoundError if absent else OSError)(
            f"no model at {address}: {_one_line(error)}. Compare the name with the model's page; a private one needs "
            "`hf auth login`, and what is not in the cache yet needs the network"
        ) from error


def upload(folder: Path, repository: str, *, private: bool = False) -> str:
    """Publish the files of `folder` as `OWNER/NAME`, which is created if needed; returns the address of this revision.

    Raises:
      ConfigError: the hub allows no such name.
      OSError: the hub refused; the message says why.
      ImportError: huggingface_hub is not installed.
    """
    api = _library().HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(folder_path=folder, repo_id=repository, commit_message="pv-vae publish")
    except Exception as error:  # of the hub, of the network, of the token: they have no common type
        _refuse_name(repository, error)
        raise OSError(
            f"{repository} was not published: {_one_line(error)}. Log in with `hf auth login`, with a token that may "
            "write there"
        ) from error
    return f"hf://{repository}@{commit.oid}"


def _library() -> ModuleType:
    try:
        import huggingface_hub  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "models on the hub need huggingface_hub: pip install huggingface_hub (the extra [hub] holds it)"
        ) from error
    return huggingface_hub


def _refuse_name(name: str | Path, error: Exception) -> None:
    """Raise ConfigError if an error means that the hub allows no such name."""
    if type(error).__name__ == "HFValidationError":
        raise ConfigError(f"expected OWNER/NAME as the hub allows it, got {name}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
