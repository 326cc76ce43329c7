"""From start to the first step: tracing, compiling, and what the compilation cache saves a second start.

Each start is a process of its own: once with an empty cache, once with what the first left there. Then, how many
programs a stage compiles: one for each `k` of the truncated form, one for the filled; twice that where the GAN starts
within the stage.
"""

import dataclasses
import tempfile
import time

from benchmarks import harness

KINDS = ("VAE demo", "VAE tiny", "VAE larger", "VAE base", "VAE paper", "Latte-S", "Latte-XL")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Fields.

    steps: whose training step, of KINDS; empty is those that take less than a minute on CPU.
    """

    steps: tuple[str, ...] = ("VAE demo", "VAE tiny", "VAE larger", "Latte-S")


def run(settings: Settings) -> dict:
    """Start every step twice."""
    starts = {}
    for kind in harness.names(settings.steps, KINDS, "step"):
        with tempfile.TemporaryDirectory() as folder:
            cold = harness.in_process("compile", "first_step", kind, env={"PV_VAE_CACHE": folder})
            warm = harness.in_process("compile", "first_step", kind, env={"PV_VAE_CACHE": folder})
        starts[kind] = {"cold": cold, "warm": warm, "warm_over_cold": round(warm["total_s"] / cold["total_s"], 3)}
        print(f"{kind}: {cold['total_s']} s, again {warm['total_s']} s", flush=True)
    worst = max(s["warm"]["compile_s"] / s["cold"]["compile_s"] for s in starts.values())
    aims = [harness.aim("compiling with a filled cache / with an empty one, worst step", worst, most=0.5)]
    return {"results": {"starts": starts, "programs": programs_of_the_demo()}, "aims": aims}


def first_step(kind: str) -> dict:
    """Seconds of the parts of a start in this process, and how many programs XLA built or read."""
    begin = time.perf_counter()
    import jax
    import jax.monitoring
    import numpy as np

    from pv_vae_jax.cli.main import enable_compilation_cache

    enable_compilation_cache()
    built, read = [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: built.append(seconds) if event.endswith("backend_compile_duration") else None
    )
    jax.monitoring.register_event_listener(
        lambda event, **_: read.append(event) if event.endswith("compilation_cache/cache_hits") else None
    )
    step, state, batch = a_step(kind)
    jax.block_until_ready(state)
    ready = time.perf_counter()
    traced = jax.jit(step, donate_argnums=0).trace(state, batch)
    after_trace = time.perf_counter()
    program = traced.lower().compile()
    compiled = time.perf_counter()
    _, logs = program(state, batch)
    loss = float(logs["loss"])
    end = time.perf_counter()
    if not np.isfinite(loss):
        raise RuntimeError(f"the first step of {kind} has loss {loss}")
    parts = {"prepare_s": ready - begin, "trace_s": after_trace - ready, "compile_s": compiled - after_trace}
    parts |= {"run_s": end - compiled, "total_s": end - begin}
    return {k: round(v, 2) for k, v in parts.items()} | {"programs": len(built), "read_from_cache": len(read)}


def a_step(kind: str):
    """`(step, state, batch)` of a training step, in float32 on one clip."""
    from benchmarks import latte, vae

    if kind.startswith("Latte-"):
        return latte.cached_step(kind.removeprefix("Latte-"), 1, "float32")
    return vae.clip_step(dataclasses.replace(vae.CPU_CASES[kind.removeprefix("VAE ")], batch=1), "float32")


def programs_of_the_demo() -> dict:
    """Programs that each stage of `experiments/demo.py` compiles, as it is and with the other form of dropping."""
    from pv_vae_jax.train.config_files import load_experiment
    from pv_vae_jax.train.configs import VAE_STAGES

    found = {}
    for form in ("filled", "truncated"):
        changed = {"video.drop_form": form, "video.drop_per_example": str(form == "filled")}
        experiment = load_experiment(harness.HERE.parent / "experiments" / "demo.py", changed)
        found[form] = {stage: programs(experiment, stage) for stage in VAE_STAGES} | {"diffusion": 1}
    return found


def programs(experiment, stage: str) -> int:
    """Step programs that a VAE stage compiles."""
    from pv_vae_jax.dropping import max_dropped

    chosen = getattr(experiment, stage)
    frames = 1 if chosen.images else experiment.data.frames
    most = max_dropped(experiment.vae.latent_frames(frames), chosen.drop_ratio)
    forms = 1 if chosen.drop_form == "filled" else 1 + most
    switches = bool(chosen.objective.gan) and 0 < chosen.objective.gan_start < chosen.steps
    return forms * (2 if switches else 1)


def table(results: dict) -> str:
    """A row a start; then programs a stage."""
    rows = []
    for kind, starts in results["starts"].items():
        for name in ("cold", "warm"):
            r = starts[name]
            cache = "empty" if name == "cold" else "filled"
            seconds = (r[f"{part}_s"] for part in ("prepare", "trace", "compile", "run", "total"))
            rows.append((kind, cache, *seconds, r["programs"], r["read_from_cache"]))
    head = ("step", "cache", "prepare, s", "trace", "compile", "run", "together", "programs", "read from the cache")
    stages = list(results["programs"]["filled"])
    listed = harness.markdown(
        ("step programs a stage of the demo", *stages),
        [(form, *(counts[stage] for stage in stages)) for form, counts in results["programs"].items()],
    )
    return f"{harness.markdown(head, rows)}\n\n{listed}"
