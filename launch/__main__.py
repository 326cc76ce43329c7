"""`python launch BACKEND ...`: start an experiment somewhere. `python launch BACKEND --help` lists the flags."""

from __future__ import annotations

import importlib
import sys

BACKENDS = {
    "local": "N processes on this machine",
    "slurm": "a batch job, or an array of them",
    "tpu_vm": "all workers of a Cloud TPU VM, over ssh",
    "gke": "a JobSet on Google Kubernetes Engine",
    "xpk": "TPUs of a cluster made by xpk",
    "xm": "xmanager: on this machine, or on Vertex AI (extra xm)",
}


def main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: python launch BACKEND [flags]\n")
        print("\n".join(f"  {name:8} {text}" for name, text in BACKENDS.items()))
        return 0
    if argv[0] not in BACKENDS:
        print(f"launch: unknown back end {argv[0]!r}; expected one of {', '.join(BACKENDS)}", file=sys.stderr)
        return 2
    return importlib.import_module(argv[0]).main(argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
