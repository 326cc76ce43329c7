"""The arithmetic that the VAE stages of an experiment will take, counted before a step is run.

  python docs/work.py experiments/paper_vae.py [--config.video.sizes='((17,128),)' ...]

Operations in matrix products and convolutions, as `mfu` counts them: without recomputation, averaged over `k` and over
the steps before and after the GAN begins. Hours are for eight H200 (989 TFLOP/s each in bfloat16) at 40 % of that, a
rate to divide by, not one that was measured.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Sequence

import jax

from pv_vae_jax.dropping import max_dropped
from pv_vae_jax.train.config_files import load_experiment, parse_overrides
from pv_vae_jax.train.configs import VAE_STAGES, Experiment
from pv_vae_jax.train.mfu import model_flops, peak
from pv_vae_jax.train.vae_stage import VAEStage

DEVICES, SHARE = 8, 0.4


def stage_flops(experiment: Experiment, name: str) -> float:
    """Operations of a mean step of VAE stage `name`."""
    stage = VAEStage(experiment, name)
    config, batches, total = stage.config, stage.example_batches(), 0.0
    late = 1 - config.objective.gan_start / config.steps if config.objective.gan else 0.0
    for batch, size in zip(batches, stage.sizes, strict=True):
        groups = experiment.vae.latent_frames(size.frames)
        most = max_dropped(groups, config.drop_ratio_max, config.drop_pattern)
        draws = [None] if config.drop_form == "filled" and most else list(range(most + 1))
        share = size.weight / sum(each.weight for each in stage.sizes) / len(draws)
        for dropped in draws:
            for gan, steps in ((False, 1 - late), (True, late)):
                if steps:
                    step = functools.partial(stage.flops_step, dropped=dropped, gan=gan)
                    total += share * steps * model_flops(step, stage.abstract_state, batch)
    return total


def figure(value: float, decimals: int = 1) -> str:
    """A number with that many decimals; a small one, which they would make 0, with two digits."""
    return f"{value:,.{decimals}f}" if value >= 1 else f"{value:.2g}"


def main(argv: Sequence[str]) -> None:
    """Print a row a stage."""
    paths, overrides = parse_overrides(argv)
    if len(paths) != 1:
        raise SystemExit(__doc__)
    experiment = load_experiment(paths[0], overrides)
    networks = {name: getattr(experiment, name) for name in ("vae", "discriminator")}
    direct = {name: dataclasses.replace(network, lowering="direct") for name, network in networks.items()}
    experiment = dataclasses.replace(experiment, **direct)  # the others count the zeros that they multiply
    rate = DEVICES * SHARE * peak("NVIDIA H200").flops * 3600
    print("| stage | steps | TFLOP a step | EFLOP | hours |\n|---|---|---|---|---|")
    whole = 0.0
    for name in VAE_STAGES:
        if steps := getattr(experiment, name).steps:
            each = stage_flops(experiment, name)
            whole += each * steps
            total = each * steps
            print(
                f"| {name} | {steps:,} | {figure(each / 1e12)} | {figure(total / 1e18)} | {figure(total / rate, 0)} |"
            )
            jax.clear_caches()
    print(f"| all | | | {figure(whole / 1e18)} | {figure(whole / rate, 0)} |")


if __name__ == "__main__":
    main(sys.argv[1:])
