"""Run an experiment through xmanager: work units on this machine, or on Vertex AI.

  python launch xm --config experiments/demo.py --workdir runs/ratio --sweep config.seed=0,1,2
  python launch xm --image gcr.io/PROJECT/pv_vae_jax --vertex a100=8 \\
      --config experiments/demo.py --workdir /gcs/BUCKET/runs

Each point of the sweep is a work unit, and all of them run at once. A work unit calls `launch local`, so --restarts and
--processes have the same meaning as there. Build the image from launch/Dockerfile. xmanager is needed, except for
--dry-run; it may be in an environment of its own, without this package, and --python names the one that has it:

  python3 -m venv ~/xm && ~/xm/bin/pip install --upgrade pip && ~/xm/bin/pip install xmanager
  ~/xm/bin/python launch xm --python .venv/bin/python --config experiments/demo.py --workdir runs/ratio
"""

from __future__ import annotations

import asyncio
import os
import posixpath
import re
import sys
from pathlib import Path

from experiment import Experiment, Run, make_parser, parse, shell_line

MISSING = (
    "this back end needs xmanager: pip install '.[xm]', or give it an environment of its own (--help), or use another "
    "back end, such as `python launch local`"
)

# Accelerators for which xmanager 0.8.5 finds a machine of Vertex AI (get_machine_spec), and its names for them. Of
# others it knows the names only: it would ask for an H100 on a machine without one.
VERTEX = {
    "a100": "a100",
    "l4": "l4_24th",
    "v100": "v100",
    "p100": "p100",
    "t4": "t4",
    "tpu_v2": "tpu_v2",
    "tpu_v3": "tpu_v3",
}


def arguments(experiment: Experiment, run: Run, args) -> list[str]:
    """Arguments of the Python interpreter in a work unit."""
    train = run.arguments[run.arguments.index("train") + 1 :]
    launcher = "launch/local.py" if args.vertex else str(Path(__file__).with_name("local.py"))
    own = ["--restarts", str(experiment.restarts), "--processes", str(args.processes)]
    return [launcher, *train, *own]


async def start(experiment: Experiment, args) -> None:
    """Add a work unit for every run, and wait for those on this machine.

    Raises:
      ImportError: xmanager is not installed.
      RuntimeError: a work unit failed.
    """
    try:
        from absl import flags
        from xmanager import xm, xm_local
    except ImportError as error:
        raise ImportError(MISSING) from error

    if not flags.FLAGS.is_parsed():
        flags.FLAGS([sys.argv[0]])  # xmanager reads flags of its own, which keep their defaults
    if args.vertex:
        kind, _, count = args.vertex.partition("=")
        executor = xm_local.Vertex(xm.JobRequirements(**{VERTEX[kind]: int(count)}))
        spec = xm.Container(image_path=args.image)
    else:
        executor, spec = xm_local.Local(), xm.Binary(path=args.python)
    async with xm_local.create_experiment(experiment_title=experiment.name) as units:
        (executable,) = units.package([xm.Packageable(executable_spec=spec, executor_spec=executor.Spec())])
        for run in experiment.runs():
            job = xm.Job(
                executable=executable,
                executor=executor,
                name=experiment.label(run),
                args=arguments(experiment, run, args),
                env_vars=experiment.environment,
            )
            units.add(job)


def main(argv: list[str]) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--vertex", metavar="KIND=COUNT", help="accelerators on Vertex AI, such as a100=8 or tpu_v3=8")
    parser.add_argument("--image", help="container image, with --vertex")
    parser.add_argument("--processes", type=int, default=1, help="processes of every run (default 1)")
    parser.add_argument("--python", help="interpreter with pv_vae_jax, for this machine (default: the one that runs)")
    experiment, args = parse(parser, argv, processes=1)
    if args.vertex and not re.fullmatch(r"[a-z]\w*=[1-9]\d*", args.vertex):
        parser.error(f"--vertex must be KIND=COUNT, got {args.vertex!r}")
    if args.vertex and (kind := args.vertex.partition("=")[0]) not in VERTEX:
        parser.error(f"--vertex must be one of {', '.join(VERTEX)}, got {kind}: use `launch gke` for others")
    if bool(args.vertex) != bool(args.image):
        parser.error("--vertex and --image must be given together")
    if args.vertex and not posixpath.normpath(args.workdir).startswith(("/gcs/", "gs:/")):
        parser.error(f"--workdir must be a bucket's folder, gs://BUCKET/... or /gcs/BUCKET/..., got {args.workdir}")
    if args.vertex and args.python:
        parser.error("--python is for work units on this machine: an image has its own")
    # Not resolved: the interpreter of an environment is a link, and leads out of it. The launcher itself may be such.
    args.python = "python" if args.vertex else os.path.abspath(args.python or sys.executable)
    if not args.vertex and not os.access(args.python, os.X_OK):
        parser.error(f"--python must be an interpreter, got {args.python}: name a file such as .venv/bin/python")
    if args.dry_run:
        where = f"Vertex AI, {args.vertex}, {args.image}" if args.vertex else "this machine"
        for run in experiment.runs():
            line = shell_line(experiment.environment, (args.python, *arguments(experiment, run, args)))
            print(f"# work unit {experiment.label(run)} on {where}\n{line}")
        return 0
    try:
        asyncio.run(start(experiment, args))
    except (ImportError, RuntimeError) as error:
        print(f"launch: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
