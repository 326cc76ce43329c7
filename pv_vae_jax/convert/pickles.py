"""Pickles read without running what they ask for.

A pickle is a program that may call any function it can import. Here nothing is imported: the few names that a file
format needs have recipes of ours, any other name is refused. `torch_file` reads `.pth` files so.
`torch.load(weights_only=True)` would do it for those, but converting weights once is no reason to install PyTorch.
"""

import pickle
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO


class UnsafePickleError(ValueError):
    """A pickle that is damaged, or asks for more than its format needs. The message completes "its pickle ..."."""


class Recipe:
    """Stand-in for an importable name. A pickle can call it, but not change it."""

    __slots__ = ("_function", "name")

    def __init__(self, name: str, function: Callable):
        self.name, self._function = name, function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise UnsafePickleError("changes what it is read with")


class _Unpickler(pickle._Unpickler):
    """The one written in Python: the C one allocates as much memory as any memo index in the file asks for."""

    def __init__(self, file: BinaryIO, recipes: Mapping[str, Callable], persistent_load: Callable | None):
        super().__init__(file)
        self._recipes, self._persistent_load = recipes, persistent_load

    def find_class(self, module: str, name: str) -> Recipe:
        full = f"{module}.{name}"
        if full not in self._recipes:
            raise UnsafePickleError(f"asks for {full}")
        return Recipe(full, self._recipes[full])

    def persistent_load(self, pid: Any) -> Any:
        if self._persistent_load is None:
            raise UnsafePickleError("refers to objects outside it")
        return self._persistent_load(pid)


def load_pickle(file: BinaryIO, recipes: Mapping[str, Callable], persistent_load: Callable | None = None) -> Any:
    """The value of the next pickle in `file`; only `recipes` run.

    Args:
      file: open for reading, binary.
      recipes: full name, `module.name`, to the function to call in its place.
      persistent_load: resolves references to objects outside the pickle; without it they are refused.

    Raises:
      UnsafePickleError: the pickle asks for another name, or is damaged.
    """
    try:
        return _Unpickler(file, recipes, persistent_load).load()
    except UnsafePickleError:
        raise
    except Exception as error:  # a damaged or hostile program fails wherever it happens to
        raise UnsafePickleError(f"is damaged ({type(error).__name__}: {error})") from error
