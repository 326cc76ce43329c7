"""Run an experiment on Google Kubernetes Engine: one JobSet for each run, on TPU slices or nodes with GPUs.

  python launch gke --image REGION-docker.pkg.dev/PROJECT/REPO/pv_vae_jax --tpu v5e --topology 4x4 \\
      --claim runs:/mnt/runs --config experiments/paper_vae.py --workdir /mnt/runs/vae \\
      --config.data.source=/mnt/runs/clips --dry-run
  python launch gke --image IMAGE --gpu nvidia-h100-80gb --nodes 2 --gpus-per-node 8 --claim runs:/mnt/runs ...

Build the image from launch/Dockerfile. --claim mounts a volume that all pods can write to (ReadWriteMany); the work
directory must be in it or in a bucket, gs://BUCKET/FOLDER, or results are lost with the pods. If a pod fails, all pods
of the run are restarted from the newest checkpoint, up to --restarts times. With --slices a run has several slices of
TPUs. The cluster needs the JobSet controller. --dry-run prints the manifests that `kubectl apply` would be given.
"""

from __future__ import annotations

import json
import math
import posixpath
import re
import sys

from experiment import AUTO, COORDINATOR, COUNT, INDEX, WRONG_CALL, Experiment, Run, make_parser, parse, submit

# Kind -> node label, and dimensions of its topologies.
TPUS = {
    "v4": ("tpu-v4-podslice", 3),
    "v5e": ("tpu-v5-lite-podslice", 2),
    "v5p": ("tpu-v5p-slice", 3),
    "v6e": ("tpu-v6e-slice", 2),
}
CHIPS = 4  # of a host, a square of 2 x 2, unless the topology is smaller
PORT = 12_355  # of process 0; any port that the image does not use


def unfit(kind: str, topology: str, chips_per_host: int | None) -> str:
    """Why no slice of this kind of TPU has this topology; "" if one can."""
    axes = TPUS[kind][1]
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)" + f"{{{axes - 1}}}", topology):
        return f"--tpu {kind} needs --topology with {axes} numbers, such as {'x'.join('4' * axes)}; got {topology!r}"
    sides = [int(side) for side in topology.split("x")]
    if topology != "1x1" and (sides[0] % 2 or sides[1] % 2):
        return f"--topology {topology}: hosts of {kind} have 2 x 2 chips, so its first two numbers must be even"
    if math.prod(sides) % (chips_per_host or 1):
        return f"--chips-per-host must divide the number of chips of {topology}, got {chips_per_host}"
    return ""


