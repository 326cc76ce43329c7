"""Any function of JAX, computed in float64 by NumPy: numbers that hang neither on the machine nor on a compiler.

The library computes in float32 by name, in many places, so JAX_ENABLE_X64 alone does not make float64 of it. Here the
function is traced as it is, and the traced program is run one operation after the other, with every float32 in it
replaced by float64. Random numbers stay the ones that float32 draws, to the last bit that they draw them from, so that
the result is that of float32 without its rounding. Nothing is compiled, but for the few operations that are left to
JAX. Constants of Python are rounded to float32 when the function is traced, and stay so.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend import core
from scipy import special

SINGLE, DOUBLE = np.dtype("float32"), np.dtype("float64")


def in_float64(function: Callable, *args: Any) -> Any:
    """`function(*args)` for trees of arrays, as a tree of NumPy arrays. Whatever would be float32 is float64."""
    traced, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    with jax.enable_x64(True), np.errstate(all="ignore"):  # what is not selected may be infinite
        leaves = evaluate(traced.jaxpr, traced.consts, [np.asarray(leaf) for leaf in jax.tree.leaves(args)])
    for leaf, shape in zip(leaves, jax.tree.leaves(shapes), strict=True):
        assert leaf.shape == shape.shape and leaf.dtype == (DOUBLE if shape.dtype == SINGLE else shape.dtype)
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def _is_key(value: Any) -> bool:
    return jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)


def widen(value: Any) -> Any:
    """float32 -> float64; keys of random numbers are left to JAX."""
    if _is_key(value):
        return value
    value = np.asarray(value)
    return value.astype(DOUBLE) if value.dtype == SINGLE else value


def evaluate(jaxpr: Any, consts: list, args: list) -> list:
    """Results of a traced program."""
    known: dict = {}

    def read(at: Any) -> Any:
        return widen(np.asarray(at.val, at.aval.dtype)) if isinstance(at, core.Literal) else known[at]

    for variables, values in ((jaxpr.constvars, consts), (jaxpr.invars, args)):
        known.update(zip(variables, map(widen, values), strict=True))
    for equation in jaxpr.eqns:
        values = [read(at) for at in equation.invars]
        try:
            found = operation(equation, values)
        except Exception as error:
            error.add_note(f"in {equation.primitive.name} of {', '.join(str(at.aval) for at in equation.invars)}")
            raise
        for at, value in zip(equation.outvars, found, strict=True):
            assert value.shape == at.aval.shape, f"{equation.primitive.name}: {value.shape}, expected {at.aval.shape}"
            known[at] = value
    return [read(at) for at in jaxpr.outvars]


def operation(equation: Any, values: list) -> list:
    """Results of one operation."""
    name, params = equation.primitive.name, equation.params
    if name == "scan":
        return _scan(values, **params)
    if name == "while":
        return _while(values, **params)
    if name == "cond":
        return _run(params["branches"][int(values[0])], values[1:])
    inner = params.get("call_jaxpr", params.get("jaxpr"))
    if inner is not None:  # jit, remat, functions with derivatives of their own
        return _run(inner, values)
    if any(map(_is_key, values)):
        return _by_jax(equation, values)
    if name in PLAIN:
        kind = equation.outvars[0].aval.dtype
        kind = DOUBLE if kind == SINGLE else kind
        return [np.asarray(PLAIN[name](*values)).astype(kind, copy=False)]
    if name in WITH_SETTINGS:
        found = WITH_SETTINGS[name](*values, **params)
        return list(found) if equation.primitive.multiple_results else [np.asarray(found)]
    return _by_jax(equation, values)


def _by_jax(equation: Any, values: list) -> list:
    if equation.primitive.name == "scatter-add":  # whose addition is a program of its own, in float32
        names = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
        return [widen(jax.lax.scatter_add(*values, **{name: equation.params[name] for name in names}))]
    settings = {k: DOUBLE if isinstance(v, np.dtype) and v == SINGLE else v for k, v in equation.params.items()}
    found = equation.primitive.bind(*values, **settings)
    return [widen(each) for each in (found if equation.primitive.multiple_results else [found])]


def _run(jaxpr: Any, values: list) -> list:
    if isinstance(jaxpr, core.ClosedJaxpr):
        return evaluate(jaxpr.jaxpr, jaxpr.consts, values)
    return evaluate(jaxpr, [], values)


def _scan(values: list, *, jaxpr: Any, length: int, reverse: bool, **counts: Any) -> list:
    if "ft_in" in counts:  # since jax 0.12
        num_consts, num_carry, _ = map(len, counts["ft_in"].unpack())
    else:
        num_consts, num_carry = counts["num_consts"], counts["num_carry"]
    fixed, carry, rows = values[:num_consts], values[num_consts:][:num_carry], values[num_consts + num_carry :]
    outputs = []
    for i in reversed(range(length)) if reverse else range(length):
        found = _run(jaxpr, [*fixed, *carry, *(row[i] for row in rows)])
        carry = found[:num_carry]
        outputs.append(found[num_carry:])
    ordered = outputs[::-1] if reverse else outputs
    return [*carry, *(np.stack(each) for each in zip(*ordered, strict=True))]


def _while(values: list, *, cond_jaxpr: Any, body_jaxpr: Any, cond_nconsts: int, body_nconsts: int, **_: Any) -> list:
    asks, does = values[:cond_nconsts], values[cond_nconsts:][:body_nconsts]
    carry = values[cond_nconsts + body_nconsts :]
    while _run(cond_jaxpr, [*asks, *carry])[0]:
        carry = _run(body_jaxpr, [*does, *carry])
    return carry


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a / b if a.dtype == DOUBLE else np.trunc(a / b)


def _select(which: np.ndarray, *cases: np.ndarray) -> np.ndarray:
    return np.where(which, cases[1], cases[0]) if which.dtype == bool else np.choose(which, cases)


def _convert(x: np.ndarray, *, new_dtype: Any, **_: Any) -> np.ndarray:
    return x.astype(DOUBLE if new_dtype == SINGLE else new_dtype)


def _bits(x: np.ndarray, *, new_dtype: Any) -> np.ndarray:
    """The bits are those of float32."""
    return widen((x.astype(SINGLE) if x.dtype == DOUBLE else x).view(new_dtype))


def _broadcast(x: np.ndarray, *_: Any, shape: tuple, broadcast_dimensions: tuple, **__: Any) -> np.ndarray:
    sides = [1] * len(shape)
    for at, size in zip(broadcast_dimensions, x.shape, strict=True):
        sides[at] = size
    return np.broadcast_to(x.reshape(sides), shape)


def _pad(x: np.ndarray, fill: np.ndarray, *, padding_config: tuple) -> np.ndarray:
    """Negative widths cut; entries may be drawn apart."""
    spread = np.full(
        [max(n + (n - 1) * apart, 0) for n, (_, _, apart) in zip(x.shape, padding_config, strict=True)], fill
    )
    spread[tuple(slice(None, None, apart + 1) for *_, apart in padding_config)] = x
    spread = np.pad(spread, [(max(a, 0), max(b, 0)) for a, b, _ in padding_config], constant_values=fill)
    return spread[
        tuple(slice(max(-a, 0), n - max(-b, 0)) for n, (a, b, _) in zip(spread.shape, padding_config, strict=True))
    ]


def _slice(x: np.ndarray, *, start_indices: tuple, limit_indices: tuple, strides: tuple | None) -> np.ndarray:
    strides = strides or (1,) * x.ndim
    return x[tuple(map(slice, start_indices, limit_indices, strides))]


def _dynamic_slice(x: np.ndarray, *starts: np.ndarray, slice_sizes: tuple, **_: Any) -> np.ndarray:
    first = [min(max(int(a), 0), n - size) for a, n, size in zip(starts, x.shape, slice_sizes, strict=True)]
    return x[tuple(slice(a, a + size) for a, size in zip(first, slice_sizes, strict=True))]


def _iota(*_: Any, dtype: Any, shape: tuple, dimension: int, **__: Any) -> np.ndarray:
    sides = [-1 if i == dimension else 1 for i in range(len(shape))]
    count = np.arange(shape[dimension], dtype=DOUBLE if dtype == SINGLE else dtype)
    return np.broadcast_to(count.reshape(sides), shape)


def _dot(a: np.ndarray, b: np.ndarray, *, dimension_numbers: tuple, **_: Any) -> np.ndarray:
    (a_sum, b_sum), (a_batch, b_batch) = dimension_numbers
    names = iter("abcdefghijklmnopqrstuvwxyz")
    a_names = [next(names) for _ in a.shape]
    b_names = [next(names) for _ in b.shape]
    for i, j in (*zip(a_sum, b_sum, strict=True), *zip(a_batch, b_batch, strict=True)):
        b_names[j] = a_names[i]
    left = [n for i, n in enumerate(a_names) if i not in (*a_sum, *a_batch)]
    right = [n for j, n in enumerate(b_names) if j not in (*b_sum, *b_batch)]
    out = "".join([*(a_names[i] for i in a_batch), *left, *right])
    return np.einsum(f"{''.join(a_names)},{''.join(b_names)}->{out}", a, b, optimize=True)


def _convolve(
    x: np.ndarray,
    kernel: np.ndarray,
    *,
    window_strides: tuple,
    padding: tuple,
    lhs_dilation: tuple,
    rhs_dilation: tuple,
    dimension_numbers: Any,
    feature_group_count: int,
    batch_group_count: int,
    **_: Any,
) -> np.ndarray:
    assert feature_group_count == batch_group_count == 1, "convolutions in groups are not written yet"
    x, kernel = x.transpose(dimension_numbers.lhs_spec), kernel.transpose(dimension_numbers.rhs_spec)
    whole = ((0, 0, 0),) * 2
    zero = np.zeros(())
    edges = [(*pair, apart - 1) for pair, apart in zip(padding, lhs_dilation, strict=True)]
    x = _pad(x, zero, padding_config=(*whole, *edges))
    kernel = _pad(kernel, zero, padding_config=(*whole, *((0, 0, apart - 1) for apart in rhs_dilation)))
    axes = tuple(range(2, x.ndim))
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2:], axis=axes)
    windows = windows[(slice(None), slice(None), *(slice(None, None, stride) for stride in window_strides))]
    summed = (1, *range(x.ndim, windows.ndim))
    out = np.tensordot(windows, kernel, (summed, (1, *axes)))  # (b, space, channels)
    out = np.moveaxis(out, -1, 1)
    return out.transpose(np.argsort(dimension_numbers.out_spec))


def _reduced(function: Callable) -> Callable:
    return lambda x, *, axes, **_: function(x, axis=tuple(axes))


PLAIN: dict[str, Callable] = {
    **{"add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": _divide, "neg": operator.neg},
    **{"add_any": operator.add, "max": np.maximum, "min": np.minimum, "pow": np.power, "abs": np.abs, "sign": np.sign},
    "rem": np.fmod,
    **{"sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x), "square": np.square, "exp": np.exp, "exp2": np.exp2},
    **{"log": np.log, "log1p": np.log1p, "expm1": np.expm1, "tanh": np.tanh, "sin": np.sin, "cos": np.cos},
    **{"logistic": special.expit, "erf": special.erf, "erf_inv": special.erfinv, "floor": np.floor, "ceil": np.ceil},
    **{"eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt},
    **{"ge": operator.ge, "and": operator.and_, "or": operator.or_, "xor": operator.xor, "not": np.invert},
    **{"is_finite": np.isfinite, "select_n": _select, "clamp": lambda low, x, high: np.clip(x, low, high)},
    **{"shift_right_logical": np.right_shift, "shift_left": np.left_shift, "copy": lambda x: x, "copy_p": lambda x: x},
    **{"stop_gradient": lambda x: x},
}
WITH_SETTINGS: dict[str, Callable] = {
    **{"convert_element_type": _convert, "bitcast_convert_type": _bits, "reduce_precision": lambda x, **_: x},
    **{"broadcast_in_dim": _broadcast, "pad": _pad, "slice": _slice, "dynamic_slice": _dynamic_slice, "iota": _iota},
    **{"dot_general": _dot, "conv_general_dilated": _convolve, "integer_pow": lambda x, *, y: x**y},
    "reshape": lambda x, *_, new_sizes, **__: x.reshape(new_sizes),
    "squeeze": lambda x, *, dimensions: np.squeeze(x, tuple(dimensions)),
    "transpose": lambda x, *, permutation: x.transpose(permutation),
    "rev": lambda x, *, dimensions: np.flip(x, tuple(dimensions)),
    "concatenate": lambda *x, dimension: np.concatenate(x, dimension),
    "split": lambda x, *, sizes, axis: np.split(x, np.cumsum(sizes)[:-1], axis),
    "cumsum": lambda x, *, axis, reverse: (
        np.flip(np.cumsum(np.flip(x, axis), axis), axis) if reverse else np.cumsum(x, axis)
    ),
    **{"reduce_sum": _reduced(np.sum), "reduce_max": _reduced(np.max), "reduce_min": _reduced(np.min)},
    **{"reduce_and": _reduced(np.all), "reduce_or": _reduced(np.any)},
    "reduce_prod": _reduced(np.prod),
}
