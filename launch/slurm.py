"""Run an experiment as a SLURM job; a sweep becomes a job array.

  python launch slurm --config experiments/paper_vae.py --workdir /shared/runs/seeds --nodes 2 --gpus-per-node 8 \\
      --time 24:00:00 --config.data.source=/shared/clips --sweep config.seed=0,1,2

Starts one process for each GPU on all nodes; with --gpus-per-node 0, one for each node, on CPUs. Two minutes before the
time limit the batch script sends SIGTERM, at which the run saves its state, and requeues the job, up to --restarts
times. The work directory must be on a file system that all nodes share. Pass further options of your cluster with
--sbatch=--partition=gpu --sbatch=--account=me --sbatch='--comment=a b'
"""

from __future__ import annotations

import re
import shlex
import sys

from experiment import COORDINATOR, COUNT, INDEX, WRONG_CALL, Experiment, make_parser, parse, require_config, submit

# $SLURM_JOB_ID differs between the tasks of an array, so two jobs on one node rarely choose the same port.
BODY = """\
set -euo pipefail
export SRUN_CPUS_PER_TASK={cpus}  # srun no longer takes it from the job
cd {directory}
case "${{SLURM_ARRAY_TASK_ID:-0}}" in
{cases}
esac
{environment}{together}
# The number of an array alone would mean all of its tasks.
job=${{SLURM_ARRAY_JOB_ID:+${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID}}
job=${{job:-$SLURM_JOB_ID}}
# SLURM warns this script only. A step that does not react, such as during compilation, is killed here: at the limit
# SLURM would kill this script too, and it could not requeue the job.
warned() {{
  scancel --signal=TERM "$job.0" || true
  for ((second = 0; second < 90; second++)); do
    kill -0 "$step" 2> /dev/null || return 0
    sleep 1
  done
  scancel --signal=KILL "$job.0" || true
}}
status=0
# Bash handles signals while it waits, not while a command runs.
srun --label --kill-on-bad-exit=1 {start} &
step=$!
trap warned USR1  # not TERM, which cancels a job
while kill -0 "$step" 2> /dev/null; do wait "$step" || true; done
wait "$step" || status=$?
# Another try would not fix a wrong call.
if ((status != 0 && status != {wrong} && ${{SLURM_RESTART_COUNT:-0}} < {restarts})); then
  scontrol requeue "$job"
fi
exit "$status"
"""

TOGETHER = f"""\
coordinator=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
export {COORDINATOR}="$coordinator:$((20000 + SLURM_JOB_ID % 20000))"
export {COUNT}="$SLURM_NTASKS\""""

# A task knows its number within srun only. The second variable tells JAX which of the node's GPUs the task owns.
START = f'bash -c \'{INDEX}=$SLURM_PROCID JAX_LOCAL_DEVICE_IDS=$SLURM_LOCALID exec "$@"\' bash "${{command[@]}}"'
START_CPU = f'bash -c \'{INDEX}=$SLURM_PROCID exec "$@"\' bash "${{command[@]}}"'


# Options of sbatch that would break the script.
OURS = {
    "--array": "give the values to --sweep, which makes the array",
    "--signal": "the script waits for the signal it asks for",
    "--wrap": "sbatch is given a script already",
}


def directive(option: str) -> str:
    """An option as sbatch reads it in a script: quoted by `"`, special characters escaped by `\\`.

    Raises:
      ValueError: `option` is not an option, or one that the script sets itself.
    """
    found = re.fullmatch(r"(--?[a-zA-Z][\w-]*)(?:([= ])(.+))?", option)
    if not found:
        raise ValueError(f"--sbatch must be an option of sbatch, such as --sbatch=--partition=gpu; got {option!r}")
    name, between, value = found.groups(default="")
    if why := OURS.get("--array" if re.match("-a", name) else name):
        raise ValueError(f"--sbatch={option} breaks the script: {why}")
    if not re.fullmatch(r"[\w.,:/%=@+-]*", value):
        value = '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'
    return name + between + value


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
        "signal": "B:USR1@120",
        "array": f"0-{len(runs) - 1}%{args.parallel}" if len(runs) > 1 else None,
    }
    lines = ["#!/bin/bash", *(f"#SBATCH --{name}={value}" for name, value in options.items() if value)]
    lines += ["#SBATCH --requeue"] if experiment.restarts else ["#SBATCH --no-requeue"]
    lines += [f"#SBATCH {directive(option)}" for option in args.sbatch]
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
    parser.add_argument("--nodes", type=int, default=1, help="nodes of every run (default 1)")
    parser.add_argument("--gpus-per-node", type=int, default=1, help="one process each (default 1); 0 for CPUs only")
    parser.add_argument("--cpus-per-task", type=int, default=8, help="cores of every process (default 8)")
    parser.add_argument("--time", default="24:00:00", help="time limit of every start (default 24:00:00)")
    parser.add_argument("--parallel", type=int, default=4, help="runs of a sweep in parallel (default 4)")
    parser.add_argument("--python", default="python", help="interpreter on the nodes (default python)")
    parser.add_argument("--directory", help="folder of the clone on the nodes (default: where sbatch is called)")
    parser.add_argument("--sbatch", action="append", default=[], metavar="=--OPTION=VALUE", help="further options")
    experiment, args = parse(parser, argv, nodes=1, gpus_per_node=0, cpus_per_task=1, parallel=1)
    if not re.fullmatch(r"(\d+-)?\d+(:\d\d){0,2}", args.time):
        parser.error(f"--time must be MINUTES, HH:MM:SS or DAYS-HH:MM:SS, got {args.time!r}")
    if not args.directory:  # which may exist on the nodes only
        require_config(parser, experiment)
    try:
        text = script(experiment, args)
    except ValueError as error:
        parser.error(str(error))
    if args.dry_run:
        print(text, end="")
        return 0
    return submit(["sbatch"], text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
