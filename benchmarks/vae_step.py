"""Time of one whole VAE training step on CPU: ours, ours with direct 3-D convolutions, and eager PyTorch.

    python benchmarks/vae_step.py [--case demo] [--rounds 15] [--threads 2]

All run in one process, on the same cores, in turns (A B C A B C ...), from the same parameters: their outputs are
compared before anything is timed. A step is the predictive pass (filled form, one `k` per example), pixel, motion and
KL terms, backward pass, gradient clipping, AdamW and EMA. PyTorch runs in both of its memory layouts.
The ratio is ours / PyTorch of medians; the aim is at most 0.8 against the faster layout. Results go to
`benchmarks/results/vae_step_cpu.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # runs from a clone, installed or not

AIM = 0.8


@dataclasses.dataclass(frozen=True)
class Case:
    """A network and its batch: `batch` clips of `frames` frames of `side` pixels."""

    model: dict
    batch: int
    frames: int
    side: int


CASES = {
    # The network and batch of `make demo`.
    "demo": Case(
        dict(
            patch=4,
            latent_channels=64,
            time_factors=(2, 2),
            space_factors=(2, 1),
            encoder_widths=(48, 48, 48),
            decoder_widths=(48, 48, 64),
            encoder_blocks=1,
            decoder_blocks=1,
        ),
        batch=8,
        frames=17,
        side=32,
    ),
    # No patches, one level more: convolutions at full resolution.
    "larger": Case(
        dict(
            patch=1,
            latent_channels=16,
            time_factors=(2, 2, 1),
            space_factors=(2, 2, 2),
            encoder_widths=(32, 64, 128, 128),
            decoder_widths=(32, 64, 128, 128),
            encoder_blocks=1,
            decoder_blocks=1,
        ),
        batch=1,
        frames=17,
        side=64,
    ),
}


def pin(threads: int) -> None:
    """Keep this process on `threads` cores. XLA sizes its thread pool by them, so this comes before importing jax."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < threads:
        sys.exit(f"{threads} threads asked for, {len(cores)} cores allowed: give --threads {len(cores)}")
    os.sched_setaffinity(0, cores[:threads])
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")


def make_steps(case: Case, threads: int) -> tuple[dict[str, Callable[[], None]], dict]:
    """Runnable steps by name, and facts about the case. Raises AssertionError where the networks disagree."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import torch
    from torch_vae import TorchStep

    from pv_vae_jax.losses.objective import Objective
    from pv_vae_jax.models.vae import VAE, VAEConfig
    from pv_vae_jax.pixels import to_float
    from pv_vae_jax.predictive import predict_filled
    from pv_vae_jax.train.optim import OptimizerConfig, optimizer
    from pv_vae_jax.train.vae_step import VAEStep

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = VAEConfig(**case.model)
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (case.batch, case.frames, case.side, case.side, 3), dtype=np.uint8)
    dropped = np.arange(case.batch, dtype=np.int32) % config.latent_frames(case.frames)
    # Drawn by hand: the zero-initialised convolutions of a fresh network would hide differences.
    shapes = jax.eval_shape(VAE(config).init, jax.random.key(0), jnp.zeros(video.shape))["params"]
    host = jax.tree.map(
        lambda p: rng.standard_normal(p.shape, np.float32) / max(1, np.prod(p.shape[:-1])) ** 0.5, shapes
    )

    rate, kl, ema = 1e-4, 1e-5, 0.999
    batch = {"video": jnp.asarray(video), "dropped": jnp.asarray(dropped)}
    torch_batch = torch.from_numpy(video), torch.from_numpy(dropped)

    def jax_step(lowering: str) -> Callable[[], None]:
        model = VAE(dataclasses.replace(config, lowering=lowering))
        transform = optimizer(OptimizerConfig(learning_rate=rate, warmup_steps=0, clip_norm=1.0), steps=1_000_000)
        step = VAEStep(model, Objective(kl=kl), transform, ema_decay=ema)
        run = jax.jit(step, static_argnames=("dropped", "gan"), donate_argnums=0)
        held = [step.create(jax.tree.map(jnp.array, host))]

        def once() -> None:
            held[0], logs = run(held[0], batch, dropped=None)
            float(logs["loss"])  # waits for the result, as `loss.item()` does

        return once

    def torch_step(layout: torch.memory_format) -> TorchStep:
        return TorchStep(host, config, layout, rate, kl, ema)

    def forward(params: dict) -> jax.Array:
        model = VAE(config)
        prediction = predict_filled(model, params, to_float(batch["video"]), batch["dropped"], None)
        return model.apply({"params": params}, prediction.features, method="to_pixels")

    steps: dict[str, Callable[[], None]] = {"ours": jax_step("auto"), "ours, direct conv3d": jax_step("direct")}
    expected = np.asarray(jax.jit(forward)(host))
    for name, layout in (("contiguous", torch.contiguous_format), ("channels last", torch.channels_last_3d)):
        step = torch_step(layout)
        with torch.no_grad():
            output = step.model(step.to_float(torch_batch[0]), torch_batch[1], sample=False)[0]
        difference = float(np.abs(output.permute(0, 2, 3, 4, 1).numpy() - expected).max())
        assert difference < 1e-4, f"PyTorch ({name}) and JAX outputs differ by {difference:.1e}"
        steps[f"torch, {name}"] = lambda step=step: step(*torch_batch)
    facts = {
        "parameters": sum(p.size for p in jax.tree.leaves(host)),
        "clips": list(video.shape),
        "model": dataclasses.asdict(config),
        "output_difference": difference,
    }
    return steps, facts


def milliseconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def time_case(name: str, rounds: int, threads: int) -> dict:
    """Run one case and print its table."""
    steps, facts = make_steps(CASES[name], threads)
    first = {key: round(milliseconds(run), 1) for key, run in steps.items()}  # tracing and compilation
    for run in steps.values():
        run()
    times: dict[str, list[float]] = {key: [] for key in steps}
    for _ in range(rounds):
        for key, taken in times.items():
            taken.append(milliseconds(steps[key]))
    median = {key: round(statistics.median(taken), 1) for key, taken in times.items()}
    ratio = {key: round(median["ours"] / value, 3) for key, value in median.items() if key.startswith("torch")}
    print(f"\n{name}: {facts['parameters']:,} parameters, clips {facts['clips']}")
    for key, value in median.items():
        against = f"ours takes {ratio[key]:.2f} of it" if key in ratio else ""
        spread = f"({min(times[key]):.0f} to {max(times[key]):.0f})"
        print(f"  {key:<21} {value:8.1f} ms {spread:<16} first {first[key] / 1e3:5.1f} s  {against}")
    return facts | {
        "median_ms": median,
        "ratio_of_ours": ratio,
        "first_call_ms": first,
        "rounds": rounds,
        "meets_aim": max(ratio.values()) <= AIM,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=sorted(CASES), action="append", help="default: all of them")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "vae_step_cpu.json")
    args = parser.parse_args()
    pin(args.threads)

    import jax
    import torch

    versions = {"jax": jax.__version__, "torch": torch.__version__, "python": platform.python_version()}
    results = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions,
        "threads": args.threads,
        "load_before": round(os.getloadavg()[0], 2),
        "cases": {name: time_case(name, args.rounds, args.threads) for name in args.case or CASES},
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    partial = args.out.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(partial, args.out)
    missed = [name for name, case in results["cases"].items() if not case["meets_aim"]]
    print(f"\nwritten to {args.out}; aim of {AIM} x torch " + (f"missed by {', '.join(missed)}" if missed else "met"))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
