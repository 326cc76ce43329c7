"""Experiments from files and flags: `get_config()` of a Python file, dotted overrides, JSON and back."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import os
import traceback
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import ml_collections

from pv_vae_jax.models.registry import vae_config_of
from pv_vae_jax.models.transformer_vae import TransformerVAEConfig
from pv_vae_jax.models.vae import VAEConfig
from pv_vae_jax.storage import write_json
from pv_vae_jax.train.configs import Experiment
from pv_vae_jax.typing import ConfigError


def load_experiment(path: str | Path, overrides: dict[str, str] | None = None) -> Experiment:
    """Run `get_config()` of the file `path` and apply `overrides`, `{"video.steps": "100"}`.

    Raises:
      ConfigError: no such file, no `get_config`, an unknown key (the nearest is named) or a value of the wrong type.
    """
    experiment = run_config(path, Experiment)
    experiment = override(experiment, overrides or {})
    source = experiment.data.source
    if os.path.isdir(source):  # a run means the same folder from wherever it is continued
        data = dataclasses.replace(experiment.data, source=os.path.abspath(source))
        experiment = dataclasses.replace(experiment, data=data)
    return experiment.validate()


T = typing.TypeVar("T")

FORMAT = 2  # of config.json in a work directory

# What a file may define, and the command that takes it.
COMMAND_OF = {"get_config": "pv-vae train", "get_study": "python -m studies.ablation"}


def run_config(path: str | Path, kind: type[T], function: str = "get_config") -> T:
    """What `function()` of the file `path` returns, a `kind`; raises `ConfigError` if there is none."""
    path = Path(path)
    what = "study" if function == "get_study" else "experiment"
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*.py") if not p.name.startswith("_"))
        raise ConfigError(f"no {what} file {path}" + (f"; there are {', '.join(near)}" if near else ""))
    if path.suffix != ".py":
        raise ConfigError(f"{path} is no Python file: --config takes one that defines {function}()")
    spec = importlib.util.spec_from_file_location(f"{what}_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # as for every .py file
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not callable(getattr(module, function, None)):
            for other, command in COMMAND_OF.items():
                if callable(getattr(module, other, None)):
                    call = f"{command} --config {path} --workdir runs/{path.stem}"
                    raise ConfigError(f"{path} is {'a' if other == 'get_study' else 'no'} study: {call}")
            raise ConfigError(f"{path} defines no {function}()")
        config = getattr(module, function)()
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
        if isinstance(error, SyntaxError) and error.filename:
            frames.append((error.filename, error.lineno))
        lines = [line for name, line in frames if os.path.abspath(name) == os.path.abspath(path)]  # of this file alone
        line = lines[-1] if lines else "?"
        raise ConfigError(f"{path}, line {line}: {type(error).__name__}: {error}") from error
    if not isinstance(config, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise ConfigError(f"{function}() of {path} returns {type(config).__name__}, not {article} {kind.__name__}")
    return config


def override(experiment: T, overrides: dict[str, str]) -> T:
    """A copy with dotted keys replaced; values are Python literals, anything else is text."""
    tree = ml_collections.ConfigDict(to_dict(experiment))
    for key, text in overrides.items():
        node, *rest = _walk(tree, key)
        old = node[rest[0]]
        if isinstance(old, ml_collections.ConfigDict):
            inside = ", ".join(f"{key}.{name}" for name in old)
            raise ConfigError(f"config.{key} is a group of settings; set one of {inside}")
        value = text if isinstance(old, str) else _literal(text)
        if isinstance(old, tuple):
            value = value.split(",") if isinstance(value, str) and value else value
            value = _tuples(value) if isinstance(value, (tuple, list)) else (value,)
        fits = isinstance(value, (int, float) if isinstance(old, float) else type(old))
        fits &= isinstance(old, bool) == isinstance(value, bool)  # for Python a bool is an int
        if not fits or (isinstance(old, tuple) and old and {type(v) for v in value} - {type(old[0])}):
            raise ConfigError(f"config.{key} is {_kind(old)}, like {old!r}; got {text!r}")
        node[rest[0]] = value
    try:
        return from_dict(type(experiment), tree.to_dict())
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _walk(tree: ml_collections.ConfigDict, key: str) -> tuple[ml_collections.ConfigDict, str]:
    node: Any = tree
    *parents, leaf = key.split(".")
    for i, part in enumerate([*parents, leaf]):
        if not isinstance(node, ml_collections.ConfigDict) or part not in node:
            prefix = ".".join(key.split(".")[:i])
            names = list(node.keys()) if isinstance(node, ml_collections.ConfigDict) else []
            near = difflib.get_close_matches(part, names, 1)
            known = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(names) or 'nothing'}"
            where = f"config.{prefix}" if prefix else "config"
            raise ConfigError(f"unknown config key config.{key}: no {part!r} in {where}; {known}")
        if i < len(parents):
            node = node[part]
    return node, leaf


def _literal(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _kind(value: Any) -> str:
    return {bool: "true or false", int: "an integer", float: "a number", tuple: "a tuple"}.get(type(value), "text")


def to_dict(config: Any) -> dict:
    """Nested dict of a dataclass tree."""
    return dataclasses.asdict(config)


def from_dict(cls: type, tree: dict) -> Any:
    """Inverse of `to_dict`; lists (from JSON) become tuples. Raises `ConfigError` on what is unknown."""
    if not isinstance(tree, dict):
        raise ConfigError(f"{cls.__name__} is a group of settings, got {tree!r}")
    hints = typing.get_type_hints(cls)
    unknown = set(tree) - set(hints)
    if unknown:
        raise ConfigError(f"{cls.__name__} has no {', '.join(sorted(unknown))}")
    values = {}
    for key, value in tree.items():
        if isinstance(hints[key], types.UnionType):
            value = _vae_config(value)
        elif dataclasses.is_dataclass(hints[key]):
            value = from_dict(hints[key], value)
        elif isinstance(value, list):
            value = _tuples(value)
        elif hints[key] is float and isinstance(value, int):
            value = float(value)
        elif typing.get_origin(hints[key]) is Literal and value not in typing.get_args(hints[key]):
            known = " or ".join(map(repr, typing.get_args(hints[key])))
            raise ConfigError(f"{cls.__name__}.{key} is {known}, got {value!r}")
        kind = typing.get_origin(hints[key]) or hints[key]
        if kind in (bool, int, float, str, tuple):
            if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
                raise ConfigError(f"{cls.__name__}.{key} is {_kind(kind())}, got {value!r}")
        values[key] = value
    return cls(**values)


def _tuples(value: Any) -> Any:
    """Lists, which JSON and flags make of tuples, back to tuples, at any depth."""
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def _vae_config(tree: Any) -> VAEConfig | TransformerVAEConfig:
    if not isinstance(tree, dict):
        return from_dict(VAEConfig, tree)
    try:
        cls, fields = vae_config_of(tree)
    except ValueError as error:
        raise ConfigError(f"config.vae.kind: {error}") from error
    return from_dict(cls, fields)


def save_config(experiment: Experiment, path: Path) -> None:
    """Write the resolved configuration and its format as JSON, atomically."""
    write_json(path, {"format": FORMAT} | to_dict(experiment))


def differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """Lines `key: old -> new` for every leaf that differs."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{prefix}{key}.")
        elif _tuples(a) != _tuples(b):
            lines.append(f"{prefix}{key}: {a} -> {b}")
    return lines


def parse_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Part `--config.a.b=value` (or `--config.a.b value`) from the other arguments."""
    rest, overrides = [], {}
    i = 0
    while i < len(argv):
        argument = argv[i]
        if argument.startswith(("--config.", "-config.")):
            key, equals, value = argument.lstrip("-")[len("config.") :].partition("=")
            if not equals:
                i += 1
                if i == len(argv):
                    raise ConfigError(f"{argument} needs a value: {argument}=VALUE")
                value = argv[i]
            overrides[key] = value
        else:
            rest.append(argument)
        i += 1
    return rest, overrides
