"""Attention by implementation and shape: those of Latte and of the VAE, with PyTorch's fused one beside them.

Forward and gradients of one call, everything in turns. All implementations must agree before they are timed; those that
cannot run on this device are left out.
"""

import dataclasses
from functools import partial

from benchmarks import harness

# `b x n x heads x d`: Latte's spatial and temporal attention (S, then XL), all 1280 tokens at once, the VAE's middle.
CPU_SHAPES = ("10x256x6x64", "512x5x6x64", "2x1280x6x64", "5x256x1x512")
DEVICE_SHAPES = ("160x256x16x72", "8192x5x16x72", "32x1280x16x72", "20x256x1x1024", "4x4096x16x64")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Fields.

    shapes: `b x n x heads x d`; empty is a list for the platform.
    against: torch, or none.
    dtype: compute type; empty is float32 on CPU and bfloat16 elsewhere.
    rounds, seconds: of the turns, see `harness.take_turns`.
    """

    shapes: tuple[str, ...] = ()
    against: str = "torch"
    dtype: str = ""
    rounds: int = 9
    seconds: float = 8.0


def run(settings: Settings) -> dict:
    """Time every shape."""
    import jax

    on_cpu = jax.default_backend() == "cpu"
    shapes = [s for text in settings.shapes for s in text.split(",")] or (CPU_SHAPES if on_cpu else DEVICE_SHAPES)
    dtype = settings.dtype or ("float32" if on_cpu else "bfloat16")
    results = {shape: time_shape(shape, dtype, settings) for shape in shapes}
    worst = max(r["auto_over_best"] for r in results.values())
    what = "attention: time of `auto` / of the fastest implementation, worst shape"
    aims = [harness.aim(what, worst, most=1.1)]
    for shape, found in results.items():
        if "torch" in (times := found["times"]):
            ratio = times[found["auto"]]["median_ms"] / times["torch"]["median_ms"]
            aims.append(harness.aim(f"attention, {shape}: ours / PyTorch", ratio, most=1.0))
    return {"results": results, "aims": aims}


def time_shape(shape: str, dtype: str, settings: Settings) -> dict:
    """All implementations that run here."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from pv_vae_jax.layers.attention import IMPLEMENTATIONS, dot_product_attention

    b, n, heads, d = map(int, shape.split("x"))
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((b, n, heads, d), np.float32) for _ in range(4)]
    given = [jnp.asarray(a, dtype) for a in arrays]

    @partial(jax.jit, static_argnums=4)
    def work(q, k, v, cotangent, implementation):
        attend = partial(dot_product_attention, implementation=implementation)
        y, pull = jax.vjp(attend, q, k, v)
        return y, *pull(cotangent)

    sides, expected = {}, work(*given, "xla")
    auto = work.lower(*given, "auto").as_text()
    for name in IMPLEMENTATIONS:
        if name == "auto":
            continue
        try:
            found = work(*given, name)
        except ValueError:  # cannot run here
            continue
        for a, b_ in zip(expected, found, strict=True):
            difference = float(jnp.abs(a.astype("float32") - b_.astype("float32")).max())
            if not difference <= (1e-4 if dtype == "float32" else 0.1):
                raise RuntimeError(f"{name} differs from xla by {difference:.1e} at {shape}")
        if work.lower(*given, name).as_text() == auto:  # `auto` is this one's very program
            chosen = name
        sides[name] = partial(lambda name: jax.block_until_ready(work(*given, name)), name)
    ours = list(sides)
    if chosen == "xla" and jax.default_backend() == "cpu":  # where it is not JAX's own

        @jax.jit
        def plain(q, k, v, cotangent):
            y, pull = jax.vjp(jax.nn.dot_product_attention, q, k, v)
            return y, *pull(cotangent)

        sides["jax.nn"] = lambda: jax.block_until_ready(plain(*given))
    if settings.against != "none":
        sides["torch"] = torch_side(arrays, dtype)
    times = harness.take_turns(sides, settings.rounds, warmup=2, seconds=settings.seconds)
    best = min(ours, key=lambda name: times[name]["median_ms"])
    lost = times[chosen]["median_ms"] / times[best]["median_ms"]
    return {"dtype": dtype, "times": times, "auto": chosen, "best": best, "auto_over_best": round(lost, 3)}


def torch_side(arrays: list, dtype: str):
    """PyTorch's fused attention, forward and gradients."""
    torch = harness.need("torch")
    device = harness.torch_device()
    put = lambda a: torch.tensor(a, device=device, dtype=getattr(torch, dtype)).transpose(1, 2)  # noqa: E731
    *qkv, cotangent = (put(a) for a in arrays)
    qkv = [a.requires_grad_() for a in qkv]

    def work():
        found = torch.autograd.grad(torch.nn.functional.scaled_dot_product_attention(*qkv), qkv, cotangent)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return found

    return work


def table(results: dict) -> str:
    """A row a shape, milliseconds."""
    ways = list(dict.fromkeys(way for r in results.values() for way in r["times"]))
    rows = [
        (shape, *(f"{r['times'][w]['median_ms']:.3g}" if w in r["times"] else None for w in ways), r["auto"])
        for shape, r in results.items()
    ]
    return harness.markdown(("b x n x heads x d, ms", *ways, "auto"), rows)
