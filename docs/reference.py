"""Writes docs/configuration.md, commands.md and api.md from docstrings and from the flags of the commands.

  python docs/reference.py

A field without a line under `Attributes:` of its class, or a flag without help, ends it with that name.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import sys
import typing
from pathlib import Path
from typing import Any

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pv_vae_jax.cli.main import COMMANDS
from pv_vae_jax.losses import Objective
from pv_vae_jax.models.discriminator import DiscriminatorConfig
from pv_vae_jax.models.latte import LatteConfig
from pv_vae_jax.models.transformer_vae import TransformerVAEConfig
from pv_vae_jax.models.vae import VAEConfig
from pv_vae_jax.train import configs

ROOT = Path(__file__).resolve().parents[1]
# Class -> the settings that it holds.
SECTIONS = {
    configs.Experiment: "",
    configs.DataConfig: "data",
    VAEConfig: "vae",
    TransformerVAEConfig: "vae",
    DiscriminatorConfig: "discriminator",
    configs.VAEStageConfig: "image, video, decoder",
    Objective: "STAGE.objective",
    configs.OptimizerConfig: "STAGE.optimizer",
    configs.LatentsConfig: "latents",
    LatteConfig: "latte",
    configs.DiffusionConfig: "diffusion",
    configs.SamplingConfig: "sampling",
    configs.MeshConfig: "mesh",
    configs.PerceptualConfig: "perceptual",
    configs.EvaluationConfig: "evaluation",
}
CONFIGURATION = """# Configuration

Every setting of an experiment. `python docs/reference.py` makes this page from the docstrings of the config classes.

