"""Run an experiment on TPUs of a cluster made by xpk: one workload for each run.

  python launch xpk --cluster my-cluster --zone us-west4-a --device-type v5litepod-16 --image IMAGE \\
      --config experiments/paper_vae.py --workdir /mnt/runs/vae --config.data.source=/mnt/runs/clips

Build the image from launch/Dockerfile, and attach the storage of the work directory with `xpk storage attach` first.
For GPUs use `launch gke`, which gives each process its number.
"""

from __future__ import annotations

import re
import shlex
import sys

from experiment import AUTO, Experiment, Run, dns_label, make_parser, parse, submit

LONGEST = 35  # xpk refuses longer workload names


def command(experiment: Experiment, run: Run, args) -> list[str]:
    """`xpk workload create ...` of one run."""
    suffix = f"-{run.index}" if len(experiment.sweep) > 1 else ""
    options = {
        "cluster": args.cluster,
        "zone": args.zone,
        "project": args.project,
        "workload": dns_label(experiment.name, LONGEST - len(suffix)) + suffix,
        "device-type": args.device_type,
        "num-slices": str(args.slices) if args.slices > 1 else None,
        "docker-image": args.image,
        "max-restarts": str(experiment.restarts),
        "command": shlex.join(["python", *run.arguments, AUTO]),
    }
    flags = [f"--{name}={value}" for name, value in options.items() if value]
    # In addition to 42 and 127 to 255, at which xpk restarts a run anyway; 2 is a wrong call.
    flags += ["--restart-on-exit-codes=1"] if experiment.restarts else []
    return ["xpk", "workload", "create", *flags, *(f"--env={k}={v}" for k, v in experiment.environment.items())]


def main(argv: list[str]) -> int:
    parser = make_parser(__doc__, restarts=3)
    parser.add_argument("--cluster", required=True, help="name of the cluster")
    parser.add_argument("--device-type", required=True, help="TPU type, such as v5litepod-16 or v6e-8")
    parser.add_argument("--slices", type=int, default=1, help="number of slices of a run (default 1)")
    parser.add_argument("--image", required=True, help="container image, built from launch/Dockerfile")
    parser.add_argument("--zone", help="zone of the cluster (default: gcloud's)")
    parser.add_argument("--project", help="project of the cluster (default: gcloud's)")
    experiment, args = parse(parser, argv, slices=1)
    if not re.match(r"v\d|tpu", args.device_type):
        parser.error(f"--device-type must be a TPU, got {args.device_type}: use `launch gke --gpu` for GPUs")
    if not args.workdir.startswith(("/", "gs://")):
        parser.error(f"--workdir must be in an attached storage, got {args.workdir}, which is lost with the container")
    lines = [shlex.join(command(experiment, run, args)) for run in experiment.runs()]
    text = "\n".join(["set -eu", *lines, ""])
    if args.dry_run:
        print(text, end="")
        return 0
    return submit(["bash", "-c", text])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
