"""Configs from files, flags and JSON: `get_config()` of a Python file, dotted overrides, and trees of dicts."""

import ast
import contextlib
import dataclasses
import importlib.util
import os
import re
import traceback
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import ml_collections

from pv_vae_jax.data.synthetic import families_of
from pv_vae_jax.messages import did_you_mean
from pv_vae_jax.models.registry import KINDS as VAE_KINDS
from pv_vae_jax.models.registry import RENAMED_FIELDS, RENAMED_VALUES, to_tuples, vae_fields_of
from pv_vae_jax.storage import on_disk, write_json
from pv_vae_jax.train.configs import Experiment
from pv_vae_jax.typing import ConfigError

T = typing.TypeVar("T")

PACKAGE = Path(__file__).parents[1]
FORMAT = 2  # of config.json in a work directory
DRAWS = 2  # of the data: raised when the same seed gives other batches or another `k`
RENAMED_KEYS = RENAMED_FIELDS | {"micro_batches": "grad_accum_steps"}
LAST_WITH = {1: "0.2.0"}  # draws -> the last version of pv_vae_jax that makes them

# What a file may define, and the command that takes it.
COMMAND_OF = {"get_config": "pv-vae train", "get_study": "python -m studies.ablation"}

# Types that are checked, as messages call them. A config checks its fields of other types itself.
KINDS: dict[Any, str] = {
    **{bool: "true or false", int: "an integer", float: "a number", str: "text"},
    **{tuple[int, ...]: "a tuple of integers", tuple[str, ...]: "a tuple of names"},
}


def load_experiment(name: str | Path, overrides: dict[str, str] | None = None) -> Experiment:
    """Run `get_config()` of an experiment file and apply `overrides`, `{"video.steps": "100"}`.

    Args:
      name: path of the file, or the bare name of a shipped experiment, such as `demo`.
      overrides: settings by their dotted keys; values are written as in a flag.

    Raises:
      ConfigError: no such file, no `get_config`, a mistake in it, an unknown key (the nearest is named), a value of the
        wrong type, or settings that contradict each other.
      ShapeError: clips do not fit the VAE.
    """
    experiment = override(run_config(name, Experiment), overrides or {})
    source = experiment.data.source
    if not families_of(source) and os.path.isdir(source):  # a run means this folder from wherever it is continued
        data = dataclasses.replace(experiment.data, source=os.path.abspath(source))
        experiment = dataclasses.replace(experiment, data=data)
    return experiment.validate()


def run_config(name: str | Path, kind: type[T], function: str = "get_config") -> T:
    """Call `function()` of a Python file.

    Args:
      name: path of the file, or the bare name of a shipped one, such as `demo`.
      kind: class of what the function returns.
      function: `get_config` or `get_study`.

    Raises:
      ConfigError: no such file or function, an error in it (its line is named), or a result of another class.
    """
    path = find_config(name, kind, function)
    if path.suffix != ".py":
        raise ConfigError(f"--config must be a Python file that defines {function}(), got {path}")
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # as for every .py file
    module = importlib.util.module_from_spec(spec)
    with _errors_with_lines(path):
        spec.loader.exec_module(module)
    if not callable(getattr(module, function, None)):
        raise ConfigError(f"{path} does not define {function}()" + _other_command(module, path))
    with _errors_with_lines(path):
        config = getattr(module, function)()
    if not isinstance(config, kind):
        raise ConfigError(f"{function}() in {path} must return {kind.__name__}, got {type(config).__name__}")
    return config