def jobset(experiment: Experiment, run: Run, args) -> dict:
    """The manifest of one run.

    On TPUs Kubernetes numbers the pods of a slice, and JAX asks for it. On GPUs the variables set here number them.
    """
    name = experiment.label(run)
    environment = [{"name": key, "value": value} for key, value in experiment.environment.items()]
    if args.tpu:
        label, _ = TPUS[args.tpu]
        chips = math.prod(map(int, args.topology.split("x")))
        devices = args.chips_per_host or min(CHIPS, chips)
        hosts, resource = chips // devices, "google.com/tpu"
        selector = {"cloud.google.com/gke-tpu-accelerator": label, "cloud.google.com/gke-tpu-topology": args.topology}
    else:
        hosts, devices, resource = args.nodes or 1, args.gpus_per_node or 8, "nvidia.com/gpu"
        selector = {"cloud.google.com/gke-accelerator": args.gpu}
        if hosts > 1:
            index = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
            # A pod's name in the network is JOBSET-JOB-REPLICA-POD.JOBSET
            environment += [
                {"name": COORDINATOR, "value": f"{name}-workers-0-0.{name}:{PORT}"},
                {"name": COUNT, "value": str(hosts)},
                {"name": INDEX, "valueFrom": index},
            ]
    # 64 MiB of shared memory otherwise: too little for NCCL and loaders.
    volumes = [{"name": "memory", "emptyDir": {"medium": "Memory"}}]
    mounts = [{"name": "memory", "mountPath": "/dev/shm"}]
    if args.claim:
        claim, _, mount = args.claim.partition(":")
        volumes.insert(0, {"name": "runs", "persistentVolumeClaim": {"claimName": claim}})
        mounts.insert(0, {"name": "runs", "mountPath": mount})
    container = {
        "name": "train",
        "image": args.image,
        "command": ["python", *run.arguments, *([AUTO] if args.tpu and hosts * args.slices > 1 else [])],
        "env": environment,
        "resources": {"limits": {resource: devices}},
        "volumeMounts": mounts,
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 120,
        "nodeSelector": selector,
        "containers": [container],
        "volumes": volumes,
    }
    if not environment:
        del container["env"]
    metadata = {"name": name, "labels": {"app": "pv-vae", "experiment": experiment.name}}
    metadata["annotations"] = {"pv-vae/run": run.name or experiment.name}
    if args.tpu:
        # A slice is a node pool, which two runs must not share.
        metadata["annotations"]["alpha.jobset.sigs.k8s.io/exclusive-topology"] = "cloud.google.com/gke-nodepool"
    job = {"parallelism": hosts, "completions": hosts, "completionMode": "Indexed", "backoffLimit": 0}
    wrong = {"containerName": container["name"], "operator": "In", "values": [WRONG_CALL]}
    job["podFailurePolicy"] = {"rules": [{"action": "FailJob", "onExitCodes": wrong}]}
    # A replica is a slice; Kubernetes tells TPUs which they are of how many.
    workers = {"name": "workers", "replicas": args.slices, "template": {"spec": {**job, "template": {"spec": pod}}}}
    rule = {"name": "wrong_call", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    spec = {"failurePolicy": {"maxRestarts": experiment.restarts, "rules": [rule]}, "replicatedJobs": [workers]}
    return {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": metadata, "spec": spec}


def to_yaml(value, indent: str = "") -> str:
    """Block-style YAML of dicts, lists, text and numbers, ending in a line break; neither dict nor list is empty."""
    if isinstance(value, dict):
        lines = []
        for key, inner in value.items():
            key = key if re.fullmatch(r"[A-Za-z][\w./-]*", key) else json.dumps(key)
            nested = isinstance(inner, (dict, list))
            lines.append(
                f"{indent}{key}:" + ("\n" + to_yaml(inner, indent + "  ") if nested else f" {_scalar(inner)}\n")
            )
        return "".join(lines)
    lines = []
    for inner in value:
        text = to_yaml(inner, indent + "  ") if isinstance(inner, (dict, list)) else f"{indent}  {_scalar(inner)}\n"
        lines.append(f"{indent}- {text[len(indent) + 2 :]}")
    return "".join(lines)


def _scalar(value: str | int) -> str:
    return json.dumps(value)  # a JSON scalar is a YAML scalar


def main(argv: list[str]) -> int:
    parser = make_parser(__doc__, restarts=3)
    parser.add_argument("--image", required=True, help="container image, built from launch/Dockerfile")
    parser.add_argument("--claim", metavar="NAME:/PATH", help="persistent volume claim and mount")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--tpu", choices=TPUS, help="kind of TPU")
    kind.add_argument("--gpu", help="label of the GPU, such as nvidia-h100-80gb")
    parser.add_argument("--topology", help="topology of the slice, such as 4x4 or 2x2x2; with --tpu")
    parser.add_argument("--slices", type=int, default=1, help="number of slices of a run; with --tpu (default 1)")
    parser.add_argument("--chips-per-host", type=int, help="with --tpu (default 4, or all of a smaller slice)")
    parser.add_argument("--nodes", type=int, help="number of nodes; with --gpu (default 1)")
    parser.add_argument("--gpus-per-node", type=int, help="GPUs of a node; with --gpu (default 8)")
    parser.add_argument("--namespace", default="default", help="namespace in the cluster (default: default)")
    experiment, args = parse(parser, argv, nodes=1, gpus_per_node=1, chips_per_host=1, slices=1)
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", args.namespace):
        parser.error(f"--namespace must consist of lower case, digits and dashes, got {args.namespace!r}")
    claim = re.fullmatch(r"[a-z0-9][a-z0-9.-]*:(/\S+)", args.claim or "")
    if args.claim and not claim:
        parser.error(f"--claim must be NAME:/PATH, got {args.claim!r}")
    inside = f"{posixpath.normpath(args.workdir)}/"
    if not args.workdir.startswith("gs://") and not (claim and inside.startswith(claim[1].rstrip("/") + "/")):
        where = claim[1] if claim else "the volume of a --claim or at gs://BUCKET/FOLDER"
        parser.error(f"--workdir must be in {where}, got {args.workdir}, which is lost with the pods")
    other = ("nodes", "gpus_per_node") if args.tpu else ("topology", "chips_per_host")
    if stray := [f"--{name.replace('_', '-')}" for name in other if getattr(args, name) is not None]:
        parser.error(f"{stray[0]} needs {'--gpu' if args.tpu else '--tpu'}: remove it")
    if args.gpu and args.slices > 1:
        parser.error("--slices needs --tpu: --nodes is the number of nodes with GPUs")
    if args.tpu and (wrong := unfit(args.tpu, args.topology or "", args.chips_per_host)):
        parser.error(wrong)
    text = "---\n".join(to_yaml(jobset(experiment, run, args)) for run in experiment.runs())
    if args.dry_run:
        print(text, end="")
        return 0
    return submit(["kubectl", "apply", f"--namespace={args.namespace}", "--filename=-"], text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
