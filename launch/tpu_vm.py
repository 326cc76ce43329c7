"""Run an experiment on all workers of a Cloud TPU VM, over ssh.

  python launch tpu_vm --tpu my-v5e-16 --zone us-west4-a --config experiments/paper_vae.py --workdir /mnt/runs/vae \\
      --config.data.source=/mnt/clips

Copies the checked-out commit to every worker, installs it into an environment of its own, and starts one process on
each worker; JAX lets them find each other. With --slices, --tpu names a queued resource of that many nodes. Points of a
sweep run one after the other. With several workers the work directory must be on a file system that all of them mount.
Ctrl-C ends ssh but not the workers; to end those, run
gcloud compute tpus tpu-vm ssh my-v5e-16 --zone=us-west4-a --worker=all --command='pkill -TERM -f pv_vae_jax'
"""

from __future__ import annotations

import shlex
import sys
from pathlib import PurePosixPath

from experiment import AUTO, WRONG_CALL, Experiment, make_parser, parse, require_config, shell_line, submit

# The images of TPU VMs have an older Python than this needs; uv installs another.
SETUP = (
    "mkdir -p {folder} && tar -xzf {folder}.tar.gz -C {folder} && cd {folder}"
    " && python3 -m pip install --user --quiet uv"
    " && python3 -m uv venv --quiet --allow-existing --python {python} .venv"
    " && python3 -m uv pip install --quiet --python .venv/bin/python -e '.[{extras}]'"
)

SCRIPT = """\
set -euo pipefail
on_all_workers() {{ gcloud compute tpus {service} ssh {where} {all} --command="$1"; }}

# Only committed files are copied, so that the run can be repeated from its commit.
archive=$(mktemp -d)/{folder}.tar.gz
git archive --format=tar.gz --output="$archive" HEAD
gcloud compute tpus {service} scp "$archive" {target}:{folder}.tar.gz {place} {all}
on_all_workers {setup}

train() {{
  local status=0 start
  for ((start = 0; start <= {restarts}; start++)); do
    if ((start)); then echo "restart $start of {restarts} from the newest checkpoint" >&2; fi
    status=0
    on_all_workers "$1" || status=$?
    if ((status == 0 || status == {wrong})); then break; fi
  done
  return "$status"
}}
{runs}
"""


def script(experiment: Experiment, args) -> str:
    """The shell script that does all of this from the local machine."""
    folder = experiment.name
    place = shlex.join([f"--zone={args.zone}", *([f"--project={args.project}"] if args.project else [])])
    target = shlex.quote(args.tpu)
    runs = []
    for run in experiment.runs():
        command = shell_line(experiment.environment, (".venv/bin/python", *run.arguments, AUTO))
        runs.append(f"train {shlex.quote(f'cd {folder} && {command}')}")
    setup = SETUP.format(folder=folder, python=args.python, extras=args.extras)
    return SCRIPT.format(
        service="queued-resources" if args.slices > 1 else "tpu-vm",
        all="--worker=all --node=all" if args.slices > 1 else "--worker=all",
        where=f"{target} {place}",
        target=target,
        place=place,
        folder=folder,
        setup=shlex.quote(setup),
        restarts=experiment.restarts,
        wrong=WRONG_CALL,
        runs="\n".join(runs),
    )


def main(argv: list[str]) -> int:
    parser = make_parser(__doc__, restarts=3)
    parser.add_argument("--tpu", required=True, help="name of the TPU VM or queued resource, or user@name")
    parser.add_argument("--slices", type=int, default=1, help="number of nodes of the queued resource (default 1)")
    parser.add_argument("--zone", required=True, help="zone of the TPU VM")
    parser.add_argument("--project", help="project of the TPU VM (default: gcloud's)")
    parser.add_argument("--python", default="3.12", help="Python version to install there (default 3.12)")
    parser.add_argument("--extras", default="tpu,video,gcs", help="extras to install (default tpu,video,gcs)")
    experiment, args = parse(parser, argv, slices=1)
    if not PurePosixPath(experiment.config).is_absolute():  # a file of this clone, which is copied
        require_config(parser, experiment)
    text = script(experiment, args)
    if args.dry_run:
        print(text, end="")
        return 0
    return submit(["bash", "-c", text])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
