"""Pickles of plain Python values and numpy arrays, read without running what a pickle may ask to be run.

A pickle is a program: it may call any function it can import. Here nothing is imported. The few names that numpy's own
pickles use stand for recipes of ours, which build an array from its bytes and check them; any other name is refused.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np


class UnsafePickleError(ValueError):
    """A pickle that is damaged, or asks for anything but plain values and numpy arrays; the message names it."""


class _Dtype:
    """`numpy.dtype(code)`, and then its state, whose second entry is the byte order."""

    def __init__(self, code: str, *_: Any):
        if not isinstance(code, str) or code[:1] not in "biufSU" or len(code) > 6:
            raise UnsafePickleError(f"arrays of type {code!r}")
        self.code = code
        self.order: Literal["=", "<", ">"] = "="

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1] if state[1] in ("<", ">") else "="

    def build(self) -> np.dtype:
        return np.dtype(self.code).newbyteorder(self.order)


class _Array:
    """What `numpy.ndarray` leaves in a pickle: version, shape, type, order of the axes, bytes."""

    array: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Dtype) or not isinstance(data, (bytes, bytearray)):
            raise UnsafePickleError("an array that holds Python objects")
        self.array = _build(data, dtype.build(), shape, "F" if fortran else "C")


def _build(data: Any, dtype: np.dtype, shape: tuple, order: Literal["C", "F"]) -> np.ndarray:
    if math.prod(shape) * dtype.itemsize != len(data):
        raise UnsafePickleError(f"an array of shape {shape} and type {dtype} in {len(data)} bytes")
    array = np.frombuffer(data, dtype).reshape(shape, order=order)
    return array.astype(dtype.newbyteorder("="))  # a copy: the bytes may be read-only


class _Recipe:
    """A function for pickles to call and nothing else: they may also set attributes of what they are given."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable):
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise UnsafePickleError("it changes what it is read with")


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _ndarray(*_: Any) -> None:
    raise UnsafePickleError("it makes an array otherwise than numpy's pickles do")


def _frombuffer(data: Any, dtype: Any, shape: tuple, order: Any) -> _Array:
    """Protocol 5 keeps the bytes apart: `numpy._core.numeric._frombuffer`."""
    if not isinstance(dtype, _Dtype) or order not in ("C", "F"):
        raise UnsafePickleError("an array that holds Python objects")
    array = _Array()
    array.array = _build(bytes(data), dtype.build(), shape, order)
    return array


def _scalar(dtype: Any, data: Any) -> Any:
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes):
        raise UnsafePickleError("a scalar that is a Python object")
    return _build(data, dtype.build(), (), "C")[()]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Bytes in pickles of protocol 2: text and the name of its code."""
    if encoding != "latin1":
        raise UnsafePickleError(f"bytes encoded as {encoding!r}")
    return text.encode("latin1")


# Numpy 2 moved its private modules; both names stand in pickles.
_KNOWN = {("numpy", "ndarray"): _ndarray, ("numpy", "dtype"): _Dtype, ("_codecs", "encode"): _encode}
for _core in ("numpy.core", "numpy._core"):
    _KNOWN[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    _KNOWN[f"{_core}.multiarray", "scalar"] = _scalar
    _KNOWN[f"{_core}.numeric", "_frombuffer"] = _frombuffer


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise UnsafePickleError(f"it asks for {module}.{name}")
        return _Recipe(_KNOWN[module, name])

    def persistent_load(self, identity: Any) -> Any:
        raise UnsafePickleError("it refers to objects outside it")


def read_pickle(path: str | Path) -> Any:
    """The value in a pickle file: numbers, text, bytes, lists, tuples, dicts, and numpy arrays of numbers or text.

    Raises:
      FileNotFoundError: no such file.
      UnsafePickleError: it holds, or asks for, anything else; or it is damaged.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}")
    with Path(path).open("rb") as file:
        try:
            return _arrays(_Reader(file).load())
        except UnsafePickleError as error:
            raise UnsafePickleError(f"{path} is not read: {error}") from error
        except Exception as error:  # a damaged program fails wherever it happens to
            raise UnsafePickleError(f"{path} is damaged ({type(error).__name__}: {error})") from error


def _arrays(value: Any) -> Any:
    """Stand-ins replaced by the arrays they were filled with."""
    if isinstance(value, _Array):
        if value.array is None:
            raise UnsafePickleError("an array without content")
        return value.array
    if isinstance(value, dict):
        return {_arrays(k): _arrays(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_arrays(v) for v in value)
    if not isinstance(value, (str, bytes, bytearray, bool, int, float, complex, type(None), np.generic)):
        raise UnsafePickleError(f"a value of type {type(value).__name__}")
    return value
