"""Lists of names that packages export, imported on first use.

Loader processes import `pv_vae_jax.data` and must not start jax with it, and `import pv_vae_jax` is to be quick. So the
imports in a package's `__init__` are under `TYPE_CHECKING`, where type checkers and editors read them, and are made at
run time when a name is first asked for. `etils.epy.lazy_api_imports` does the same; this needs no dependency.
"""

import ast
import importlib
import inspect
import sys
from collections.abc import Callable
from typing import Any


def lazy_imports(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of `package`, for the imports that its source makes under `TYPE_CHECKING`."""
    module = sys.modules[package]
    (block,) = (
        node.body
        for node in ast.parse(inspect.getsource(module)).body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    )
    home = {alias.name: node.module for node in block if isinstance(node, ast.ImportFrom) for alias in node.names}

    def get(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(str(home[name])), name)
        setattr(module, name, value)  # asked for once
        return value

    return get, lambda: sorted({*vars(module), *home})
