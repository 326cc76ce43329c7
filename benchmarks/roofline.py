"""Where a training step's time goes: FLOPs, bytes, the rate that is reached, and the share of each kind of operation.

FLOPs are those of products and convolutions as traced, bytes what the compiler counts for its fused program. Peaks are
published, or on CPU measured here: a matrix product and a copy. Kinds come from a profile of the compiled program: each
instruction's time on all threads, sorted by what the instruction holds. PyTorch's convolutions in its own step of the
same network stand beside ours.
"""

import collections
import dataclasses
import math
import re
import tempfile
import time
from pathlib import Path

from benchmarks import harness

STEPS = ("VAE demo", "VAE larger", "VAE base", "VAE paper", "Latte-S", "Latte-XL")
MOVING = ("copy", "transpose", "concatenate", "pad", "slice", "dynamic-slice", "dynamic-update-slice", "reshape")
MOVING += ("broadcast", "reverse", "gather")
SKIPPED = ("while", "conditional", "call", "parameter", "tuple", "get-tuple-element", "constant", "bitcast")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Fields.

    steps: whose training step, of STEPS.
    against: torch, or none.
    rounds: timed and profiled steps.
    peak_side: of the matrices whose product measures a CPU's peak.
    """

    steps: tuple[str, ...] = ("default",)
    against: str = "torch"
    rounds: int = 5
    peak_side: int = 3072


def run(settings: Settings) -> dict:
    """Every step."""
    import jax

    from pv_vae_jax.train.mfu import peak

    on_cpu = jax.default_backend() == "cpu"
    default = ("VAE demo", "VAE larger", "Latte-S") if on_cpu else ("VAE paper", "Latte-XL")
    steps = default if settings.steps == ("default",) else harness.names(settings.steps, STEPS, "step")
    found = peak(jax.devices()[0].device_kind)
    if found is None:
        peaks = measured_peaks(settings.peak_side) | {"source": "measured: a float32 matrix product, a copy"}
    else:
        peaks = {"flops": found.flops, "bandwidth": found.bandwidth, "source": "published, bfloat16"}
    results = {"peaks": peaks, "steps": {}}
    for kind in steps:
        r = results["steps"][kind] = measure(kind, settings, peaks)
        print(f"{kind}: {r['gflop_per_second']} GFLOP/s, {r['share_of_peak']:.1%} of peak", flush=True)
    aims = []
    for kind, r in results["steps"].items():
        if not on_cpu:
            least = 0.4 if kind.startswith("VAE") else 0.5
            aims.append(harness.aim(f"{kind} training step: MFU", r["share_of_peak"], least=least))
    return {"results": results, "aims": aims}


def measured_peaks(side: int) -> dict:
    """Float32 operations of a square matrix product, and bytes that `y = x + 1` moves, each a second, of a CPU."""
    import jax
    import jax.numpy as jnp

    # Each writes over what it was given, or fresh pages would cost more than the work.
    product = jax.jit(lambda a, b: (b @ b, b), donate_argnums=0)
    copy = jax.jit(lambda a, b: (a + 1, b), donate_argnums=0)

    def best(call, a, b) -> float:
        taken = []
        for _ in range(8):
            start = time.perf_counter()
            a, b = jax.block_until_ready(call(a, b))
            taken.append(time.perf_counter() - start)
        return min(taken)

    matrix, long = jnp.ones((side, side)), jnp.ones(8 * side * side)
    flops = 2 * side**3 / best(product, 1 * matrix, matrix)
    return {"flops": round(flops), "bandwidth": round(2 * long.nbytes / best(copy, 1 * long, jnp.ones(1)))}


def measure(kind: str, settings: Settings, peaks: dict) -> dict:
    """Time, count and profile one step."""
    import jax

    from pv_vae_jax.train.mfu import model_flops

    step, state, batch = a_step(kind)
    flops = model_flops(step, state, batch)
    program = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    costs = program.cost_analysis()
    costs = costs[0] if isinstance(costs, list) else costs
    once = harness.in_turn(program, state, batch)
    times = harness.take_turns({"ours": once}, settings.rounds)["ours"]
    seconds = times["median_ms"] / 1e3
    kinds = profile(once, program.as_text(), settings.rounds)
    moved = float(costs.get("bytes accessed", 0.0))
    result = {
        "times": times,
        "gflop": round(flops / 1e9, 2),
        "gib_accessed": moved / 2**30,
        "gflop_per_second": round(flops / seconds / 1e9, 1),
        "gib_per_second": round(moved / seconds / 2**30, 2),
        "share_of_peak": round(flops / seconds / peaks["flops"], 4),
        "least_ms": round(1e3 * max(flops / peaks["flops"], moved / peaks["bandwidth"]), 3),
        "bound": "compute" if flops / peaks["flops"] > moved / peaks["bandwidth"] else "memory",
        "kinds": kinds,
    }
    if settings.against != "none" and kind.startswith("VAE"):
        result["torch"] = torch_kinds(kind, settings.rounds)
    return result


def a_step(kind: str):
    """`(step, state, batch)`; on CPU as the bench `vae` has it, elsewhere its larger cases."""
    import jax

    from benchmarks import latte, vae

    on_cpu = jax.default_backend() == "cpu"
    dtype = "float32" if on_cpu else "bfloat16"
    if kind.startswith("Latte-"):
        return latte.cached_step(kind.removeprefix("Latte-"), 1 if on_cpu else 32, dtype)
    return vae.clip_step(vae.find_case(kind.removeprefix("VAE ")), dtype)


# Kinds of operations


def profile(once, text: str, rounds: int) -> dict:
    """Milliseconds a step on all threads by kind of operation, and GFLOP/s of the kinds that have any."""
    import jax

    instructions, on_cpu = instruction_kinds(text), jax.default_backend() == "cpu"
    spent: collections.Counter = collections.Counter()
    work: collections.Counter = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(rounds):
                once()
        (path,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(path))
        for plane in data.planes:
            for line in plane.lines:
                for event in line.events:
                    # A CPU's event has the instruction's name; a GPU's the kernel's, and the instruction as a stat.
                    # On a CPU jaxlib 0.12 aborts at some of the other events' stats.
                    name = event.name if on_cpu or event.name in instructions else dict(event.stats).get("hlo_op")
                    kind, flops = instructions.get(name, (None, 0.0))
                    if kind is not None:
                        spent[kind] += event.duration_ns
                        work[kind] += flops
    total = sum(spent.values())
    return {
        kind: {
            "ms": round(ns / rounds / 1e6, 3),
            "share": round(ns / total, 4),
            "gflop_per_second": round(work[kind] / ns, 1) if work[kind] else None,
        }
        for kind, ns in spent.most_common()
    }


_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<type>\(.*?\)|\S+) (?P<op>[\w\-]+)\((?P<rest>.*)")
_SHAPE = re.compile(r"\w+\[([\d,]*)\]")


def instruction_kinds(text: str) -> dict[str, tuple[str, float]]:
    """`{instruction: (kind, FLOPs)}` of a compiled program's text; a fusion is what is heaviest in it."""
    computations: dict[str, list[dict]] = {}
    name = ""
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            name = line.removeprefix("ENTRY ").split()[0].lstrip("%")
        elif match := _INSTRUCTION.match(line):
            computations.setdefault(name, []).append(match.groupdict())

    shapes = {i["name"]: i["type"] for found in computations.values() for i in found}

    def kind_of(instruction: dict) -> tuple[str, float] | None:
        op, rest = instruction["op"], instruction["rest"]
        if op in SKIPPED:
            return None
        if op in ("fusion", "call") and (called := re.search(r"calls=%?([\w.\-]+)", rest)):
            inner = [found for i in computations.get(called[1], ()) if (found := kind_of(i))]
            flops = sum(f for _, f in inner)
            names = {kind for kind, _ in inner}
            for kind in ("convolution", "matrix product", "reduction"):
                if kind in names:
                    return kind, flops
            return ("copy or transpose" if names == {"copy or transpose"} else "elementwise"), 0.0
        if op == "convolution":
            return "convolution", conv_flops(instruction, shapes)
        if op == "dot":
            return "matrix product", dot_flops(instruction, shapes)
        if op == "custom-call":
            target = re.search(r'custom_call_target="([^"]*)"', rest)
            called = target[1].lower() if target else ""
            if "conv" in called:
                return "convolution", 0.0
            return ("matrix product", 0.0) if "matmul" in called or "gemm" in called else ("other", 0.0)
        if op in ("reduce", "reduce-window"):
            return "reduction", 0.0
        return ("copy or transpose" if op in MOVING else "elementwise"), 0.0

    return {i["name"]: kind for found in computations.values() for i in found if (kind := kind_of(i))}


