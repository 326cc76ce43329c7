"""The last lines of an evaluation: what came out, where it lies, and what to do next."""

import shlex
from pathlib import Path

from pv_vae_jax.report.run_page import verdicts
from pv_vae_jax.train.run import Run


def ending(run: Run, metrics: dict, page: Path) -> list[str]:
    """Five lines at most, for a terminal; the last names `page`."""
    found, workdir = verdicts(metrics), shlex.quote(str(run.workdir))
    stage = list(metrics["stages"])[-1]
    prediction = metrics["stages"][stage]["prediction"]
    lines = [f"result: stage {stage} {found[stage]}"]
    if "diffusion" in found:
        lines.append(f"samples: {found['diffusion']}; all are in {page.with_name('samples.npz')}")
    lines.append(f"model: pv_vae_jax.load({str(run.workdir)!r}), or --model {workdir} of pv-vae")
    if metrics["missing"]:
        after = f"{metrics['missing'][0]} The command that began the run goes on with it"
    elif prediction and prediction["average"] >= prediction["average_copying"]:
        # The decoder's stage leaves the encoder, and so what it predicts from, as it is.
        trained = "video" if stage == "decoder" else stage
        after = f"more steps, in another --workdir, with --config.{trained}.init_from={workdir}"
    else:
        after = f"pv-vae reconstruct --model {workdir} VIDEO.mp4, pv-vae predict likewise"
        after += f", pv-vae sample --model {workdir}" if "diffusion" in found else ""
    kind = "report" if page.suffix == ".html" else "scores"
    return [*lines, f"next: {after}", f"{kind}: {page}"]
