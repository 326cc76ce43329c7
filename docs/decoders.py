"""Two decoders of the same latents side by side: size, operations, time, and PSNR frame by frame.

  python docs/decoders.py TEACHER STUDENT [--clips=64] [--dtype=float32]

TEACHER is a model as `pv_vae_jax.load` takes it, STUDENT the work directory of a run such as that of
`experiments/light_decoder.py`, whose held-out clips are decoded from the teacher's latents by both.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import jax
import numpy as np

from pv_vae_jax import Model, load, to_uint8
from pv_vae_jax.evaluation import score_frames
from pv_vae_jax.report.run_report import read_test_clips
from pv_vae_jax.sharding.hlo import step_flops
from pv_vae_jax.train.run import reopen_run


def describe(model: Model, latents: np.ndarray) -> str:
    """Parameters of the decoder; for one clip, its operations and the time it takes whole and in chunks."""
    one, params = latents[:1], model.vae_params["decoder"]
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    flops = step_flops(jax.make_jaxpr(model.decode)(one).jaxpr)
    took = {}
    for chunk in (None, 1):
        model.decode(one, chunk=chunk).block_until_ready()
        runs = []
        for _ in range(9):
            start = time.perf_counter()
            model.decode(one, chunk=chunk).block_until_ready()
            runs.append(time.perf_counter() - start)
        took[chunk] = float(np.median(runs))
    apart = float(np.abs(model.decode(one) - model.decode(one, chunk=1)).max())
    return (
        f"{count:,} parameters, {flops / 1e9:.3f} GFLOP a clip, {1e3 * took[None]:.1f} ms whole, "
        f"{1e3 * took[1]:.1f} ms a latent frame at a time (which differs by {apart:.0e})"
    )


def by_frame(model: Model, latents: np.ndarray, video: np.ndarray) -> list[float]:
    """PSNR in dB of every frame, averaged over clips."""
    decoded = np.concatenate([to_uint8(model.decode(z[None])) for z in latents])
    return score_frames(video, decoded, 255.0)["psnr"].mean(axis=0).tolist()


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("student")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--dtype", default="float32", help="what both compute in")
    args = parser.parse_args(argv)
    teacher, student = (load(name, dtype=args.dtype) for name in (args.teacher, args.student))
    video, *_ = read_test_clips(reopen_run(args.student), args.clips)
    latents = np.concatenate([np.asarray(teacher.encode(clip[None])) for clip in video])  # (n, g, h, w, z)
    own = np.asarray(student.encode(video[:1]))
    if not np.allclose(own, latents[:1], atol=1e-4):
        raise SystemExit(f"{args.student} encodes otherwise than {args.teacher}: its decoder is not for these latents")
    models = {"teacher": teacher, "student": student}
    for name, model in models.items():
        print(f"{name}: {describe(model, latents)}")
    scores = {name: by_frame(model, latents, video) for name, model in models.items()}
    print("\n| frame | teacher, dB | student, dB | lost |\n|---|---|---|---|")
    rows = [(str(t), *pair) for t, pair in enumerate(zip(*scores.values(), strict=True))]
    for name, *pair in [*rows, ("mean", *(float(np.mean(column)) for column in scores.values()))]:
        print(f"| {name} | {pair[0]:.2f} | {pair[1]:.2f} | {pair[0] - pair[1]:.2f} |")


if __name__ == "__main__":
    main()
