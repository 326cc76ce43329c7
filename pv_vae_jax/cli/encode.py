"""Cache the latents of the training clips for diffusion training, in `WORKDIR/latents`.

pv-vae encode --workdir runs/demo
"""

from absl import flags

from pv_vae_jax.train.latents_stage import encode_latents, open_latents
from pv_vae_jax.train.run import reopen_run


def define_flags(values: flags.FlagValues) -> None:
    """Flags of `pv-vae encode`."""
    flags.DEFINE_string("workdir", None, "work directory of a run with a finished VAE stage", flag_values=values)
    flags.mark_flag_as_required("workdir", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Encode the clips, or continue encoding."""
    run = reopen_run(values.workdir)
    stage = run.last_vae_stage()
    if run.finished("latents"):
        print(f"{run.folder('latents')} is finished: nothing is encoded again unless files of it are missing or short")
    with run.lock("latents"):
        encode_latents(run, stage)
    cache = open_latents(run, stage)
    mean, std = cache.statistics
    latents = run.experiment.latents
    what = "statistics for online encoding" if latents.online else f"{latents.clips} posteriors"
    print(f"{run.folder('latents')}: {what} of {', '.join(cache.class_names)}")
    print(f"channel means {mean.min():.3f} to {mean.max():.3f}, standard deviations {std.min():.3f} to {std.max():.3f}")