An experiment is a Python file with `get_config()` that returns an `Experiment` (`experiments/`, or a shipped name such
as `demo`). Any setting is a flag of `pv-vae train`, `inspect` and the studies: `--config.video.drop_ratio=0.5`. Values
are written as in Python; `STAGE` is `image`, `video`, `decoder` or `diffusion`. An unknown or impossible setting ends
the command with the nearest name or the allowed range. Which settings may change between two starts of a run: see
[runs](running.md#a-run).

```python
from pv_vae_jax.train import load_experiment

experiment = load_experiment("demo", {"video.drop_ratio": "0.5", "data.size": "48"})
```
"""
HEAD = """# Commands

Every command with its flags. `python docs/reference.py` makes this page from the flags themselves; `pv-vae COMMAND
--help` prints them. Settings of an experiment (`--config.KEY=VALUE`) are in [configuration](configuration.md). Flags
may stand before or after file names, and a switch `--[no]NAME` is turned off with `--noNAME`.
"""
API_HEAD = """# API

What `import pv_vae_jax` offers, each by its own name: `from pv_vae_jax import load`. The packages have lists of their
own, such as `from pv_vae_jax.data import read_video`. Array shapes use `b` batch, `t` time, `h w` space, `c` channels,
`z` latent channels, `g` latent frames. `python docs/reference.py` makes this page from the docstrings.
"""
API_END = """## In full

`help(pv_vae_jax.load)` prints arguments, shapes and errors, likewise of the others. The site of these pages shows them
here: `pip install '.[docs]'`, then `mkdocs build`.
"""
API = {
    "A trained model": (
        "model.load",
        "model.Model",
        "model.save",
        "model.Diffusion",
        "sampling.sample_clips",
    ),
    "Video VAEs": (
        "models.vae.VAEConfig",
        "models.vae.VAE",
        "models.vae.Posterior",
        "models.transformer_vae.TransformerVAEConfig",
        "models.transformer_vae.TransformerVAE",
    ),
    "Prediction": (
        "predictive.predict_truncated",
        "predictive.predict_filled",
        "predictive.predict_masked",
        "masking.sample_mask",
        "predictive.Prediction",
    ),
    "Long videos": (
        "streaming.encode_chunks",
        "streaming.decode_chunks",
        "streaming.encode_step",
        "streaming.decode_step",
        "streaming.foretell_step",
    ),
    "Losses": (
        "losses.Objective",
        "losses.pixel_terms",
        "losses.latent_terms",
        "losses.kl_divergence",
        "models.discriminator.DiscriminatorConfig",
        "models.discriminator.Discriminator",
    ),
    "Diffusion": (
        "models.latte.LatteConfig",
        "models.latte.Latte",
        "flow.flow_matching_loss",
        "flow.sample_timesteps",
        "flow.label_dropout",
        "flow.classifier_free_guidance",
        "flow.euler",
        "flow.normalize_latents",
        "flow.denormalize_latents",
    ),
    "Pixels": (
        "pixels.to_float",
        "pixels.to_uint8",
    ),
    "Training, piece by piece": (
        "train.vae_step.VAEStep",
        "train.dit_step.DiTStep",
        "data.pipeline.train_batches",
        "train.stages.train",
        "train.configs.Experiment",
        "train.config_files.load_experiment",
    ),
    "Notebooks": (
        "report.notebook.show_clips",
        "report.notebook.show_pictures",
        "report.notebook.show_curves",
    ),
}
LAB = {
    "In a clone: studies": ("studies", ("ablation", "motion", "arena", "probes", "features")),
    "In a clone: measurements": ("", ("benchmarks",)),
}


def described(cls: type) -> dict[str, str]:
    """Name -> text of every entry under `Attributes:` in the docstring of `cls`."""
    _, _, entries = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")
    found = {}
    for match in re.finditer(r"^  (\w+(?:, \w+)*): (.*(?:\n   .*)*)", entries, re.MULTILINE):
        for name in match[1].split(", "):
            found[name] = re.sub(r"\s+", " ", match[2])
    return found


def kind(hint: Any) -> str:
    """A type as a reader wants it: choices, a range, or its name."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        allowed = hint.__metadata__[0].name
        open_ended = re.match(rf"between (\d+) and {2**31 - 1}$", allowed)
        return f"{kind(arguments[0])} {f'from {open_ended[1]}' if open_ended else allowed}"
    if origin is typing.Literal:
        return " or ".join(f"`{choice}`" for choice in arguments)
    if origin is tuple:
        return "tuple" if arguments[:1] == (tuple,) else f"tuple of {kind(arguments[0])}"
    if arguments:  # a union
        return " or ".join(dict.fromkeys(kind(a) for a in arguments))
    return f"[{hint.__name__}](#{hint.__name__.lower()})" if dataclasses.is_dataclass(hint) else hint.__name__


def default(value: Any) -> str:
    """A default; of a config, what it changes of its class."""
    if not dataclasses.is_dataclass(value):
        return f"`{value!r}`"
    plain = type(value)()
    fields = [field.name for field in dataclasses.fields(value)]
    changed = [f"{n}={getattr(value, n)!r}" for n in fields if getattr(value, n) != getattr(plain, n)]
    return f"`{', '.join(changed)}`" if changed else ""


def cell(text: str) -> str:
    """Text within a table."""
    return text.replace("|", "\\|")


def section(cls: type, keys: str) -> str:
    """The fields of one class."""
    text, hints = described(cls), typing.get_type_hints(cls, include_extras=True)
    lines = [f"## {cls.__name__}", "", f"{f'`{keys}`: ' if keys else ''}{summary(cls.__doc__)}", ""]
    lines += ["| field | type | default | |", "|---|---|---|---|"]
    for field in dataclasses.fields(cls):
        if field.name not in text:
            raise SystemExit(f"{cls.__name__}.{field.name} has no description: add it under Attributes: of the class")
        row = (f"`{field.name}`", kind(hints[field.name]), default(field.default), text[field.name])
        lines.append(f"| {' | '.join(map(cell, row))} |")
    return "\n".join(lines)


def summary(doc: str | None) -> str:
    """The prose of a docstring before its sections and examples, in one line."""
    head = re.split(r"\n\n?(?=  \S|pv-vae |Attributes:|Args:)", inspect.cleandoc(doc or ""))[0]
    return re.sub(r"\s+", " ", head)


def configuration() -> str:
    """docs/configuration.md."""
    return "\n\n".join([CONFIGURATION.strip(), *(section(cls, keys) for cls, keys in SECTIONS.items())]) + "\n"


def command(program: str, module: Any) -> str:
    """One command: what it does, and its flags."""
    values = flags.FlagValues()
    module.define_flags(values)
    lines = [f"### `{program}`", "", summary(module.__doc__), "", "| flag | default | |", "|---|---|---|"]
    for name in sorted(values):
        flag = values[name]
        if not flag.help or "no help available" in flag.help:  # which absl puts there
            raise SystemExit(f"{program} --{name} has no help: say what it does")
        shown = f"`--[no]{name}`" if flag.boolean else f"`--{name}`"
        choices = getattr(flag.parser, "enum_values", None)
        said = re.sub(r"^<.*?>: ", "", flag.help) + (f" ({', '.join(choices)})" if choices else "")
        value = ",".join(map(str, flag.default)) if isinstance(flag.default, list) else flag.default
        value = "" if value in (None, "") else f"`{value}`"
        text = cell(re.sub(r"\s+", " ", said))
        lines.append(f"| {shown} | {value} | {text} |")
    return "\n".join(lines)


def commands() -> str:
    """docs/commands.md."""
    parts = [HEAD.strip(), "## pv-vae"]
    parts += [command(f"pv-vae {name}", importlib.import_module(f"pv_vae_jax.cli.{name}")) for name in COMMANDS]
    for title, (package, names) in LAB.items():
        parts.append(f"## {title}")
        for name in names:
            full = f"{package}.{name}" if package else name
            parts.append(command(f"python -m {full}", importlib.import_module(f"{full}.__main__")))
    other = "`python launch BACKEND --help` lists the flags of the launchers ([launching](launching.md)), "
    other += "`make help` the targets of make."
    return "\n\n".join([*parts, "## Others", other]) + "\n"


def api() -> str:
    """docs/api.md: a line for each name that readers of the file see, and what mkdocs writes out."""
    parts, full = [API_HEAD.strip()], []
    for title, names in API.items():
        lines = [f"## {title}", "", "| name | |", "|---|---|"]
        for path in names:
            module, name = path.rsplit(".", 1)
            found = getattr(importlib.import_module(f"pv_vae_jax.{module}"), name)
            lines.append(f"| `{cell(called(found))}` | {cell(summary(found.__doc__).split('. ')[0].rstrip('.'))} |")
            full.append(f"::: pv_vae_jax.{path}")
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, API_END.strip(), "\n".join(full)]) + "\n"


def is_own(part: Any, cls: type) -> bool:
    """Whether this is a method that the class itself defines, and none that a library added."""
    return inspect.isfunction(part) and part.__module__ == cls.__module__


def called(found: Any) -> str:
    """How a function is called, or the name of a class and the methods of its own."""
    if inspect.isclass(found):
        parts = {name: getattr(part, "__func__", part) for name, part in vars(found).items()}
        own = [n for n, p in parts.items() if n[0] != "_" and getattr(p, "__doc__", "") and is_own(p, found)]
        return f"{found.__name__}: {', '.join(own)}" if own else found.__name__
    given = inspect.signature(found).parameters.values()
    return f"{found.__name__}{inspect.Signature([p.replace(annotation=p.empty) for p in given])}"


PAGES = {"configuration.md": configuration, "commands.md": commands, "api.md": api}


def main() -> None:
    """Write the pages."""
    for name, make in PAGES.items():
        (ROOT / "docs" / name).write_text(make())


if __name__ == "__main__":
    main()
