"""Ways to run a causal 3-D convolution, by shape: which is fastest on this device, and whether `auto` takes it.

Forward and both gradients of one convolution, all ways in turns, with PyTorch's convolution in channels-last beside
them. All ways must agree before they are timed.
"""

import dataclasses
import math
from functools import partial

from benchmarks import harness

# `b x t x h x w x ci x co`, kernel 3x3x3: high resolution, the middle, deep levels; first and last convolutions.
CPU_SHAPES = (
    "1x8x64x64x64x64",
    "1x8x64x64x128x128",
    "2x8x16x16x128x128",
    "1x16x32x32x64x64",
    "1x8x32x32x32x32",
    "8x17x8x8x48x48",
    "1x8x64x64x3x64",
    "1x8x64x64x64x3",
    "1x5x4x4x512x512",
    "4x5x2x2x512x512",
)
DEVICE_SHAPES = (
    "4x17x256x256x128x128",
    "4x17x128x128x256x256",
    "4x9x64x64x512x512",
    "4x5x16x16x512x512",
    "4x5x16x16x1024x1024",
    "4x17x256x256x3x128",
    "4x17x256x256x128x3",
    "4x17x128x128x96x96",
    "4x17x128x128x160x160",
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Fields.

    shapes: `b x t x h x w x ci x co`; empty is a list for the platform.
    against: torch, or none.
    dtype: compute type; empty is float32 on CPU and bfloat16 elsewhere.
    rounds, seconds: of the turns, see `harness.take_turns`.
    """

    shapes: tuple[str, ...] = ()
    against: str = "torch"
    dtype: str = ""
    rounds: int = 7
    seconds: float = 8.0


def run(settings: Settings) -> dict:
    """Time every shape."""
    import jax

    on_cpu = jax.default_backend() == "cpu"
    shapes = [s for text in settings.shapes for s in text.split(",")] or (CPU_SHAPES if on_cpu else DEVICE_SHAPES)
    dtype = settings.dtype or ("float32" if on_cpu else "bfloat16")
    results = {shape: time_shape(shape, dtype, settings) for shape in shapes}
    lost = [r["auto_over_best"] for r in results.values()]
    mean = math.exp(sum(map(math.log, lost)) / len(lost))
    aims = [harness.aim("convolution: time of `auto` / of the fastest way, geometric mean", mean, most=1.1)]
    return {"results": results, "aims": aims}


def time_shape(shape: str, dtype: str, settings: Settings) -> dict:
    """All lowerings of one shape."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from pv_vae_jax.layers.conv import LOWERINGS, causal_conv3d

    b, t, h, w, ci, co = map(int, shape.split("x"))
    rng = np.random.default_rng(0)
    x, cotangent = (rng.standard_normal((b, t, h, w, c), np.float32) for c in (ci, co))
    kernel = rng.standard_normal((3, 3, 3, ci, co), np.float32) / (27 * ci) ** 0.5
    given = [jnp.asarray(a, dtype) for a in (x, kernel, cotangent)]

    @partial(jax.jit, static_argnums=3)
    def work(x, kernel, cotangent, lowering):
        y, pull = jax.vjp(lambda x, k: causal_conv3d(x, k, lowering=lowering), x, kernel)
        return y, *pull(cotangent)

    ways = [lowering for lowering in LOWERINGS if lowering != "auto"]
    found = {way: work(*given, way) for way in ways}
    for way in ways:
        for a, b_ in zip(found["direct"], found[way], strict=True):
            scale = float(jnp.abs(a).max())
            difference = float(jnp.abs(a.astype("float32") - b_.astype("float32")).max())
            if not difference <= scale * (1e-3 if dtype == "float32" else 5e-2):
                raise RuntimeError(f"{way} differs from direct by {difference:.1e} at {shape}")
    sides = {way: partial(lambda way: jax.block_until_ready(work(*given, way)), way) for way in ways}
    if settings.against != "none":
        sides["torch"] = torch_side(x, kernel, cotangent, dtype)
    times = harness.take_turns(sides, settings.rounds, warmup=2, seconds=settings.seconds)
    auto = work.lower(*given, "auto").as_text()
    chosen = next(way for way in ways if work.lower(*given, way).as_text() == auto)
    best = harness.fastest({way: times[way] for way in ways}, "")
    flops = 3 * 2 * 27 * b * t * h * w * ci * co
    print(f"{shape}: auto {chosen}, best {best}", flush=True)
    return {
        "dtype": dtype,
        "gflop": round(flops / 1e9, 3),
        "times": times,
        "auto": chosen,
        "best": best,
        "auto_over_best": round(times[chosen]["median_ms"] / times[best]["median_ms"], 3),
    }


def torch_side(x, kernel, cotangent, dtype: str):
    """PyTorch's forward and gradients."""
    torch = harness.need("torch")
    import torch.nn.functional as F

    device = harness.torch_device()
    put = lambda a: torch.tensor(a, device=device, dtype=getattr(torch, dtype))  # noqa: E731
    cl3 = torch.channels_last_3d
    clip = put(x).permute(0, 4, 1, 2, 3).contiguous(memory_format=cl3).requires_grad_()
    weight = put(kernel).permute(4, 3, 0, 1, 2).contiguous(memory_format=cl3).requires_grad_()
    given = put(cotangent).permute(0, 4, 1, 2, 3).contiguous(memory_format=cl3)

    def work():
        y = F.conv3d(F.pad(clip, (1, 1, 1, 1, 2, 0)), weight)
        found = torch.autograd.grad(y, (clip, weight), given)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return found

    return work


def table(results: dict) -> str:
    """A row a shape: milliseconds of each way, the best in bold."""
    ways = list(dict.fromkeys(way for r in results.values() for way in r["times"]))
    rows = []
    for shape, r in results.items():
        cells = [f"{r['times'][way]['median_ms']:.3g}" if way in r["times"] else None for way in ways]
        cells = [f"**{cell}**" if way == r["best"] else cell for way, cell in zip(ways, cells, strict=True)]
        rate = r["gflop"] / r["times"][r["best"]]["median_ms"] * 1e3
        theirs = f"{r['gflop'] / r['times']['torch']['median_ms'] * 1e3:,.0f}" if "torch" in r["times"] else None
        rows.append((shape, *cells, r["auto"], r["auto_over_best"], f"{rate:,.0f}", theirs))
    head = ("b x t x h x w x ci x co, ms", *ways, "auto", "auto / best", "best, GFLOP/s", "torch, GFLOP/s")
    return harness.markdown(head, rows)
