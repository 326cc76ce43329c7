"""Draw curves of runs as an SVG: `python docs/curves.py OUT.svg TITLE TERM,TERM [NAME=]STAGE_FOLDER...`.

A stage folder holds `metrics.jsonl`, as `pv-vae train` writes it: `runs/demo/video`. Several runs have a name
each; `--log` takes a logarithmic axis.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pv_vae_jax.report.notebook import show_curves
from pv_vae_jax.train.writers import read_metrics


def main(argv: list[str] | None = None) -> None:
    """Read, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("title")
    parser.add_argument("terms")
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--log", action="store_true")
    arguments = parser.parse_args(argv)
    runs = {}
    for run in arguments.runs:
        name, named, folder = run.rpartition("=")
        rows = read_metrics(Path(folder) / "metrics.jsonl")
        if not rows:
            parser.error(f"{folder} holds no metrics.jsonl of a stage: name a folder such as runs/demo/video")
        runs[name if named else ""] = rows
    if len(runs) < len(arguments.runs):
        parser.error("several runs in one figure have a name each: NAME=FOLDER")
    terms, known = arguments.terms.split(","), sorted({term for rows in runs.values() for row in rows for term in row})
    if unknown := [term for term in terms if term not in known]:
        parser.error(f"no curve {unknown[0]!r}; there are {', '.join(known)}")
    figure = show_curves(arguments.title, runs, *terms, log=arguments.log)
    figure.save(arguments.out)


if __name__ == "__main__":
    main()
