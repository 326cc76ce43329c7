"""Run an experiment as a SLURM job; a sweep becomes a job array.

  python launch slurm --config experiments/demo.py --workdir /shared/runs/ratio --nodes 2 --gpus-per-node 8 \\
      --time 24:00:00 --sweep config.seed=0,1,2

One process a GPU, on all nodes; --gpus-per-node 0 is one process a node, on CPUs. Two minutes before the time is up,
SLURM sends SIGTERM, at which the run saves its state, and the job goes back into the queue as often as --restarts says.
The work directory must be on a file system that all nodes share. Options that a cluster wants besides:
--sbatch=--partition=gpu --sbatch=--account=me
"""

from __future__ import annotations

import re
import shlex
import sys

from experiment import COORDINATOR, COUNT, INDEX, WRONG_CALL, Experiment, make_parser, parse, submit

# $SLURM_JOB_ID differs between the tasks of an array, so two jobs on one node rarely meet at a port.
BODY = """\
set -euo pipefail
export SRUN_CPUS_PER_TASK={cpus}  # srun no longer takes it from the job
cd {directory}
case "${{SLURM_ARRAY_TASK_ID:-0}}" in
{cases}
esac
{environment}{together}
status=0
srun --label --kill-on-bad-exit=1 {start} || status=$?
# Another try cannot mend a wrong call.
if ((status != 0 && status != {wrong} && ${{SLURM_RESTART_COUNT:-0}} < {restarts})); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""

TOGETHER = f"""\
coordinator=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
export {COORDINATOR}="$coordinator:$((20000 + SLURM_JOB_ID % 20000))"
export {COUNT}="$SLURM_NTASKS\""""

# Each task knows its number only within srun. JAX reads which of the node's GPUs is its own from the second variable.
START = f'bash -c \'{INDEX}=$SLURM_PROCID JAX_LOCAL_DEVICE_IDS=$SLURM_LOCALID exec "$@"\' bash "${{command[@]}}"'
START_CPU = f'bash -c \'{INDEX}=$SLURM_PROCID exec "$@"\' bash "${{command[@]}}"'


def script(experiment: Experiment, args) -> str:
    """The batch script."""
    runs = experiment.runs()
    tasks = args.gpus_per_node or 1
    options = {
        "job-name": experiment.name,
        "nodes": args.nodes,
        "ntasks-per-node": tasks,
        "gpus-per-node": args.gpus_per_node,
        "cpus-per-task": args.cpus_per_task,
        "time": args.time,
        "output": f"{experiment.name}-%A_%a.log" if len(runs) > 1 else f"{experiment.name}-%j.log",
        "open-mode": "append",
        "signal": "TERM@120",
        "array": f"0-{len(runs) - 1}%{args.parallel}" if len(runs) > 1 else None,
    }
    lines = ["#!/bin/bash", *(f"#SBATCH --{name}={value}" for name, value in options.items() if value)]
    lines += ["#SBATCH --requeue"] if experiment.restarts else ["#SBATCH --no-requeue"]
    lines += [f"#SBATCH {option}" for option in args.sbatch]
    cases = [f"  {run.index}) command=({shlex.join([args.python, *run.arguments])}) ;;" for run in runs]
    together, start = "", '"${command[@]}"'
    if args.nodes * tasks > 1:
        together, start = TOGETHER, START if args.gpus_per_node else START_CPU
    exports = [f"export {name}={shlex.quote(value)}\n" for name, value in experiment.environment.items()]
    body = BODY.format(
        directory=shlex.quote(args.directory) if args.directory else '"$SLURM_SUBMIT_DIR"',
        cases="\n".join(cases),
        environment="".join(exports),
        together=together,
        start=start,
        restarts=experiment.restarts,
        wrong=WRONG_CALL,
        cpus=args.cpus_per_task,
    )
    return "\n".join(lines) + "\n" + body


def main(argv: list[str]) -> int:
    parser = make_parser(__doc__, restarts=3)
    parser.add_argument("--nodes", type=int, default=1, help="of every run (default 1)")
    parser.add_argument("--gpus-per-node", type=int, default=1, help="one process each (default 1); 0: CPUs only")
    parser.add_argument("--cpus-per-task", type=int, default=8, help="cores of every process (default 8)")
    parser.add_argument("--time", default="24:00:00", help="limit of every start (default 24:00:00)")
    parser.add_argument("--parallel", type=int, default=4, help="runs of a sweep side by side (default 4)")
    parser.add_argument("--python", default="python", help="interpreter on the nodes (default python)")
    parser.add_argument("--directory", help="of the clone on the nodes (default: where sbatch is called)")
    parser.add_argument("--sbatch", action="append", default=[], metavar="=--OPTION=VALUE", help="further options")
    experiment, args = parse(parser, argv)
    for name, least in {"nodes": 1, "gpus_per_node": 0, "cpus_per_task": 1, "parallel": 1}.items():
        if getattr(args, name) < least:
            parser.error(f"--{name.replace('_', '-')} is at least {least}")
    if not re.fullmatch(r"(\d+-)?\d+(:\d\d){0,2}", args.time):
        parser.error(f"--time is MINUTES, HH:MM:SS or DAYS-HH:MM:SS, got {args.time!r}")
    if wrong := [option for option in args.sbatch if not re.fullmatch(r"--?[a-zA-Z][\w-]*([= ]\S+)?", option)]:
        parser.error(f"--sbatch takes an option of sbatch, such as --sbatch=--partition=gpu; got {wrong[0]!r}")
    text = script(experiment, args)
    if args.dry_run:
        print(text, end="")
        return 0
    return submit(["sbatch"], text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