def _dims(type_text: str) -> list[int]:
    match = _SHAPE.search(type_text)
    return [int(n) for n in match[1].split(",") if n] if match else []


def _operand_dims(instruction: dict, shapes: dict[str, str], index: int) -> list[int]:
    operands = instruction["rest"].split(")")[0].split(", ")
    return _dims(shapes.get(operands[index].split()[-1].lstrip("%"), operands[index]))


def conv_flops(instruction: dict, shapes: dict[str, str]) -> float:
    """Two for each product of a convolution without groups."""
    labels = re.search(r"dim_labels=\w+_(\w+)->", instruction["rest"])
    kernel = _operand_dims(instruction, shapes, 1)
    if not labels or len(labels[1]) != len(kernel):
        return 0.0
    taps = math.prod(n for label, n in zip(labels[1], kernel, strict=True) if label != "o")
    return 2.0 * math.prod(_dims(instruction["type"])) * taps


def dot_flops(instruction: dict, shapes: dict[str, str]) -> float:
    """Two for each product of a matrix product."""
    contracted = re.search(r"lhs_contracting_dims={([\d,]*)}", instruction["rest"])
    left = _operand_dims(instruction, shapes, 0)
    if not contracted or not left:
        return 0.0
    return 2.0 * math.prod(_dims(instruction["type"])) * math.prod(left[int(i)] for i in contracted[1].split(","))


