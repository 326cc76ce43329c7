"""Plain values and NumPy arrays of a pickle, read without running what it asks for (see `convert.pickles`)."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pv_vae_jax.convert.pickles import UnsafePickleError, load_pickle


def read_pickle(path: str | Path) -> Any:
    """The value in a pickle file: numbers, text, bytes, lists, tuples, dicts, and numpy arrays of numbers or text.

    Raises:
      FileNotFoundError: the file does not exist.
      UnsafePickleError: the pickle holds, or asks for, anything else; or it is damaged.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}")
    with Path(path).open("rb") as file:
        try:
            return _with_arrays(load_pickle(file, NUMPY_RECIPES))
        except UnsafePickleError as error:
            raise UnsafePickleError(f"cannot read {path}: its pickle {error}") from error
        except Exception as error:  # nested too deeply, or a key that cannot be hashed
            raise UnsafePickleError(f"cannot read {path}: its pickle is damaged ({error})") from error


class _Dtype:
    """`numpy.dtype(code)`, and then its state, whose second entry is the byte order."""

    def __init__(self, code: str, *_: Any):
        if not isinstance(code, str) or code[:1] not in "biufSU" or len(code) > 6:
            raise UnsafePickleError(f"holds arrays of type {code!r}")
        self.code = code
        self.order: Literal["=", "<", ">"] = "="

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1] if state[1] in ("<", ">") else "="

    def build(self) -> np.dtype:
        return np.dtype(self.code).newbyteorder(self.order)


class _Array:
    """What `numpy.ndarray` leaves in a pickle: version, shape, dtype, order of the axes, bytes."""

    array: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        self.array = _build(dtype, data, shape, "F" if fortran else "C")


def _build(dtype: Any, data: Any, shape: tuple, order: Literal["C", "F"]) -> np.ndarray:
    if not isinstance(dtype, _Dtype) or not isinstance(data, (bytes, bytearray)) or order not in ("C", "F"):
        raise UnsafePickleError("holds an array of Python objects")
    dtype = dtype.build()
    if math.prod(shape) * dtype.itemsize != len(data):
        raise UnsafePickleError(f"holds an array of shape {shape} and dtype {dtype} in {len(data)} bytes")
    array = np.frombuffer(data, dtype).reshape(shape, order=order)
    return array.astype(dtype.newbyteorder("="))  # a copy: the bytes may be read-only


def _frombuffer(data: Any, dtype: Any, shape: tuple, order: Any) -> _Array:
    """Protocol 5 keeps the bytes apart: `numpy._core.numeric._frombuffer`."""
    array = _Array()
    array.array = _build(dtype, bytes(data), shape, order)
    return array


def _ndarray(*_: Any) -> None:
    raise UnsafePickleError("makes an array in another way than numpy's pickles do")


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Bytes in pickles of protocol 2: text and the name of its code."""
    if encoding != "latin1":
        raise UnsafePickleError(f"holds bytes encoded as {encoding!r}")
    return text.encode("latin1")


NUMPY_RECIPES: dict[str, Callable] = {"numpy.ndarray": _ndarray, "numpy.dtype": _Dtype, "_codecs.encode": _encode}
for _core in ("numpy.core", "numpy._core"):  # numpy 2 moved its private modules; pickles hold either name
    NUMPY_RECIPES[f"{_core}.multiarray._reconstruct"] = lambda *_: _Array()
    NUMPY_RECIPES[f"{_core}.multiarray.scalar"] = lambda dtype, data: _build(dtype, data, (), "C")[()]
    NUMPY_RECIPES[f"{_core}.numeric._frombuffer"] = _frombuffer


def _with_arrays(value: Any) -> Any:
    """`value` with arrays in place of their stand-ins."""
    if isinstance(value, _Array):
        if value.array is None:
            raise UnsafePickleError("holds an array without content")
        return value.array
    if isinstance(value, dict):
        return {_with_arrays(k): _with_arrays(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_with_arrays(v) for v in value)
    if not isinstance(value, (str, bytes, bytearray, bool, int, float, complex, type(None), np.generic)):
        raise UnsafePickleError(f"holds a value of type {type(value).__name__}")
    return value
