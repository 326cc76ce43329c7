"""Recomputing in the backward pass: what each policy costs in time and saves in memory, VAE and transformer.

Training steps in turns; memory is what the compiled program asks for beside its arguments.
"""

import dataclasses

from benchmarks import harness


@dataclasses.dataclass(frozen=True)
class Settings:
    """Fields.

    vae: a case of the bench `vae`; empty is larger on CPU and base elsewhere. none leaves the VAE out.
    latte: preset of LatteConfig; empty is S on CPU and XL elsewhere. none leaves the transformer out.
    batch, side: of the transformer's clips, 17 frames; a batch of 0 is 1 on CPU and 16 elsewhere.
    rounds, seconds: of the turns, see `harness.take_turns`.
    """

    vae: str = ""
    latte: str = ""
    batch: int = 0
    side: int = 256
    rounds: int = 5
    seconds: float = 40.0


def run(settings: Settings) -> dict:
    """Time every policy of both networks."""
    import jax

    on_cpu = jax.default_backend() == "cpu"
    vae = settings.vae or ("larger" if on_cpu else "base")
    latte = settings.latte or ("S" if on_cpu else "XL")
    batch = settings.batch or (1 if on_cpu else 16)
    results = {}
    if vae != "none":
        results[f"VAE {vae}"] = time_policies(vae_steps(vae), settings)
    if latte != "none":
        results[f"Latte-{latte}"] = time_policies(latte_steps(latte, batch, settings.side), settings)
    return {"results": results, "aims": []}


def vae_steps(size: str) -> dict:
    """The training step on clips, by what is recomputed: `{name: (step, state, batch)}`."""
    import jax

    from benchmarks import vae

    case = vae.find_case(size)
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    wide = ("encoder/level0", f"decoder/level_{len(vae.network(case, dtype).space_factors)}")  # where pixels are many
    policies = {
        "none": {},
        "remat_levels, widest": {"remat_levels": wide},
        "remat_blocks, widest": {"remat_blocks": wide},
        "remat": {"remat": True},
    }
    return {name: vae.clip_step(case, dtype, **changed) for name, changed in policies.items()}


def latte_steps(size: str, clips: int, side: int) -> dict:
    """The transformer's training step, by policy."""
    import jax
    import jax.numpy as jnp

    from benchmarks.latte import Bench
    from benchmarks.latte import Settings as LatteSettings
    from pv_vae_jax.layers.remat import REMATS

    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    bench = Bench(size, LatteSettings(parts=("train",), batch=clips, side=side, vae="paper", dtype=dtype))
    batch = jax.device_put({"mean": bench.mean, "logvar": bench.logvar, "label": bench.label})
    found = {}
    for policy in REMATS:
        step = bench.our_step(dataclasses.replace(bench.config, remat=policy))
        found[policy] = step, step.create(jax.tree.map(jnp.array, bench.params)), batch
    return found


def time_policies(steps: dict, settings: Settings) -> dict:
    """Times in turns, and memory, by policy; `none` is the measure of both."""
    import jax

    sides, memory = {}, {}
    for name, (step, state, batch) in steps.items():
        program = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
        memory[name] = program.memory_analysis().temp_size_in_bytes
        sides[name] = harness.in_turn(program, state, batch)
    times = harness.take_turns(sides, settings.rounds, seconds=settings.seconds)
    return {
        name: {
            "times": t,
            "temporary_mib": round(memory[name] / 2**20, 1),
            "time_of_none": round(t["median_ms"] / times["none"]["median_ms"], 3),
            "memory_of_none": round(memory[name] / memory["none"], 3),
        }
        for name, t in times.items()
    }


def table(results: dict) -> str:
    """A row a network and policy."""
    kept = ("time_of_none", "temporary_mib", "memory_of_none")
    rows = [
        (network, policy, harness.ms(r["times"]["median_ms"]), *(r[k] for k in kept))
        for network, policies in results.items()
        for policy, r in policies.items()
    ]
    return harness.markdown(("network", "recomputed", "step", "/ none", "temporary MiB", "/ none"), rows)