def torch_kinds(kind: str, rounds: int) -> dict:
    """PyTorch's own profile of its step: milliseconds of convolutions, and of everything else."""
    torch = harness.need("torch")
    import jax

    from benchmarks import vae
    from benchmarks.torch_vae import TorchStep

    device, case = harness.torch_device(), vae.find_case(kind.removeprefix("VAE "))
    config = vae.network(case, "float32" if jax.default_backend() == "cpu" else "bfloat16")
    layout = torch.channels_last_3d
    rates = (vae.RATE, vae.KL, vae.EMA)
    step = TorchStep(vae.draw_params(config), config, layout, device, *rates, bfloat16=config.dtype == "bfloat16")
    given = torch.tensor(vae.draw_video(case), device=device), torch.zeros(case.batch, dtype=torch.int32, device=device)
    step(*given)
    activities = [torch.profiler.ProfilerActivity.CPU]
    on_gpu = device.type == "cuda"
    if on_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as found:
        for _ in range(rounds):
            step(*given)
    spent: collections.Counter = collections.Counter()
    for event in found.key_averages():
        spent["convolution" if "conv" in event.key else "else"] += (
            event.self_device_time_total if on_gpu else event.self_cpu_time_total
        )
    return {what: round(us / rounds / 1e3, 3) for what, us in spent.items()}


def table(results: dict) -> str:
    """The steps, then the kinds of each."""
    peaks = results["peaks"]
    head = ("step", "time", "GFLOP", "GiB accessed", "GFLOP/s", "of peak", "GiB/s", "bound by", "at peak")
    rows = [
        (
            kind,
            harness.ms(r["times"]["median_ms"]),
            r["gflop"],
            f"{r['gib_accessed']:.3g}",
            r["gflop_per_second"],
            f"{r['share_of_peak']:.1%}",
            r["gib_per_second"],
            r["bound"],
            harness.ms(r["least_ms"]),
        )
        for kind, r in results["steps"].items()
    ]
    more = []
    for kind, r in results["steps"].items():
        for name, k in r["kinds"].items():
            more.append((kind, name, f"{k['share']:.1%}", harness.ms(k["ms"]), k["gflop_per_second"]))
        for name, spent in r.get("torch", {}).items():
            more.append((f"{kind}, PyTorch", {"else": "all else"}.get(name, name), None, harness.ms(spent), None))
    peak = f"Peaks: {peaks['flops'] / 1e9:,.0f} GFLOP/s, {peaks['bandwidth'] / 1e9:,.0f} GB/s ({peaks['source']})."
    kinds = harness.markdown(("step", "operations", "share", "time on all threads", "GFLOP/s a thread"), more)
    return f"{peak}\n\n{harness.markdown(head, rows)}\n\n{kinds}"