def find_config(name: str | Path, kind: type, function: str = "get_config") -> Path:
    """The file that `--config` means: a path, or `experiments/NAME.py` of this clone or installation.

    Raises:
      ConfigError: no such file; the shipped names, or the files beside it, are listed.
    """
    if not str(name):
        raise ConfigError("--config is empty: name a Python file, or a shipped one such as demo")
    path = on_disk(name, "--config")
    if path.is_file():
        return path
    what = "study" if function == "get_study" else "experiment"
    folders = PACKAGE / "experiments", PACKAGE.parent / "experiments"  # of an installation, of a clone
    shipped = {p.stem: p for p in sorted(next((f for f in folders if f.is_dir()), PACKAGE).glob("*.py"))}
    if path.suffix or len(path.parts) != 1:
        near = ", ".join(sorted(p.name for p in path.parent.glob("*.py") if not p.name.startswith("_")))
        hint = f"; there are {near}" if near else f"; a shipped one has the name {path.stem}" * (path.stem in shipped)
        raise ConfigError(f"no {what} file {path}{hint}")
    if path.name in shipped:
        return shipped[path.name]
    defines = f"def {function}() -> {kind.__name__}:"
    names = [stem for stem, file in shipped.items() if defines in file.read_text(encoding="utf-8")]
    hint = did_you_mean(path.name, names, else_list=False) or "name one of these, or the path of a Python file"
    raise ConfigError(f"unknown {what} {path.name!r}: shipped are {', '.join(names) or 'none'}; {hint}")


@contextlib.contextmanager
def _errors_with_lines(path: Path) -> Iterator[None]:
    """Turn any error into a `ConfigError` that names the last line of the file `path` that led to it."""
    try:
        yield
    except (Exception, SystemExit) as error:
        frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
        if isinstance(error, SyntaxError) and error.filename:
            frames.append((error.filename, error.lineno))
        lines = [line for name, line in frames if os.path.abspath(name) == os.path.abspath(path)]
        kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
        raise ConfigError(f"{path}, line {lines[-1] if lines else '?'}: {kind}{error}") from error


def _other_command(module: types.ModuleType, path: Path) -> str:
    for function, command in COMMAND_OF.items():
        if callable(getattr(module, function, None)):
            return f" but {function}(): use {command} --config {path} --workdir runs/{path.stem}"
    return ""


# Flags are parsed here, into a ConfigDict. `ml_collections.config_flags` raises FrozenInstanceError on nested frozen
# dataclasses; tyro takes them, but neither `--config.a.b=value` nor a configuration file.
def override(config: T, overrides: dict[str, str]) -> T:
    """A copy with the settings of dotted keys replaced, all of them at once: only the result needs to be valid.

    Values are Python literals; anything else is text.

    Raises:
      ConfigError: an unknown key (the nearest is named), a value of the wrong type or out of range, or a combination
        that cannot work.
    """
    tree = ml_collections.ConfigDict(to_dict(config), type_safe=False)  # from_dict checks types, and names the setting
    for key, text in overrides.items():
        if key.split(".")[-1] == "kind" and text in VAE_KINDS and text != _setting(tree, key):
            raise ConfigError(
                f"config.{key} must stay {_setting(tree, key)!r}, got {text!r}: flags do not change the kind of VAE. "
                "Start from an experiment with the other kind: demo_transformer has the transformer, demo the CNN"
            )
    tree.update_from_flattened_dict({key: _parse(text, _setting(tree, key)) for key, text in overrides.items()})
    return from_dict(type(config), tree.to_dict())


def _setting(tree: ml_collections.ConfigDict, key: str) -> Any:
    """The present value of a dotted key."""
    node, path = typing.cast(Any, tree), "config"
    for part in key.split("."):
        group = isinstance(node, ml_collections.ConfigDict)
        if not group or part not in node:
            hint = _right_key(part, node) if group else "it is a value, not a group of settings"
            raise ConfigError(f"unknown config key config.{key}: {path} has no {part!r}; {hint}")
        node, path = node[part], f"{path}.{part}"
    if isinstance(node, ml_collections.ConfigDict):
        inside = ", ".join(f"{path}.{name}" for name in node)
        raise ConfigError(f"{path} is a group of settings; set one of {inside}")
    return node


def _right_key(name: str, known: Iterable[str]) -> str:
    """What to write in place of the unknown key `name`."""
    new = RENAMED_KEYS.get(name)
    return f"it is called {new!r} now" if new and new in known else did_you_mean(name, known)


