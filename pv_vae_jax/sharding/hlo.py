"""Communication and FLOPs of a program: collectives in its compiled text, operations in its jaxpr."""

import dataclasses
import math
import re
from typing import Any

import jax.extend.core
import numpy as np

BETWEEN_SLICES = "between slices"
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")
# `%x = (f32[8,4]{1,0}, bf16[2]) all-gather-start(...)`: the type, then the operation. The second half of an
# asynchronous pair (`-done`) is left out.
_LINE = re.compile(rf"= (?P<type>\(.*?\)|\S+) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\(")
_SEND = re.compile(r"= (?P<type>\(.*\)) send\(")  # how a TPU's program speaks to another slice
_ARRAY = re.compile(r"\b(?P<dtype>pred|[a-z]+\d+)[a-z0-9]*\[(?P<shape>[\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collectives of one kind: their number, and the bytes of their results on one device."""

    count: int = 0
    bytes: float = 0


def traffic(text: str, slice_size: int = 0) -> dict[str, Traffic]:
    """Collectives in the text of a compiled program, by kind.

    Those inside a loop count as often as the loop runs (the layers of a transformer under `lax.scan`).

    Args:
      text: the program.
      slice_size: devices of a slice, of which there are several. What leaves a slice, by a collective over several or
        by a send, is of the kind `BETWEEN_SLICES` then, and of no other.
    """
    found: dict[str, Traffic] = {}
    trips = _trips(text)
    for name, line in _lines(text):
        match = _LINE.search(line)
        told = match or (_SEND.search(line) if slice_size else None)
        if told is None:
            continue
        sizes = [
            math.prod(map(int, filter(None, a["shape"].split(",")))) * _bytes(a["dtype"])
            for a in _ARRAY.finditer(told["type"])
        ]
        if match:
            # An asynchronous start names operand and result; an all-to-all or a combined all-reduce a result a part.
            size = max(sizes, default=0) if match["start"] and match["kind"] != "all-reduce" else sum(sizes)
            kind = BETWEEN_SLICES if slice_size and _leaves(line, slice_size) else match["kind"]
        else:
            size, kind = sum(sizes[:-1]), BETWEEN_SLICES  # the last is a counter of the transfer
        old, times = found.get(kind, Traffic()), trips.get(name, 1)
        found[kind] = Traffic(old.count + times, old.bytes + size * times)
    return found


def _leaves(line: str, slice_size: int) -> bool:
    """Whether a group of a collective has devices of several slices, which follow each other in the mesh."""
    if named := re.search(r"replica_groups=mesh\[(.*?)\] ?\{(.*?)\}", line):  # by the axes of the mesh
        spans, span = {}, 1  # axis -> devices from its first to its last, with all later axes
        for axis, size in reversed(re.findall(r"'(\w+)'=(\d+)", named[1])):
            spans[axis] = span = span * int(size)
        # `'data':(2)4`: the axis in parts, of which 2 come before this one.
        used = re.findall(r"'(\w+)'(?::\((\d+)\))?", named[2])
        return any(spans[axis] // int(before or 1) > slice_size for axis, before in used)
    if listed := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        groups, sides = (tuple(map(int, part.split(","))) for part in listed.group(1, 2))
        order = tuple(map(int, listed[3].split(","))) if listed[3] else tuple(range(len(sides)))
        ids = np.arange(math.prod(sides)).reshape(sides).transpose(order).reshape(groups).tolist()
    else:
        listed = re.search(r"(?:replica_groups|source_target_pairs)=\{(|.*?\})\}", line)
        ids = [list(map(int, group.split(","))) for group in re.findall(r"\{([\d,]+)\}", listed[1])] if listed else []
    # No groups are one group of all devices.
    return not ids or any(len({device // slice_size for device in group}) > 1 for group in ids)


def _bytes(dtype: str) -> float:
    bits = int(re.sub(r"\D", "", dtype) or 8)
    return 1 if dtype == "pred" else bits / 8


def _lines(text: str):
    """`(computation, line)` of every instruction."""
    name = ""
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            name = line.removeprefix("ENTRY ").split()[0].lstrip("%")
        elif line.startswith(" "):
            yield name, line


def _trips(text: str) -> dict[str, int]:
    """How often each computation runs: the trips of the loops around it, multiplied.

    A counting loop compares its index with a constant, the only one in its condition.
    """
    callers: dict[str, list[tuple[str, int]]] = {}
    constants: dict[str, int] = {}
    loops = []
    for name, line in _lines(text):
        if number := re.search(r"= s32\[\]\S* constant\((\d+)\)", line):
            constants[name] = int(number[1])
        if " while(" in line:
            condition, body = (re.findall(rf"{part}=%?([\w.\-]+)", line)[0] for part in ("condition", "body"))
            loops.append((name, condition, body))
        else:
            for callee in re.findall(r"(?:calls|to_apply|\w+_computation)=%?([\w.\-]+)", line):
                callers.setdefault(callee, []).append((name, 1))
    for name, condition, body in loops:
        callers.setdefault(body, []).append((name, constants.get(condition, 1)))

    def runs(name: str) -> int:
        return max((runs(caller) * times for caller, times in callers.get(name, ())), default=1)

    return {name: runs(name) for name in callers}


def step_flops(jaxpr: Any) -> float:
    """Floating-point operations of the matrix products and convolutions of a traced program, on all devices together.

    Loop bodies and recomputation count as often as they run; the compiler's own figure counts a loop body once.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        # Recomputation may leave equations without results.
        out = math.prod(getattr(equation.outvars[0].aval, "shape", ())) if equation.outvars else 0
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += 2.0 * out * math.prod(equation.invars[0].aval.shape[i] for i in contracted)
        elif name == "conv_general_dilated":
            kernel, spec = equation.invars[1].aval.shape, equation.params["dimension_numbers"].rhs_spec
            total += 2.0 * out * math.prod(kernel[i] for i in spec[1:])
        times = equation.params.get("length", 1) if name == "scan" else 1
        total += times * sum(step_flops(inner) for inner in jax.extend.core.jaxprs_in_params(equation.params))
    return total
