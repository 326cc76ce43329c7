"""Whose video latents are easiest to generate? A protocol that a VAE of any framework can enter.

  python -m studies.arena clips OUT                       # the clips to encode, the same for everyone
  python -m studies.arena train ENTRY --clips=OUT         # ENTRY/latents.npz -> ENTRY/sampled-SEED.npz
  python -m studies.arena score ENTRY --clips=OUT         # with ENTRY/generated-SEED.npz and reconstructed.npz
  python -m studies.arena enter baseline --clips=OUT --out=ENTRY   # all steps for a VAE of this repository
  python -m studies.arena page                            # write docs/arena.md again from the stored entries

docs/arena.md says what each file holds.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from pv_vae_jax.storage import check_address
from pv_vae_jax.typing import ConfigError
from studies.arena.protocol import TRACKS, WORLD, load_latents, read_clips, write_clips

# Step -> its flags; others are refused.
FLAGS = {
    "clips": ("data", "frames", "size", "train", "test"),
    "train": ("clips", "track", "rotate"),
    "score": ("clips", "track", "name"),
    "enter": ("clips", "track", "out", "vaes"),
    "page": (),
}


def define_flags(values: flags.FlagValues) -> None:
    """Flags of `python -m studies.arena`."""
    flags.DEFINE_string("clips", None, "folder that `clips` wrote", flag_values=values)
    flags.DEFINE_enum("track", "cpu", list(TRACKS), "size of the transformer and its schedule", flag_values=values)
    flags.DEFINE_string("out", None, "with `enter`: folder of the entry", flag_values=values)
    flags.DEFINE_string(
        "vaes", None, "with `enter`: work directory of the motion study, for its VAEs", flag_values=values
    )
    flags.DEFINE_string("name", "", "with `score`: how the page calls the entry", flag_values=values)
    flags.DEFINE_bool("rotate", False, "with `train`: the negative control, rotated latents", flag_values=values)
    flags.DEFINE_string("data", WORLD, "with `clips`: the world, or a folder of videos", flag_values=values)
    flags.DEFINE_integer("frames", 17, "with `clips`: frames of a clip", lower_bound=2, flag_values=values)
    flags.DEFINE_integer("size", 24, "with `clips`: pixels of a side", lower_bound=8, flag_values=values)
    flags.DEFINE_integer("train", 4_096, "with `clips`: clips to train on", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("test", 512, "with `clips`: held-out clips", lower_bound=2, flag_values=values)


def run(values: flags.FlagValues, positional: Sequence[str], overrides: dict[str, str]) -> None:
    """Take one step."""
    step, *rest = positional or [""]
    if step not in FLAGS or len(rest) != (step != "page"):
        raise ConfigError("name a step: clips OUT, train ENTRY, score ENTRY, enter NAME, or page; see --help")
    every = {name for names in FLAGS.values() for name in names}
    if unused := [f"--{name}" for name in sorted(every - set(FLAGS[step])) if values[name].present]:
        raise ConfigError(f"`{step}` takes no {unused[0]}: its flags are {', '.join(FLAGS[step]) or 'none'}")
    for name in ("clips", "out", "vaes"):
        if values[name].value is not None:
            check_address(f"--{name}", values[name].value)
    if overrides and step != "enter":
        raise ConfigError("--config settings are for `enter`: the protocol is the same for all")
    if step == "page":
        from studies.arena.page import write_page

        print(write_page())
        return
    if step == "clips":
        sizes = {name: values[name].value for name in ("frames", "size", "train", "test")}
        clips = write_clips(Path(rest[0]), values.data, **sizes)
        print(f"{len(clips.video)} clips {clips.video.shape[1:]}, hash {clips.manifest['hash']}: {rest[0]}/clips.npz")
        return
    if not values.clips:
        raise ConfigError("set --clips to the folder that `clips` wrote")
    clips = read_clips(Path(values.clips))
    if step == "train":
        from studies.arena.training import train

        shape = " x ".join(map(str, load_latents(Path(rest[0]) / "latents.npz", clips)["mean"].shape[1:]))
        print(f"latents of a clip: {shape} (g, h, w, z)")
        for path in train(Path(rest[0]) / "latents.npz", clips, values.track, values.rotate):
            print(f"{path}: decode its `latents` to `video` in {path.name.replace('sampled', 'generated')} beside it")
        return
    if step == "score":
        from studies.arena.scoring import score

        report(score(Path(rest[0]), clips, values.track, values.name))
        return
    if not values.out:
        raise ConfigError("set --out to a folder for the entry")
    from studies.arena.entries import CODES, enter
    from studies.motion.plan import load_study

    if rest[0] in CODES and (values.vaes or overrides):
        raise ConfigError(f"{rest[0]} has no VAE: leave out --vaes and --config settings")
    study = load_study("study_motion", overrides, tiny=values.track == "tiny")
    vaes = Path(values.vaes) if values.vaes else None
    report(enter(rest[0], Path(values.out), clips, values.track, study, vaes))


def report(tree: dict) -> None:
    """Print the scores that the page shows."""
    psnr = f"PSNR {tree['reconstruction']['psnr']['mean']:.2f} dB"
    kept = tree.get("kept")
    laws = f"laws kept {kept['mean']:.3f} ({kept['low']:.3f} to {kept['high']:.3f}), " if kept else ""
    print(f"{tree['name']}: {laws}{psnr}, skill in latent space {tree['skill']['mean']:.2f}")


if __name__ == "__main__":
    from pv_vae_jax.cli.main import run_module

    run_module("python -m studies.arena")