def _parse(text: str, old: Any) -> Any:
    """The value that `text` means for a setting whose present value is `old`."""
    if isinstance(old, str):
        return text
    try:
        value = text.lower() == "true" if text.lower() in ("true", "false") else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if isinstance(value, bool) and not isinstance(old, bool):
        return text  # which from_dict refuses; a ConfigDict would make it 1.0 in place of a float
    if isinstance(old, tuple) and not isinstance(value, (tuple, list)):
        value = tuple(filter(None, value.split(","))) if isinstance(value, str) else (value,)
    return to_tuples(value)


def to_dict(config: Any) -> dict:
    """Nested dict of a dataclass tree."""
    return dataclasses.asdict(config)


def from_dict(cls: type[T], tree: dict, path: str = "config") -> T:
    """Inverse of `to_dict`; lists (from JSON) become tuples, and fields that `tree` lacks keep their defaults.

    Args:
      cls: dataclass to build.
      tree: its fields; groups of settings are dicts. What `save_config` adds to them is ignored.
      path: dotted key of `tree`, which messages begin with.

    Raises:
      ConfigError: a field is unknown, has another type or is out of range, or fields contradict each other.
    """
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must be a group of settings, got {tree!r}")
    hints = typing.get_type_hints(cls)
    tree = {key: value for key, value in tree.items() if key not in ("format", "draws") or cls is not Experiment}
    if unknown := sorted(set(tree) - set(hints)):
        raise ConfigError(f"unknown config key {path}.{unknown[0]}; {_right_key(unknown[0], hints)}")
    fields = {key: _value(hints[key], value, f"{path}.{key}") for key, value in tree.items()}
    try:
        return cls(**fields)
    except ValueError as error:
        first = re.match(r"\w*", str(error))
        joint = "." if first and first[0] in hints else ": "
        raise ConfigError(f"{path}{joint}{error}") from error


def _value(kind: Any, value: Any, path: str) -> Any:
    """`value` (from JSON or a flag) as a field of type `kind`."""
    if isinstance(kind, types.UnionType) and isinstance(value, dict):  # a VAE, of the kind that `value` names
        try:
            cls, value = vae_fields_of(value)
        except ValueError as error:
            raise ConfigError(f"{path}.kind: {error}") from error
        return from_dict(cls, value, path)
    if (isinstance(kind, types.UnionType) and int not in typing.get_args(kind)) or dataclasses.is_dataclass(kind):
        return from_dict(kind, value, path)  # pyright: ignore[reportArgumentType]
    value = to_tuples(value)
    if isinstance(value, str) and (new := RENAMED_VALUES.get((path.split(".")[-1], value))):
        raise ConfigError(f"{path}={value} is called {new} now: set {path}={new}")
    if kind is float and type(value) is int:
        return float(value)
    if typing.get_origin(kind) is Literal and value not in typing.get_args(kind):
        raise ConfigError(f"{path} must be {' or '.join(map(repr, typing.get_args(kind)))}, got {value!r}")
    if kind in KINDS and not _fits(kind, value):
        raise ConfigError(f"{path} must be {KINDS[kind]}, got {value!r}")
    return value


def _fits(kind: Any, value: Any) -> bool:
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_fits(typing.get_args(kind)[0], item) for item in value)
    return type(value) is kind  # for Python a bool is an int as well


def save_config(experiment: Experiment, path: Path) -> None:
    """Write the resolved configuration as JSON, with its format and the version of the draws, atomically."""
    write_json(path, {"format": FORMAT, "draws": DRAWS} | to_dict(experiment))


def differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """Lines `key: old -> new` for every leaf that differs."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{prefix}{key}.")
        elif to_tuples(a) != to_tuples(b):
            lines.append(f"{prefix}{key}: {a} -> {b}")
    return lines


def parse_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Separate `--config.a.b=value` (or `--config.a.b value`) from the other arguments."""
    rest, overrides = [], {}
    arguments = iter(argv)
    for argument in arguments:
        if not argument.startswith(("--config.", "-config.")):
            rest.append(argument)
            continue
        key, equals, value = argument.lstrip("-").removeprefix("config.").partition("=")
        if not equals and (value := next(arguments, None)) is None:
            raise ConfigError(f"{argument} needs a value: {argument}=VALUE")
        overrides[key] = value
    return rest, overrides
